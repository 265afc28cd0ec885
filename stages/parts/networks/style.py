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

CODE = 128  # numbers in a style code


class StyleEncoder(nn.Module):
    """Image -> style code on the unit sphere: where scans that look alike lie together, whatever their anatomy.

    Convolutions 1-16 (7^3, stride 4), 32, 64, 128 (3^3, stride 2) with InstanceNorm and LeakyReLU 0.2, one 3^3 to 64,
    average pooling to 4 x 5 x 5, three linear layers. An axis is strided only as far as it keeps 4 voxels, what the
    published grid of 128 x 160 x 160 ends with. Float32: at these sizes autocast would save nothing.

    Args:
        shape: grid (D, H, W); the weights fit every other one.
        light: no InstanceNorm behind the first convolution, which would take an image's brightness and contrast away.
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
    """Codes that are to be told apart; see `losses.info_nce_loss`."""

    query: Tensor  # (N, CODE), of the scans
    key: Tensor  # (N, CODE), of the same scans in another shape
    negatives: Tensor  # (M, CODE), keys of earlier steps
    own: Tensor  # (N, M), true where a negative is left out, being of the query's own scan


class MomentumContrast(nn.Module):
    """A style encoder, its slowly following copy that makes the keys, and a queue of the latest keys.

    In a step: the key encoder moves, k <- m k + (1 - m) q; queries are compared with what is in the queue; then the
    new keys replace the oldest ones there, and the codes of the scans themselves theirs in a second one, of looks,
    where those are to be remembered. The state is part of the weights, so a checkpoint holds it.

    Args:
        encoder: image -> code.
        size: keys in the queue, which starts with random directions that belong to no scan.
        looks_of: whose codes of the scans are remembered as looks: the encoder's, or its slow copy's.
        own: keys of the query's own scan are negatives, too. Of scans whose looks change from draw to draw they are, as
            in the published code; of scans that always look the same they are the positive key again, and with few
            scans the queue is full of them.

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
        """Scans and the same scans in other shapes, (N, 1, D, H, W), and whose they are, (N,); moves the state on.

        Args:
            plain: the scans before jitter, whose looks are remembered; None: these steps remember none.
        """
        query = self.encoder(scan)
        self.follow()
        with torch.no_grad():
            key = self.key_encoder(moved)
            looks_of = self.encoder if self.looks_of == "query" else self.key_encoder
            look = torch.zeros_like(key) if plain is None else looks_of(plain)
        left_out = (owner[:, None] == self.owners) & (not self.own)
        found = Contrasted(query, key, self.queue.clone(), left_out)
        self.enqueue(key, owner, look)
        return found

    @torch.no_grad()
    def follow(self) -> None:
        """The key encoder follows the encoder by one step."""
        for key, query in zip(self.key_encoder.parameters(), self.encoder.parameters(), strict=True):
            key.lerp_(query, 1 - self.MOMENTUM)

    def remembered(self, count: int, generator: Generator) -> Tensor:
        """Looks between a remembered one and one that is like it, (count, CODE), of length 1.

        (1 - m) a + m b, m ~ U(0, 1), b one of the NEIGHBOURS looks nearest to a, as SMOTE draws: between two sites lies
        the look of none.

        Args:
            generator: of the CPU.

        Source: Chawla et al., JAIR 2002.
        """
        known = self.looks[self.known]
        first = known[torch.randint(len(known), (count,), generator=generator).to(known.device)]
        with torch.autocast(known.device.type, enabled=False):  # bfloat16 cannot tell cosines near 1 apart
            near = (first @ known.T).topk(min(self.NEIGHBOURS + 1, len(known)), dim=1).indices  # one of them is itself
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
        """New keys, and the looks of their scans, take the places of the oldest ones; of too many, the last ones."""
        keys, owner, looks = (new[-len(self.queue) :] for new in (keys, owner, looks))
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places], self.owners[places], self.looks[places] = keys, owner, looks
        self.pointer.copy_((self.pointer + len(keys)) % len(self.queue))


def style_prior(count: int, generator: Generator) -> Tensor:
    """Codes n / |n|, n ~ N(0, I), (count, CODE): uniform on the sphere, where the encoder's codes lie."""
    return F.normalize(torch.randn(count, CODE, generator=generator, device=generator.device), dim=1)
