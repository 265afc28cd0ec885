"""Sizes of grids inside networks: how often to halve them, padding and cropping, blocks of voxels as channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from stages.errors import LrlsError
from stages.parts.lengths import THICK_FROM, are_thick

LEAST = 3  # voxels an axis at the coarsest level
CUBE = (1.0, 1.0, 1.0)
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Level:
    """A level of a U-Net.

    Args:
        pool: factors (D, H, W) by which the grid above it has more voxels; of the finest level, those of the stem.
        kernel: edges (D, H, W) of its convolutions.
    """

    pool: Triple
    kernel: Triple


def derived_levels(
    shape: Sequence[int], spacing_mm: Sequence[float] = CUBE, *, most: int, stem: int = 1
) -> list[Level]:
    """The levels of a U-Net, from the finest to the coarsest; on isotropic grids all axes are treated alike.

    An axis is halved where its voxels are not `THICK_FROM` times as long as the finest of the axes that still can be
    halved; until then its kernels are 1 along it. At least `LEAST` voxels an axis are left on the padded grid: below
    that InstanceNorm fails on 1^3, and bfloat16 convolutions of depth 2 give wrong weight gradients on the CPU. Axes of
    thick slices that are as short stay as they are, while the others are halved on.

    Args:
        shape, spacing_mm: grid (D, H, W).
        most: levels below the finest.
        stem: factor of the stem, along axes that are not thick.

    Raises:
        LrlsError: the grid cannot be halved once.

    Source: the rule of Isensee et al., "nnU-Net", Nature Methods 2021, supplementary note 2.
    """
    is_thick, sizes, spacing = are_thick(spacing_mm), list(shape), list(spacing_mm)
    pool = _triple(1 if thick else stem for thick in is_thick)
    kernel, levels = [1, 1, 1], []
    for _ in range(most + 1):
        sizes = [-(-n // factor) for n, factor in zip(sizes, pool, strict=True)]
        spacing = [mm * factor for mm, factor in zip(spacing, pool, strict=True)]
        kernel = [3 if mm < THICK_FROM * min(spacing) else k for mm, k in zip(spacing, kernel, strict=True)]
        levels.append(Level(pool, _triple(kernel)))
        is_long = [-(-n // 2) >= LEAST for n in sizes]
        if not all(long or thick for long, thick in zip(is_long, is_thick, strict=True)):
            break
        finest = min(mm for mm, long in zip(spacing, is_long, strict=True) if long)
        pool = _triple(2 if long and mm < THICK_FROM * finest else 1 for mm, long in zip(spacing, is_long, strict=True))
    if len(levels) < 2 or min(shape) < LEAST:
        raise LrlsError(
            f"a grid of {' x '.join(map(str, shape))} voxels is too small for a U-Net; set preprocess.shape to more "
            f"than {4 * stem} voxels an axis, or a finer preprocess.spacing_mm."
        )
    return levels


def _triple(numbers: Iterable[int]) -> Triple:
    d, h, w = numbers
    return d, h, w


def derived_depth(shape: Sequence[int], *, most: int, stem: int = 1) -> int:
    """Halvings of all axes, as of `derived_levels` on an isotropic grid."""
    return len(derived_levels(shape, most=most, stem=stem)) - 1


def whole(levels: Sequence[Level]) -> Triple:
    """Factors (D, H, W) between a network's grid and its coarsest level."""
    return _triple(math.prod(level.pool[axis] for level in levels) for axis in range(3))


def pad_to_multiple(x: Tensor, multiple: int | Triple) -> Tensor:
    """Zeros behind the last voxel of each axis up to a multiple; `crop` undoes it."""
    multiples = (multiple,) * 3 if isinstance(multiple, int) else multiple
    missing = [-n % of for n, of in zip(x.shape[2:], multiples, strict=True)]
    return F.pad(x, [0, missing[2], 0, missing[1], 0, missing[0]]) if any(missing) else x


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x[:, :, : shape[0], : shape[1], : shape[2]]


def space_to_depth(x: Tensor, block: Triple = (2, 2, 2)) -> Tensor:
    """(N, C, aD, bH, cW) -> (N, abc C, D, H, W): each block of a x b x c voxels becomes channels."""
    (n, channels, *sizes), (a, b, c) = x.shape, block
    d, h, w = (size // edge for size, edge in zip(sizes, block, strict=True))
    x = x.reshape(n, channels, d, a, h, b, w, c).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(n, a * b * c * channels, d, h, w)


def depth_to_space(x: Tensor, block: Triple = (2, 2, 2)) -> Tensor:
    """Inverse of `space_to_depth`: (N, abc C, D, H, W) -> (N, C, aD, bH, cW)."""
    (n, channels, d, h, w), (a, b, c) = x.shape, block
    x = x.reshape(n, channels // (a * b * c), a, b, c, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(n, channels // (a * b * c), a * d, b * h, c * w)


def doubled(x: Tensor, block: Triple = (2, 2, 2)) -> Tensor:
    """As many times the voxels an axis as blocks have, trilinear; the coarse voxels lie at the centres of blocks."""
    return F.interpolate(x, scale_factor=[float(edge) for edge in block], mode="trilinear", align_corners=False)
