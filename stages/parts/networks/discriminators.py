"""Discriminators: of images, patch by patch, of pairs of images, voxel by voxel, and of codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.blocks import in_float32, normalise_and_rectify
from stages.parts.networks.sizes import crop, derived_depth, doubled, pad_to_multiple


class PatchDiscriminator(nn.Module):
    """A 3D PatchGAN: judges for each patch of an image whether it is real.

    Convolutions 4^3 of stride 2 to 32-64-128-256 channels with LeakyReLU 0.2 and, but for the first, InstanceNorm;
    then one 4^3 of stride 1 to one channel. Four levels see patches of 94^3 voxels, three 46^3, two 22^3. There are as
    many levels, up to four, as leave a patch smaller than three quarters of the grid's shortest axis (the paper's grid
    is 160 x 160 x 128). A patch that is the whole crop would be judged by the crop's borders. A grid is padded with
    zeros to a multiple of 2^levels.

    Source: Isola et al., "pix2pix", CVPR 2017, in 3D as LT-Net (CVPR 2020) uses it; widths as common implementations.
    """

    WIDTHS: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)

    def __init__(self, inputs: int, shape: Sequence[int]) -> None:
        super().__init__()
        within = [n for n in range(1, len(self.WIDTHS) + 1) if 6 * 2**n - 2 <= 0.75 * min(shape)]
        widths = self.WIDTHS[: derived_depth(shape, most=max(within, default=1))]
        pairs = zip((inputs, *widths[:-1]), widths, strict=True)
        self.down = nn.ModuleList(nn.Conv3d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(width, width) for width in widths[1:])
        self.head = nn.Conv3d(widths[-1], 1, 4)
        for convolution in self.down:
            nn.init.kaiming_normal_(convolution.weight, a=0.2)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, 1, D / 2^levels, ...), rounded up, float32; trained towards 1: real, 0: not."""
        x = pad_to_multiple(x, 2 ** len(self.down)).contiguous(memory_format=torch.channels_last_3d)
        x = F.leaky_relu(self.down[0](x), 0.2)
        for convolution, norm in zip(self.down[1:], self.norms, strict=True):
            x = normalise_and_rectify(convolution(x), norm, 0.2)  # type: ignore[arg-type]
        return in_float32(self.head, F.pad(x, (1, 2, 1, 2, 1, 2)))


class AlignmentDiscriminator(PatchDiscriminator):
    """Judges at each voxel of two images whether they are aligned there.

    A PatchGAN of two levels at most over the channels of both. Its verdicts, on patches of 22^3 voxels (10^3 on small
    grids), are interpolated to the voxels.

    Source: the pixel-wise discriminator of He et al., "DeepRS", ECCV 2020, which starts from PatchGAN; depth and widths
    are ours.
    """

    WIDTHS = (32, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Both images (N, inputs, D, H, W) -> logits (N, 1, D, H, W), float32; above 0: rather aligned."""
        edge = 2 ** len(self.down)
        return crop(doubled(super().forward(x), (edge, edge, edge)), x.shape[2:])


class LatentDiscriminator(nn.Module):
    """Judges whether a code was drawn from the prior: linear layers with LeakyReLU 0.2, float32.

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
