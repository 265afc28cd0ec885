"""Displacements of an atlas as codes that follow a prior: the flow model, and an adversarial autoencoder of its output.

Source: Tomar et al., "SST", WACV 2022, sections 3.3 and 3.4; layers as in its published code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.cycle import Judged
from stages.parts.networks import crop, derived_depth, in_float32, pad_to_multiple, small_head
from stages.parts.samplers import OneAtlas
from stages.parts.style import LatentDiscriminator
from stages.parts.warps import halved, rescale, warp


class StridedUNet(nn.Module):
    """SST's light VoxelMorph: convolutions 5^3, of stride 2 to 16-32-32-32, then 32-32-32-16 and 16, LeakyReLU 0.2.

    Upsampling is nearest neighbour, skips concatenate, the last one the images; the head starts from N(0, 1e-3).

    Args:
        inputs: image channels.
        outputs: channels of the result.
        shape: grid (D, H, W) that the depth is derived from.
    """

    ENCODER = (16, 32, 32, 32)
    DECODER = (32, 32, 32, 16)

    def __init__(self, inputs: int, outputs: int, shape: Sequence[int]) -> None:
        super().__init__()
        depth = derived_depth(shape, most=len(self.ENCODER))
        encoder, decoder = self.ENCODER[:depth], self.DECODER[-depth:]
        self.down = nn.ModuleList(nn.Conv3d(a, b, 5, stride=2, padding=2) for a, b in pairwise((inputs, *encoder)))
        below = [encoder[-1], *(a + b for a, b in zip(decoder, reversed(encoder[:-1]), strict=False))]
        self.up = nn.ModuleList(nn.Conv3d(a, b, 5, padding=2) for a, b in zip(below, decoder, strict=True))
        self.last = nn.Conv3d(decoder[-1] + inputs, 16, 5, padding=2)
        self.head = nn.Conv3d(16, outputs, 5, padding=2)
        small_head(self.head, std=1e-3)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        shape = x.shape[2:]
        x = pad_to_multiple(x, 2 ** len(self.down)).contiguous(memory_format=torch.channels_last_3d)
        skips = []
        for convolution in self.down:
            skips.append(x)
            x = F.leaky_relu(convolution(x), 0.2)
        for convolution in self.up:
            x = F.interpolate(F.leaky_relu(convolution(x), 0.2), scale_factor=2, mode="nearest")
            x = torch.cat([x, skips.pop()], 1)
        return crop(in_float32(self.head, F.leaky_relu(self.last(x), 0.2)), shape)


def _keep_the_size(layer: nn.Module) -> None:
    """Weights of a convolution with which LeakyReLU 0.2 neither shrinks nor swells what passes (He et al., 2015)."""
    if isinstance(layer, nn.ConvTranspose3d):  # an output voxel hears 2^3 of the 4^3 taps
        nn.init.normal_(layer.weight, std=math.sqrt(2 / (1.04 * 8 * layer.in_channels)))
    elif isinstance(layer, nn.Conv3d):
        nn.init.kaiming_normal_(layer.weight, a=0.2)
    if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FlowAutoencoder(nn.Module):
    """Displacements <-> codes of 64 channels at 1/32 of the images' grid, whose axes come up to multiples of 32.

    Encoder: convolutions 5^3 of stride 2 to 32-64-128-256, InstanceNorm, LeakyReLU 0.2; one 4^3 of stride 2 to the
    code. Decoder: transposed convolutions 4^3 of stride 2 to 256-128-64-32-32, then 3^3 to the displacement. Float32.

    Args:
        shape: grid (D, H, W) of the displacements; they are resampled to the next multiples, in its voxels.
        light: half as many voxels an axis before that, hence one level less, no InstanceNorm, which hides how far a
            displacement goes: with it u and 4 u have one code, and codes z and 10 z one displacement.
    """

    WIDTHS = (32, 64, 128, 256)
    CHANNELS = 64

    def __init__(self, shape: Sequence[int], *, light: bool = False) -> None:
        super().__init__()
        self.shape = tuple(shape)
        widths = self.WIDTHS[:-1] if light else self.WIDTHS
        self.stride = 2 ** (len(widths) + 1)
        self.grid = tuple(-(-n // self.stride) * self.stride for n in (halved(self.shape) if light else self.shape))
        normalise = nn.Identity if light else nn.InstanceNorm3d
        down: list[nn.Module] = [
            nn.Sequential(nn.Conv3d(a, b, 5, stride=2, padding=2), normalise(b), nn.LeakyReLU(0.2))
            for a, b in pairwise((3, *widths))
        ]
        up: list[nn.Module] = [
            nn.Sequential(nn.ConvTranspose3d(a, b, 4, stride=2, padding=1), normalise(b), nn.LeakyReLU(0.2))
            for a, b in pairwise((self.CHANNELS, *reversed(widths), widths[0]))
        ]
        self.encoder = nn.Sequential(*down, nn.Conv3d(widths[-1], self.CHANNELS, 4, stride=2, padding=1, bias=False))
        self.decoder = nn.Sequential(*up, nn.Conv3d(widths[0], 3, 3, padding=1))
        if light:
            self.apply(_keep_the_size)

    @property
    def code_size(self) -> int:
        return math.prod(self.code_shape)

    @property
    def code_shape(self) -> tuple[int, int, int, int]:
        d, h, w = (n // self.stride for n in self.grid)
        return self.CHANNELS, d, h, w

    def inside(self, displacement: Tensor) -> Tensor:
        """A displacement on the autoencoder's grid, in its voxels."""
        return rescale(displacement, self.grid)

    def outside(self, displacement: Tensor) -> Tensor:
        """What lies on the autoencoder's grid, on the images', in their voxels."""
        return rescale(displacement, self.shape)

    def encode(self, displacement: Tensor) -> Tensor:
        """(N, 3, *grid) -> (N, *code_shape)."""
        with torch.autocast(displacement.device.type, enabled=False):
            return self.encoder(displacement.float())

    def decode(self, code: Tensor) -> Tensor:
        """(N, *code_shape) -> (N, 3, *grid)."""
        with torch.autocast(code.device.type, enabled=False):
            return self.decoder(code.float())


