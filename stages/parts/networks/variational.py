"""A variational autoencoder of fields: what is added to an atlas's intensities, or moves it.

Source: Ding, Yu, Yang, AAAI 2021; Kingma, Welling, ICLR 2014; Higgins et al., "beta-VAE", ICLR 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from stages.parts.networks.blocks import small_head
from stages.parts.warps import halved, rescale, resize

MOST_LOG_VARIANCE = 10.0  # of a code, either way: exp of more overflows early in a training


class VariationalAutoencoder(nn.Module):
    """Fields <-> Gaussians of codes, on a grid whose axes are raised to multiples of 16. Float32.

    Encoder: convolutions 4^3 of stride 2 to 16-32-64-64 channels, LeakyReLU 0.2, then one linear layer to mean and
    log-variance of the code. Decoder: one linear layer, then transposed convolutions 4^3 of stride 2 to 64-32-16-16,
    LeakyReLU 0.2, and 3^3 to the field. No normalisation, which would hide how large a field is. An untrained decoder
    answers with nearly 0: the atlas as it is.

    Args:
        channels: of the field; 3 for displacements.
        shape: the images' grid (D, H, W).
        code: numbers of a code.
        displaces: fields are displacements, in voxels of their grid; otherwise values that keep their size.
        light: on a grid of half as many voxels an axis.
    """

    WIDTHS = (16, 32, 64, 64)

    def __init__(self, channels: int, shape: Sequence[int], *, code: int, displaces: bool, light: bool = False) -> None:
        super().__init__()
        self.shape, self.code, self.displaces = tuple(shape), code, displaces
        stride = 2 ** len(self.WIDTHS)
        self.grid = tuple(-(-n // stride) * stride for n in (halved(self.shape) if light else self.shape))
        deepest = [n // stride for n in self.grid]
        flat = self.WIDTHS[-1] * math.prod(deepest)
        down: list[nn.Module] = []
        for a, b in pairwise((channels, *self.WIDTHS)):
            down += [nn.Conv3d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, 2 * code))
        up: list[nn.Module] = [nn.Linear(code, flat), nn.LeakyReLU(0.2), nn.Unflatten(1, (self.WIDTHS[-1], *deepest))]
        for a, b in pairwise((*reversed(self.WIDTHS), self.WIDTHS[0])):
            up += [nn.ConvTranspose3d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        head = nn.Conv3d(self.WIDTHS[0], channels, 3, padding=1)
        small_head(head, 1e-2)
        self.decoder = nn.Sequential(*up, head)

    def inside(self, field: Tensor) -> Tensor:
        """A field of the images' grid, brought to the autoencoder's."""
        return rescale(field, self.grid) if self.displaces else resize(field, self.grid)

    def outside(self, field: Tensor) -> Tensor:
        """A field of the autoencoder's grid, brought to the images'."""
        return rescale(field, self.shape) if self.displaces else resize(field, self.shape)

    def encode(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """(N, channels, *grid) -> mean and log-variance of the codes, (N, code) each."""
        with torch.autocast(field.device.type, enabled=False):
            mean, log_variance = self.encoder(field.float()).chunk(2, 1)
        return mean, log_variance.clamp(-MOST_LOG_VARIANCE, MOST_LOG_VARIANCE)

    def decode(self, code: Tensor) -> Tensor:
        """(N, code) -> (N, channels, *grid)."""
        with torch.autocast(code.device.type, enabled=False):
            return self.decoder(code.float())
