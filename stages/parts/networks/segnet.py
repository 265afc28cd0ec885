"""SegNet: a decoder that puts pooled values back where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from stages.parts.networks.blocks import in_float32, normalise_and_rectify
from stages.parts.networks.sizes import (
    CUBE,
    Triple,
    crop,
    depth_to_space,
    derived_levels,
    pad_to_multiple,
    space_to_depth,
    whole,
)


class SegNet(nn.Module):
    """3D SegNet: 16-32-64-128-128 channels, 2-2-3-3-3 convolutions 3^3, the mirror image on the way up, no skips.

    Max-pooling remembers where each largest voxel of a block lay; on the way up the values go back there and all other
    voxels are 0. A quarter of the published channels, as of U-Nets in 3D, InstanceNorm in place of BatchNorm, for
    batches of one or two, and LeakyReLU 0.2. Levels follow the voxel size as in `UNet`.

    Args:
        inputs: image channels.
        outputs: classes.
        shape, spacing_mm: grid (D, H, W) that the levels are derived from; small grids lack the coarsest levels.

    Source: Badrinarayanan, Kendall, Cipolla, "SegNet", TPAMI 2017, Fig. 2: VGG16's encoder and its mirror image.
    """

    WIDTHS = (16, 32, 64, 128, 128)
    CONVOLUTIONS = (2, 2, 3, 3, 3)

    def __init__(self, inputs: int, outputs: int, shape: Sequence[int], spacing_mm: Sequence[float] = CUBE) -> None:
        super().__init__()
        levels = derived_levels(shape, spacing_mm, most=len(self.WIDTHS) - 1)
        widths, kernels = self.WIDTHS[: len(levels)], [level.kernel for level in levels]
        self.pools, self.multiple = [level.pool for level in levels[1:]], whole(levels)
        stages = list(zip((inputs, *widths[:-1]), widths, self.CONVOLUTIONS, kernels, strict=False))
        self.down = nn.ModuleList(Convolutions([a] + [b] * count, kernel) for a, b, count, kernel in stages)
        up = zip((widths[0], *widths[:-1]), widths, self.CONVOLUTIONS, kernels, strict=False)
        self.up = nn.ModuleList(Convolutions([b] * count + [a], kernel) for a, b, count, kernel in up)
        self.head = nn.Conv3d(widths[0], outputs, 1)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        """The deepest features, then the decoder's at each level, up to those that the head reads, on padded grids."""
        x = pad_to_multiple(x, self.multiple).contiguous(memory_format=torch.channels_last_3d)
        x, places = self.down[0](x), []
        for stage, pool in zip(self.down[1:], self.pools, strict=True):
            x, place = max_pool(x, pool)
            places.append(place)
            x = stage(x)
        features = [x]
        for stage, pool in zip(reversed(self.up[1:]), reversed(self.pools), strict=True):
            features.append(max_unpool(stage(features[-1]), places.pop(), pool))
        return [*features[:-1], self.up[0](features[-1])]

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        return crop(in_float32(self.head, feature), shape)


class Convolutions(nn.Module):
    """Convolutions in a row, each with InstanceNorm and LeakyReLU 0.2.

    Args:
        widths: channels, one more than there are convolutions.
        kernel: edges (D, H, W), 1 or 3.
    """

    def __init__(self, widths: Sequence[int], kernel: Triple) -> None:
        super().__init__()
        d, h, w = (edge // 2 for edge in kernel)
        self.convolutions = nn.ModuleList(nn.Conv3d(a, b, kernel, padding=(d, h, w)) for a, b in pairwise(widths))
        self.normalisations = nn.ModuleList(nn.GroupNorm(b, b) for b in widths[1:])
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight, a=0.2)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for convolution, normalisation in zip(self.convolutions, self.normalisations, strict=True):
            x = normalise_and_rectify(convolution(x), normalisation, 0.2)  # type: ignore[arg-type]
        return x


def max_pool(x: Tensor, pool: Triple) -> tuple[Tensor, Tensor]:
    """The largest voxel of each block, and where in the block it lies; the first one of several.

    Own code in place of torch's, whose unpooling has no counterpart in ONNX.

    Args:
        x: (N, C, aD, bH, cW) for blocks of a x b x c.

    Returns:
        values and places in 0 .. abc - 1, (N, C, D, H, W) each.
    """
    blocks = space_to_depth(x, pool).unflatten(1, (x.shape[1], -1))
    values, places = blocks.max(2)
    return values.contiguous(memory_format=torch.channels_last_3d), places


def max_unpool(values: Tensor, places: Tensor, pool: Triple) -> Tensor:
    """Values at their places in blocks, 0 elsewhere: (N, C, D, H, W) -> (N, C, aD, bH, cW)."""
    within = torch.arange(pool[0] * pool[1] * pool[2], device=values.device).view(1, 1, -1, 1, 1, 1)
    blocks = torch.where(places[:, :, None] == within, values[:, :, None], torch.zeros_like(values[:, :, None]))
    return depth_to_space(blocks.flatten(1, 2), pool).contiguous(memory_format=torch.channels_last_3d)
