"""An autoencoder of displacements, whose codes follow a prior.

Source: Tomar et al., "SST", WACV 2022, section 3.4; layers as in its published code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from stages.parts.warps import halved, rescale


def _keep_the_size(layer: nn.Module) -> None:
    """Initial weights of a convolution that keep the variance through LeakyReLU 0.2 (He et al., 2015)."""
    if isinstance(layer, nn.ConvTranspose3d):  # 2^3 of the 4^3 taps reach an output voxel
        nn.init.normal_(layer.weight, std=math.sqrt(2 / (1.04 * 8 * layer.in_channels)))
    elif isinstance(layer, nn.Conv3d):
        nn.init.kaiming_normal_(layer.weight, a=0.2)
    if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FlowAutoencoder(nn.Module):
    """Displacements <-> codes of 64 channels at 1/32 of the images' grid, whose axes are raised to multiples of 32.

    Encoder: convolutions 5^3 of stride 2 to 32-64-128-256, InstanceNorm, LeakyReLU 0.2; one 4^3 of stride 2 to the
    code. Decoder: transposed convolutions 4^3 of stride 2 to 256-128-64-32-32, then 3^3 to the displacement. Float32.

    Args:
        shape: grid (D, H, W) of the displacements; they are resampled to the next multiples, in its voxels.
        light: half as many voxels an axis, hence one level less, and no InstanceNorm, which hides the size of a
            displacement: with it u and 4 u have the same code, and codes z and 10 z give the same displacement.
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
        """A displacement brought to the autoencoder's grid, in its voxels."""
        return rescale(displacement, self.grid)

    def outside(self, displacement: Tensor) -> Tensor:
        """A displacement on the autoencoder's grid, brought to the images' grid, in its voxels."""
        return rescale(displacement, self.shape)

    def encode(self, displacement: Tensor) -> Tensor:
        """(N, 3, *grid) -> (N, *code_shape)."""
        with torch.autocast(displacement.device.type, enabled=False):
            return self.encoder(displacement.float())

    def decode(self, code: Tensor) -> Tensor:
        """(N, *code_shape) -> (N, 3, *grid)."""
        with torch.autocast(code.device.type, enabled=False):
            return self.decoder(code.float())