@dataclass
class Coded:
    """Displacements, on the autoencoder's grid, through the code and back."""

    displacement: Tensor  # (N, 3, *grid)
    rebuilt: Tensor
    atlas: Tensor  # (N, 1, D, H, W)
    autoencoder: FlowAutoencoder
    judged: Tensor | None = None  # what D_flow says of the code, (N, 1)


@dataclass
class FlowsOfAtlas:
    """The displacements of a batch on the autoencoder's grid, mixed; the registration stands still.

    Every pair is registered once and kept in float16, as far as there is room; one by one, so that what is found does
    not depend on the pairs beside it, nor on where a run was resumed.

    Args:
        most_bytes: room for what is kept.
    """

    registration: nn.Module
    autoencoder: FlowAutoencoder
    most_bytes: int = 2 * 2**30
    kept: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def __call__(self, batch: OneAtlas) -> Tensor:
        if batch.displacement is None:
            found = [self._of_pair(batch, i).float() for i in range(len(batch.moving))]
            with torch.autocast(batch.moving.device.type, enabled=False):
                batch.displacement = torch.einsum("nm,mcdhw->ncdhw", batch.mixture, torch.stack(found))
        return batch.displacement

    @torch.no_grad()
    def _of_pair(self, batch: OneAtlas, i: int) -> Tensor:
        """(3, *grid), float16."""
        names = batch.scans[i], batch.scans[len(batch.moving) + i]
        found = self.kept.get(names)
        if found is None:
            displacement = self.registration(batch.moving[i : i + 1], batch.fixed[i : i + 1])
            found = self.autoencoder.inside(displacement)[0].half()
            if (len(self.kept) + 1) * found.nbytes <= self.most_bytes:
                self.kept[names] = found
        return found


@dataclass
class EncodeFlows:
    """Forward pass of the autoencoder.

    Args:
        discriminator: D_flow; None: nobody judges.
    """

    flows: FlowsOfAtlas
    autoencoder: FlowAutoencoder
    discriminator: LatentDiscriminator | None

    def __call__(self, batch: OneAtlas) -> Coded:
        displacement = self.flows(batch)
        code = self.autoencoder.encode(displacement)
        judged = self.discriminator(code) if self.discriminator else None
        return Coded(displacement, self.autoencoder.decode(code), batch.moving, self.autoencoder, judged)


@dataclass
class JudgeFlows:
    """Forward pass of D_flow: the prior's codes, and those of displacements; the autoencoder stands still."""

    flows: FlowsOfAtlas
    autoencoder: FlowAutoencoder
    discriminator: LatentDiscriminator

    def __call__(self, batch: OneAtlas) -> Judged:
        with torch.no_grad():
            encoded = self.autoencoder.encode(self.flows(batch))
        generator = batch.draw.generator
        prior = torch.randn(encoded.shape, generator=generator, device=generator.device)
        return Judged(*self.discriminator(torch.cat([prior, encoded])).chunk(2))


def flow_reconstruction(coded: Coded) -> Tensor:
    """Mean absolute difference of the displacements, in voxels of the autoencoder's grid."""
    return (coded.rebuilt - coded.displacement).abs().mean()


def image_reconstruction(coded: Coded) -> Tensor:
    """1 - SSIM of the atlas under the rebuilt and under the true displacement."""
    outside = coded.autoencoder.outside
    rebuilt, true = (warp(coded.atlas, outside(field)) for field in (coded.rebuilt, coded.displacement))
    return 1 - losses.ms_ssim(rebuilt, true, most_scales=1)


def adversarial(coded: Coded) -> Tensor:
    """The flow encoder's share of the adversarial loss: 0 where D_flow takes its codes for the prior's."""
    assert coded.judged is not None
    return losses.least_squares_gan_loss(coded.judged, 1.0)
