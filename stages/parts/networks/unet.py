"""The U-Nets for registration and segmentation: BRBS's, and a lighter one for CPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.blocks import Block, in_float32, initialise
from stages.parts.networks.sizes import (
    CUBE,
    Triple,
    crop,
    depth_to_space,
    derived_levels,
    doubled,
    pad_to_multiple,
    space_to_depth,
    whole,
)


class UNet(nn.Module):
    """The U-Net that BRBS uses for both networks: 16-32-64-128-256 channels, skips back to 16; about 5.9 M parameters.

    Each level: twice [convolution 3^3, GroupNorm with 4 channels a group, LeakyReLU 0.2]; max-pooling; trilinear
    upsampling, then concatenation. Inputs of any size are padded to a multiple of 2^depth and cropped back. Along thick
    slices there is no pooling, and no kernel of 3, before the other axes are as coarse.

    Args:
        inputs: image channels.
        outputs: channels of the result: classes, or 3 for a displacement.
        shape, spacing_mm: grid (D, H, W) that the levels are derived from.
        per_group: channels that are normalised together; 1 is InstanceNorm, which learns faster.

    Source: He et al., BRBS (TNNLS 2022), published networks.
    """

    WIDTHS = (16, 32, 64, 128, 256)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        shape: Sequence[int],
        per_group: int = 4,
        spacing_mm: Sequence[float] = CUBE,
    ) -> None:
        super().__init__()
        levels = derived_levels(shape, spacing_mm, most=len(self.WIDTHS) - 1)
        widths, kernels = self.WIDTHS[: len(levels)], [level.kernel for level in levels]
        self.pools, self.multiple = [level.pool for level in levels[1:]], whole(levels)
        pairs = zip((inputs, *widths[:-1]), widths, kernels, strict=True)
        self.down = nn.ModuleList(Block(a, b, b // per_group, kernel) for a, b, kernel in pairs)
        pairs = zip(widths, widths[1:], kernels, strict=False)
        self.up = nn.ModuleList(Block(a + b, a, a // per_group, kernel) for a, b, kernel in pairs)
        self.head = nn.Conv3d(widths[0], outputs, 1)
        initialise(self, self.head)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        """The decoder's features at each level, from the coarsest to the one that the head reads, on padded grids."""
        x = pad_to_multiple(x, self.multiple).contiguous(memory_format=torch.channels_last_3d)
        return down_and_up(x, self.down, self.up, self.pools)

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        return crop(in_float32(self.head, feature), shape)


def down_and_up(x: Tensor, down: nn.ModuleList, up: nn.ModuleList, pools: Sequence[Triple]) -> list[Tensor]:
    """A U-Net's levels with max-pooling and trilinear upsampling: the deepest, then each level of the decoder.

    Args:
        pools: factors (D, H, W) from each level to the next coarser one.
    """
    x = down[0](x)
    skips = [x]
    for block, pool in zip(down[1:], pools, strict=True):
        x = block(F.max_pool3d(x, pool))
        skips.append(x)
    features = [x]
    for skip, block in zip(reversed(skips[:-1]), reversed(up), strict=True):
        x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=True)
        x = block(torch.cat([skip, x], 1))
        features.append(x)
    return features


class FeatureNetwork(Protocol):
    """A U-Net whose decoder can be looked into."""

    def features(self, x: Tensor) -> list[Tensor]: ...
    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor: ...


class LightUNet(nn.Module):
    """A lighter U-Net: the finest level works on 2^3 blocks of voxels, in and out; of thick slices, on 1 x 2 x 2.

    A stride-2 stem (space to depth, then convolution), levels 32-64-128-256 with InstanceNorm, and a head that goes
    back to full resolution. It has no convolution at full resolution, where a U-Net spends most of its time. Axes of
    thick slices are as in `UNet`.

    Args:
        inputs: image channels.
        outputs: channels of the result.
        shape, spacing_mm: grid (D, H, W) that the levels are derived from.
        widths: channels of the levels, from half resolution down.
        smooth: the head interpolates, for displacements; otherwise it writes every voxel of a block. Its output
            is in units of `UNIT` voxels: Adam's steps have one size for all weights, and in voxels training would take
            ten times as long.
    """

    UNIT = 10.0

    def __init__(
        self,
        inputs: int,
        outputs: int,
        shape: Sequence[int],
        widths: Sequence[int] = (32, 64, 128, 256),
        smooth: bool = False,
        spacing_mm: Sequence[float] = CUBE,
    ) -> None:
        super().__init__()
        self.smooth = smooth
        levels = derived_levels(shape, spacing_mm, most=len(widths) - 1, stem=2)
        widths, kernels = tuple(widths)[: len(levels)], [level.kernel for level in levels]
        self.block, self.pools, self.multiple = levels[0].pool, [level.pool for level in levels[1:]], whole(levels)
        in_block = math.prod(self.block)
        pairs = zip((in_block * inputs, *widths[:-1]), widths, kernels, strict=True)
        self.down = nn.ModuleList(Block(a, b, b, kernel) for a, b, kernel in pairs)
        pairs = zip(widths, widths[1:], kernels, strict=False)
        self.up = nn.ModuleList(Block(a + b, a, a, kernel) for a, b, kernel in pairs)
        self.head = nn.Conv3d(widths[0], outputs if smooth else in_block * outputs, 1)
        initialise(self, self.head, 0.2)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        """The decoder's features at each level, from the coarsest to the one that the head reads, on padded grids."""
        x = space_to_depth(pad_to_multiple(x, self.multiple), self.block)
        return down_and_up(x.contiguous(memory_format=torch.channels_last_3d), self.down, self.up, self.pools)

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        x = in_float32(self.head, feature)
        return crop(self.UNIT * doubled(x, self.block) if self.smooth else depth_to_space(x, self.block), shape)
