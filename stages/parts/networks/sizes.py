"""Sizes of grids inside networks: how often to halve them, padding and cropping, blocks of voxels as channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def derived_depth(shape: Sequence[int], *, most: int, stem: int = 1) -> int:
    """Halvings that leave at least 3 voxels an axis on the padded grid, at most `most`.

    Below that InstanceNorm fails on 1^3, and bfloat16 convolutions of depth 2 give wrong weight gradients on the CPU.
    """
    for depth in range(most, 0, -1):
        factor = stem * 2**depth
        if all(-(-n // factor) >= 3 for n in shape):
            return depth
    raise ValueError(f"grid {tuple(shape)} is too small for a U-Net; every axis needs more than {4 * stem} voxels")


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros behind the last voxel of each axis up to a multiple; `crop` undoes it."""
    missing = [-n % multiple for n in x.shape[2:]]
    return F.pad(x, [0, missing[2], 0, missing[1], 0, missing[0]]) if any(missing) else x


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x[:, :, : shape[0], : shape[1], : shape[2]]


def space_to_depth(x: Tensor) -> Tensor:
    """(N, C, 2D, 2H, 2W) -> (N, 8C, D, H, W): each 2^3 block of voxels becomes channels."""
    n, c, d, h, w = x.shape
    x = x.reshape(n, c, d // 2, 2, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(n, 8 * c, d // 2, h // 2, w // 2)


def depth_to_space(x: Tensor) -> Tensor:
    """Inverse of `space_to_depth`: (N, 8C, D, H, W) -> (N, C, 2D, 2H, 2W)."""
    n, c, d, h, w = x.shape
    x = x.reshape(n, c // 8, 2, 2, 2, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(n, c // 8, 2 * d, 2 * h, 2 * w)


def doubled(x: Tensor) -> Tensor:
    """Twice as many voxels an axis, trilinear; the coarse voxels lie at the centres of their blocks of 2^3."""
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
