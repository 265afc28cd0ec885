"""Image pyramids that follow the voxel size: thick slices are not halved before the others have become as long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts.warps import resize

LEAST = 8  # voxels that halving leaves along an axis
SIGMA = 0.8  # voxels; smoothing before an axis is halved

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Level:
    """A grid of a pyramid: voxels and their size, (D, H, W)."""

    shape: Triple
    spacing: Spacing

    def coarser(self) -> Level:
        """Half as many voxels along every axis whose voxels are less than twice as long as the finest."""
        finest = min(self.spacing)
        halves = [mm < 2 * finest and -(-n // 2) >= LEAST for n, mm in zip(self.shape, self.spacing, strict=True)]
        shape = tuple(-(-n // 2) if half else n for n, half in zip(self.shape, halves, strict=True))
        old_and_new = zip(self.spacing, self.shape, shape, strict=True)
        spacing = tuple(mm * (old - 1) / max(new - 1, 1) for mm, old, new in old_and_new)
        return Level(shape, spacing)  # type: ignore[arg-type]

    def window(self, edge: int) -> Triple:
        """Edges of a window that has `edge` voxels along the finest axes; odd, at least 3, no longer than the grid."""
        widths = [2 * round((edge * min(self.spacing) / mm - 1) / 2) + 1 for mm in self.spacing]
        fitting = [min(max(3, width), n - 1 + n % 2) for width, n in zip(widths, self.shape, strict=True)]
        return fitting[0], fitting[1], fitting[2]

    def strides(self, window: Triple) -> Triple:
        """Every second place along axes where a window is wide enough for its neighbours to share most of it."""
        d, h, w = (2 if edge >= 5 else 1 for edge in window)
        return d, h, w


def levels_of(shape: Sequence[int], spacing: Sequence[float], count: int) -> list[Level]:
    """`count` grids from fine to coarse; the last ones may be equal, where nothing can be halved."""
    levels = [Level(tuple(shape), tuple(spacing))]  # type: ignore[arg-type]
    for _ in range(count - 1):
        levels.append(levels[-1].coarser())
    return levels


def shrunk(image: Tensor, shape: Sequence[int]) -> Tensor:
    """An image (N, C, D, H, W) on a coarser level's grid, smoothed along the axes that get coarser."""
    if tuple(image.shape[2:]) == tuple(shape):
        return image
    return resize(
        blurred(image, [SIGMA if n > m else 0.0 for n, m in zip(image.shape[2:], shape, strict=True)]), tuple(shape)
    )


def blurred(image: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Separable Gaussian blur, border repeated, sigmas (D, H, W) in voxels; 0: none. (N, C, D, H, W)."""
    if len(image) > 1:  # one by one: a convolution rounds otherwise in a batch than alone
        return torch.cat([blurred(one, sigmas) for one in image.split(1)])
    shape = image.shape
    image = image.flatten(0, 1)[:, None]
    for axis, sigma in enumerate(sigmas):
        if not sigma:
            continue
        radius = math.ceil(2.5 * sigma)
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=image.device) / sigma) ** 2)
        kernel, pad = [1, 1, 1], [0] * 6
        kernel[axis] = 2 * radius + 1
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        image = F.conv3d(F.pad(image, pad, mode="replicate"), (weights / weights.sum()).view(1, 1, *kernel))
    return image.view(shape)
