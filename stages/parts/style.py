"""The look of a scan as a code, learned by contrast, and a model that gives an atlas the look that a code says.

Images come and go in [0, 1]; within, they run from -1 to 1, as in the paper.

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

from stages.parts import losses
from stages.parts.consistency import Registered
from stages.parts.cycle import Judged
from stages.parts.networks import (
    RegistrationNetwork,
    crop,
    depth_to_space,
    in_float32,
    pad_to_multiple,
    space_to_depth,
)
from stages.parts.samplers import TwoScans
from stages.parts.warps import warp

CODE = 128  # numbers in a style code
KNOTS = 16  # of the curve of intensities that a code draws


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


class AdaptiveBlock(nn.Module):
    """Convolution 3^3, adaptive instance normalisation, LeakyReLU 0.2.

        AdaIN(x, s) = (1 + gamma(s)) (x - mean(x)) / std(x) + beta(s),  mean and std of each sample's channel

    gamma and beta are linear in the style, with weights from N(0, 1e-4) and no bias at first: no style to begin with.

    Source: Huang and Belongie, ICCV 2017; SST's published code.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.scale, self.offset = nn.Linear(CODE, outputs), nn.Linear(CODE, outputs)
        for layer in (self.scale, self.offset):
            nn.init.normal_(layer.weight, std=1e-4)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(N, inputs, D, H, W) and (N, CODE) -> (N, outputs, D, H, W)."""
        scale, offset = (in_float32(layer, style)[:, :, None, None, None] for layer in (self.scale, self.offset))
        return F.leaky_relu((1 + scale) * F.instance_norm(self.convolution(x)) + offset, 0.2)


class Residual(nn.Module):
    """x plus twice [convolution 3^3, LeakyReLU 0.2] of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(width, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv3d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class AppearanceModel(nn.Module):
    """A: image and style code -> the image with that style, its anatomy as it was.

    Convolution 7^3 to 16 channels; twice InstanceNorm and 5^3 of stride 2 to 32, with LeakyReLU 0.2; two residual
    blocks; three blocks with AdaIN, trilinear upsampling between them; one convolution 3^3 and tanh. No skips: all that
    the image was goes through the bottleneck. Its brightness and contrast do, too, as far as LeakyReLU before the first
    InstanceNorm has made them a matter of shape.

    Args:
        light: works on blocks of 2^3 voxels, with 16 and 64 channels, 3^3 kernels and two blocks with AdaIN: never
            at full resolution, which is where the published one spends its time. Three changes make it listen to the
            code, and to nothing else, in short trainings. It sees the image's ranks, so that brightness, contrast and
            any other rising curve of intensities can come from nowhere else, and a scan said again in its own style
            teaches what every scan looks like in that style. In place of a third AdaIN the code draws such a curve over
            the ranks, to which the network adds what is local; 0, what lies outside a scan, stays 0. And codes, of
            length 1, come in with numbers of size 1, no longer small beside biases. No gradient goes to the image.

    Source: SST's published code; the paper says no more than that there are three AdaIN layers.
    """

    def __init__(self, *, light: bool = False) -> None:
        super().__init__()
        self.light = light
        widths = (16, 64) if light else (16, 32, 32)
        stem, kernel = (3, 3) if light else (7, 5)
        self.style = nn.Sequential(nn.Linear(CODE, CODE), nn.LeakyReLU(0.2), nn.Linear(CODE, CODE), nn.LeakyReLU(0.2))
        self.stem = nn.Conv3d(8 if light else 1, widths[0], stem, padding=stem // 2)
        self.down = nn.ModuleList(nn.Conv3d(a, b, kernel, stride=2, padding=kernel // 2) for a, b in pairwise(widths))
        self.residual = nn.Sequential(Residual(widths[-1]), Residual(widths[-1]))
        wide = [(64, 32), (32 + 16, 16)] if light else pairwise((widths[-1], *reversed(widths)))
        self.up = nn.ModuleList(AdaptiveBlock(a, b) for a, b in wide)
        self.head = nn.Conv3d(widths[0], 8 if light else 1, 3, padding=1)
        if light:
            self.curve = nn.Linear(CODE, KNOTS)
            nn.init.normal_(self.curve.weight, std=1e-2)
            self.curve.bias.data = torch.linspace(-1.5, 1.5, KNOTS)

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """(N, 1, D, H, W) in [0, 1] and (N, CODE) -> (N, 1, D, H, W) in [0, 1], float32."""
        seen = pad_to_multiple(ranks(image) if self.light else image, 4)
        style = in_float32(self.style, code * CODE**0.5 if self.light else code)
        x = self.stem(space_to_depth(2 * seen - 1) if self.light else 2 * seen - 1)
        x = sharp = F.leaky_relu(F.instance_norm(x) if self.light else x, 0.2)
        for convolution in self.down:
            x = F.leaky_relu(convolution(F.instance_norm(x)), 0.2)
        x = self.residual(x)
        for level, block in enumerate(self.up):
            x = F.interpolate(x, scale_factor=2, mode="trilinear") if level else x
            x = block(torch.cat([x, sharp], 1) if self.light and block is self.up[-1] else x, style)
        if self.light:
            x = depth_to_space(self.head(x)) + drawn(in_float32(self.curve, style), seen)
            return crop((torch.tanh(x) + 1) / 2 * (seen > 0), image.shape[2:])
        return crop((torch.tanh(in_float32(self.head, x)) + 1) / 2, image.shape[2:])


@torch.no_grad()
def ranks(image: Tensor) -> Tensor:
    """The share of an image's voxels above 0 that are not brighter, (N, 1, D, H, W) in [0, 1], float32; 0 stays 0.

    The same for every rising curve of the intensities that leaves 0 as it is.
    """
    found = torch.zeros_like(image, dtype=torch.float32)
    for values, result in zip(image.float(), found, strict=True):
        inside = values[values > 0]
        result[values > 0] = torch.searchsorted(inside.sort().values, inside, right=True) / max(1, inside.numel())
    return found


def drawn(knots: Tensor, places: Tensor) -> Tensor:
    """Piecewise linear curves through evenly spaced knots, read at places in [0, 1].

    Args:
        knots: (N, KNOTS), the values at 0, ..., 1.
        places: (N, 1, D, H, W).
    """
    steps = knots.shape[1] - 1
    place = places.flatten(1) * steps
    low = place.floor().clamp(max=steps - 1)
    index = low.long()
    return torch.lerp(knots.gather(1, index), knots.gather(1, index + 1), place - low).view_as(places)


class LatentDiscriminator(nn.Module):
    """Says of a code whether it was drawn from the prior: linear layers with LeakyReLU 0.2, float32.

    Args:
        inputs: numbers in a code.
        layers, width: of the hidden layers; 5 of 128 for styles, 2 of 256 for flows in SST's published code.
    """

    def __init__(self, inputs: int, *, layers: int, width: int) -> None:
        super().__init__()
        hidden = [nn.Sequential(nn.Linear(a, width), nn.LeakyReLU(0.2)) for a in (inputs, *[width] * (layers - 1))]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 1))

    def forward(self, code: Tensor) -> Tensor:
        """(N, ...) -> (N, 1); trained towards 1: prior, 0: encoded."""
        with torch.autocast(code.device.type, enabled=False):
            return self.layers(code.float().flatten(1))


def style_prior(count: int, generator: Generator) -> Tensor:
    """Codes n / |n|, n ~ N(0, I), (count, CODE): uniform on the sphere, where the encoder's codes lie."""
    return F.normalize(torch.randn(count, CODE, generator=generator, device=generator.device), dim=1)


class StyledRegistration(nn.Module):
    """Registers a moving image in the look of the fixed one: F(A(moving, E(fixed)), fixed).

    Args:
        flow: F.
        appearance: A.
        style: E, the encoder and what it learns with.
        code_of: whose codes A sees: the encoder's, or its slow copy's, through which no gradient goes.
    """

    def __init__(
        self,
        flow: RegistrationNetwork,
        appearance: AppearanceModel,
        style: MomentumContrast,
        *,
        code_of: Literal["query", "key"] = "query",
    ) -> None:
        super().__init__()
        self.flow, self.appearance, self.style, self.code_of = flow, appearance, style, code_of

    def code(self, image: Tensor) -> Tensor:
        """Style codes, (N, CODE)."""
        if self.code_of == "query":
            return self.style.encoder(image)
        with torch.no_grad():
            return self.style.key_encoder(image)

    def restyled(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The moving image in the look of the fixed one, (N, 1, D, H, W) in [0, 1]."""
        return self.appearance(moving, self.code(fixed))

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (N, 1, D, H, W) -> displacement (N, 3, D, H, W), voxels, float32."""
        return self.flow(self.restyled(moving, fixed), fixed)


@dataclass
class Encoded:
    """Codes of scans, and what the discriminator says of them."""

    contrasted: Contrasted
    judged: Tensor | None = None  # (N, 1)


@dataclass
class ContrastStyles:
    """Forward pass of style pre-training: scans and the same scans warped to others, by a registration that is fixed.

    Args:
        style: learns.
        transformer: T, the pre-trained registration.
        discriminator: D_style; None: nobody judges.
    """

    style: MomentumContrast
    transformer: RegistrationNetwork
    discriminator: LatentDiscriminator | None

    def __call__(self, batch: TwoScans) -> Encoded:
        with torch.no_grad():
            moved = warp(batch.moving, self.transformer(batch.moving, batch.fixed))
        contrasted = self.style(batch.moving, moved, batch.owner)  # no looks: A will see those of a later encoder
        return Encoded(contrasted, self.discriminator(contrasted.query) if self.discriminator else None)


@dataclass
class JudgeStyles:
    """Forward pass of D_style: the prior's codes, and those of scans; the encoder stands still."""

    encoder: nn.Module
    discriminator: LatentDiscriminator

    def __call__(self, batch: TwoScans) -> Judged:
        with torch.no_grad():
            encoded = self.encoder(batch.moving)
        prior = style_prior(len(encoded), batch.draw.generator)
        return Judged(*self.discriminator(torch.cat([prior, encoded])).chunk(2))


@dataclass(kw_only=True)
class Transferred(Registered):
    """A scan in another one's style (`moving`), registered to it (`fixed`), and on its way back to its own style."""

    source: Tensor  # s, (N, 1, D, H, W)
    rebuilt: Tensor  # A(A(s, E(t)), E(s))
    same: Tensor  # A(s, E(s))
    encoded: Encoded


@dataclass
class Transfer:
    """Forward pass of the joint phase.

    The positive keys are the scans in the shape of the others, by the displacements that were just found.

    Args:
        registration: all three networks.
        discriminator: D_style; None: nobody judges.
        registers: the gradient of the registration reaches all networks; off: F registers scans in their own style,
            for the keys alone, and gets no gradient.
    """

    registration: StyledRegistration
    discriminator: LatentDiscriminator | None
    registers: bool = True

    def __call__(self, batch: TwoScans) -> Transferred:
        R, source, target = self.registration, batch.moving, batch.fixed
        of_source = R.code(source)
        styled = R.restyled(source, target)
        with torch.set_grad_enabled(self.registers and torch.is_grad_enabled()):
            displacement = R.flow(styled if self.registers else source, target)
        contrasted = R.style(source, warp(source, displacement.detach()), batch.owner, batch.plain)
        rebuilt, same = R.appearance(torch.cat([styled, source]), of_source.repeat(2, 1)).chunk(2)
        judged = self.discriminator(contrasted.query) if self.discriminator else None
        return Transferred(
            styled, target, displacement, 1, source=source, rebuilt=rebuilt, same=same,
            encoded=Encoded(contrasted, judged),
        )  # fmt: skip


@dataclass
class RegisterStyled:
    """Forward pass of F alone: scans in the style of others, which get no gradient, registered to them."""

    registration: StyledRegistration

    def __call__(self, batch: TwoScans) -> Registered:
        with torch.no_grad():
            styled = self.registration.restyled(batch.moving, batch.fixed)
        return Registered(styled, batch.fixed, self.registration.flow(styled, batch.fixed), 1)


@dataclass
class Contrast:
    """L_vol.cl (Eq. 1)."""

    temperature: float

    def __call__(self, state: Encoded | Transferred) -> Tensor:
        found = _encoded(state).contrasted
        return losses.info_nce_loss(found.query, found.key, found.negatives, found.own, temperature=self.temperature)


def adversarial(state: Encoded | Transferred) -> Tensor:
    """The encoder's share of L_adv: 0 where the discriminator takes its codes for the prior's."""
    judged = _encoded(state).judged
    assert judged is not None
    return losses.least_squares_gan_loss(judged, 1.0)


def _encoded(state: Encoded | Transferred) -> Encoded:
    return state.encoded if isinstance(state, Transferred) else state


def style_cycle(state: Transferred) -> Tensor:
    """L_cycle: the scan that went to another style and back is the scan (Eq. 3)."""
    return losses.structural_loss(state.source, state.rebuilt)


def style_identity(state: Transferred) -> Tensor:
    """L_id: in its own style the scan is itself (Eq. 5)."""
    return losses.structural_loss(state.source, state.same)


def reconstruction(pair: Registered) -> Tensor:
    """L_recon: the warped moving image is the fixed one (Eq. 8)."""
    return losses.structural_loss(pair.fixed, warp(pair.moving, pair.displacement))


def gradient(pair: Registered) -> Tensor:
    """L_reg: mean absolute difference of neighbouring displacements (Eq. 9)."""
    return losses.absolute_gradient_loss(pair.displacement)
