"""The U-Nets for registration and segmentation: BRBS's, and a lighter one for CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.blocks import Block, in_float32
from stages.parts.networks.sizes import crop, depth_to_space, derived_depth, doubled, pad_to_multiple, space_to_depth


class UNet(nn.Module):
    """The U-Net that BRBS uses for both networks: 16-32-64-128-256 channels, skips back to 16; about 5.9 M parameters.

    Each level: twice [convolution 3^3, GroupNorm with 4 channels a group, LeakyReLU 0.2]; max-pooling; trilinear
    upsampling, then concatenation. Inputs of any size are padded to a multiple of 2^depth and cropped back.

    Args:
        inputs: image channels.
        outputs: channels of the result: classes, or 3 for a displacement.
        shape: grid (D, H, W) that the depth is derived from.
        per_group: channels that are normalised together; 1 is InstanceNorm, which learns faster.

    Source: He et al., BRBS (TNNLS 2022), published networks.
    """

    WIDTHS = (16, 32, 64, 128, 256)

    def __init__(self, inputs: int, outputs: int, shape: Sequence[int], per_group: int = 4) -> None:
        super().__init__()
        widths = self.WIDTHS[: derived_depth(shape, most=len(self.WIDTHS) - 1) + 1]
        pairs = zip((inputs, *widths[:-1]), widths, strict=True)
        self.down = nn.ModuleList(Block(a, b, b // per_group) for a, b in pairs)
        self.up = nn.ModuleList(Block(a + b, a, a // per_group) for a, b in pairwise(widths))
        self.head = nn.Conv3d(widths[0], outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d) and module is not self.head:
                nn.init.kaiming_normal_(module.weight)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        """The decoder's features at each level, from the coarsest to the one that the head reads, on padded grids."""
        x = pad_to_multiple(x, 2 ** len(self.up)).contiguous(memory_format=torch.channels_last_3d)
        return down_and_up(x, self.down, self.up)

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        return crop(in_float32(self.head, feature), shape)


def down_and_up(x: Tensor, down: nn.ModuleList, up: nn.ModuleList) -> list[Tensor]:
    """A U-Net's levels with max-pooling and trilinear upsampling: the deepest, then each level of the decoder."""
    skips = []
    for level, block in enumerate(down):
        x = block(F.max_pool3d(x, 2) if level else x)
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
    """A lighter U-Net: the finest level works on 2^3 blocks of voxels, in and out.

    A stride-2 stem (space to depth, then convolution), levels 32-64-128-256 with InstanceNorm, and a head that goes
    back to full resolution. It has no convolution at full resolution, where a U-Net spends most of its time.

    Args:
        inputs: image channels.
        outputs: channels of the result.
        shape: grid (D, H, W) that the depth is derived from.
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
    ) -> None:
        super().__init__()
        self.smooth = smooth
        widths = tuple(widths)[: derived_depth(shape, most=len(widths) - 1, stem=2) + 1]
        self.down = nn.ModuleList(Block(a, b, b) for a, b in zip((8 * inputs, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(Block(a + b, a, a) for a, b in pairwise(widths))
        self.head = nn.Conv3d(widths[0], outputs if smooth else 8 * outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d) and module is not self.head:
                nn.init.kaiming_normal_(module.weight, a=0.2)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        """The decoder's features at each level, from the coarsest to the one that the head reads, on padded grids."""
        x = space_to_depth(pad_to_multiple(x, 2 ** (len(self.up) + 1)))
        return down_and_up(x.contiguous(memory_format=torch.channels_last_3d), self.down, self.up)

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        x = in_float32(self.head, feature)
        return crop(self.UNIT * doubled(x) if self.smooth else depth_to_space(x), shape)
