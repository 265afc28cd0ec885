"""The look of a scan as a code: the style encoder, learned by momentum contrast, and the prior of its codes.

Source: Tomar et al., "SST", WACV 2022, section 3; layers as in its published code.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from stages.parts.together import gathered, randn

CODE = 128  # numbers in a style code


class StyleEncoder(nn.Module):
    """Image -> style code on the unit sphere: scans that look alike lie close together, whatever their anatomy.

    Convolutions 1-16 (7^3, stride 4), 32, 64, 128 (3^3, stride 2) with InstanceNorm and LeakyReLU 0.2, one 3^3 to 64,
    average pooling to 4 x 5 x 5, three linear layers. An axis is strided only while it keeps 4 voxels, as many as
    the published grid of 128 x 160 x 160 ends with. Float32: at these sizes autocast would save nothing.

    Args:
        shape: grid (D, H, W); the weights fit any other grid.
        light: no InstanceNorm behind the first convolution, because it would remove an image's brightness and contrast.
    """

    WIDTHS = (16, 32, 64, 128)

    def __init__(self, shape: Sequence[int], *, light: bool = False) -> None:
        super().__init__()
        sizes, layers = list(shape), []
        for level, (before, after) in enumerate(pairwise((1, *self.WIDTHS))):
            kernel, most = (3, 2) if level else (7, 4)
            stride = [max(s for s in (1, 2, 4) if s == 1 or (s <= most and -(-n // s) >= 4)) for n in sizes]
            sizes = [-(-n // s) for n, s in zip(sizes, stride, strict=True)]
            layers += [
                nn.Conv3d(before, after, kernel, stride=(stride[0], stride[1], stride[2]), padding=kernel // 2),
                nn.Identity() if light and level == 0 else nn.InstanceNorm3d(after),
                nn.LeakyReLU(0.2),
            ]
        self.backbone = nn.Sequential(*layers, nn.Conv3d(self.WIDTHS[-1], 64, 3, padding=1, bias=False))
        self.pool = nn.AdaptiveAvgPool3d((4, 5, 5))
        self.head = nn.Sequential(
            nn.Linear(64 * 4 * 5 * 5, CODE), nn.LeakyReLU(0.2), nn.Linear(CODE, CODE), nn.LeakyReLU(0.2),
            nn.Linear(CODE, CODE, bias=False),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, D, H, W) in [0, 1] -> (N, CODE), float32, of length 1."""
        with torch.autocast(image.device.type, enabled=False):
            x = self.pool(self.backbone(2 * image.float() - 1))
            return F.normalize(self.head(x.flatten(1)), dim=1)


@dataclass
class Contrasted:
    """Codes for the contrastive loss; see `losses.info_nce_loss`."""

    query: Tensor  # (N, CODE), of the scans
    key: Tensor  # (N, CODE), of the same scans in another shape
    negatives: Tensor  # (M, CODE), keys of earlier steps
    own: Tensor  # (N, M), true where a negative is left out because it shows the query's own scan


class MomentumContrast(nn.Module):
    """A style encoder, its slowly following copy that makes the keys, and a queue of the latest keys.

    In a step the key encoder moves, k <- m k + (1 - m) q, and queries are compared with the queue. Then the new keys
    replace the oldest keys of the queue. A second queue, of looks, keeps the scans' own codes, where these are
    remembered. The state is part of the weights, so a checkpoint holds it.

    Args:
        encoder: image -> code.
        size: keys in the queue, which starts with random directions that belong to no scan.
        looks_of: which codes of the scans are remembered as looks: the encoder's, or its slow copy's.
        own: keys of the query's own scan are negatives, too. That is right where a scan's look changes from draw to
            draw, as in the published code. Where it never changes, they equal the positive key, and with few scans the
            queue is full of them.

    Source: He et al., "MoCo", CVPR 2020; m = 0.99 as SST.
    """

    MOMENTUM, NEIGHBOURS = 0.99, 8
    queue: Tensor
    looks: Tensor
    owners: Tensor
    pointer: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        size: int = 1024,
        own: bool = False,
        looks_of: Literal["query", "key"] = "query",
    ) -> None:
        super().__init__()
        self.encoder, self.own, self.looks_of = encoder, own, looks_of
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("queue", style_prior(size, torch.Generator().manual_seed(0)))
        self.register_buffer("looks", torch.zeros(size, CODE))
        self.register_buffer("owners", torch.full((size,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def forward(self, scan: Tensor, moved: Tensor, owner: Tensor, plain: Tensor | None = None) -> Contrasted:
        """Contrast scans with the same scans in other shapes, and update the state.

        Args:
            scan, moved: (N, 1, D, H, W).
            owner: place of each scan in the cohort, (N,).
            plain: the scans before jitter, whose looks are remembered; None: no look is remembered.
        """
        query = self.encoder(scan)
        self.follow()
        with torch.no_grad():
            key = self.key_encoder(moved)
            looks_of = self.encoder if self.looks_of == "query" else self.key_encoder
            look = torch.zeros_like(key) if plain is None else looks_of(plain)
        left_out = (owner[:, None] == self.owners) & (not self.own)
        contrasted = Contrasted(query, key, self.queue.clone(), left_out)
        self.enqueue(key, owner, look)
        return contrasted

    @torch.no_grad()
    def follow(self) -> None:
        """The key encoder follows the encoder by one step."""
        for key, query in zip(self.key_encoder.parameters(), self.encoder.parameters(), strict=True):
            key.lerp_(query, 1 - self.MOMENTUM)

    def remembered(self, count: int, generator: Generator) -> Tensor:
        """Looks between a remembered look and a similar one, (count, CODE), of length 1.

        (1 - m) a + m b, m ~ U(0, 1), with b one of the NEIGHBOURS looks nearest to a, as in SMOTE. No scan has a look
        between two sites, so looks that are far apart are not mixed.

        Args:
            generator: of the CPU.

        Source: Chawla et al., JAIR 2002.
        """
        known = self.looks[self.known]
        first = known[torch.randint(len(known), (count,), generator=generator).to(known.device)]
        with torch.autocast(known.device.type, enabled=False):  # bfloat16 cannot resolve cosines near 1
            near = (
                (first @ known.T).topk(min(self.NEIGHBOURS + 1, len(known)), dim=1).indices
            )  # the look itself is among them
        second = known[
            near.gather(1, torch.randint(near.shape[1], (count, 1), generator=generator).to(near.device))[:, 0]
        ]
        return F.normalize(torch.lerp(first, second, torch.rand(count, 1, generator=generator).to(first.device)), dim=1)

    @property
    def known(self) -> Tensor:
        """Where a look is remembered, (size,); elsewhere it is 0."""
        return self.looks.any(1)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, owner: Tensor, looks: Tensor) -> None:
        """New keys, and their scans' looks, replace the oldest ones; of too many, the last ones enter."""
        keys, owner, looks = (gathered(new)[-len(self.queue) :] for new in (keys, owner, looks))
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places], self.owners[places], self.looks[places] = keys, owner, looks
        self.pointer.copy_((self.pointer + len(keys)) % len(self.queue))


def style_prior(count: int, generator: Generator) -> Tensor:
    """Codes n / |n|, n ~ N(0, I), (count, CODE): uniform on the sphere, where the encoder's codes lie."""
    return F.normalize(randn((count, CODE), generator), dim=1)
