"""Displacements without folds: where a field folds, how to keep it from folding, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts.pyramid import blurred

LEAST = 0.02  # of the determinant; float16 changes it by about 0.01
SIGMA, GROWTH, MOST = 0.7, 1.1, 60  # of the blur in velocity voxels, its growth from try to try, and the tries


def least_determinant(displacement: Tensor) -> Tensor:
    """The smallest determinant of x + u(x) at each voxel, over its eight corners: differences to either neighbour.

    Linear interpolation between voxels has these determinants at its corners. Where all are positive, the one by
    central differences is, too: it is their mean, since a determinant is linear in each column.

    Args:
        displacement: (N, 3, D, H, W), voxels; at least 2 voxels an axis.

    Returns:
        (N, D, H, W).
    """
    sides = []
    for axis in range(3):
        step = displacement.diff(dim=2 + axis)
        first, last = step.narrow(2 + axis, 0, 1), step.narrow(2 + axis, step.shape[2 + axis] - 1, 1)
        sides.append((torch.cat([step, last], 2 + axis), torch.cat([first, step], 2 + axis)))
    least = None
    for columns in product(*sides):
        here = _determinant(*columns)
        least = here if least is None else torch.minimum(least, here)
    assert least is not None
    return least


def _determinant(along_d: Tensor, along_h: Tensor, along_w: Tensor) -> Tensor:
    """det(I + [columns]); (N, 3, D, H, W) each."""
    columns = enumerate((along_d, along_h, along_w))
    d, h, w = ([step[:, row] + (row == axis) for row in range(3)] for axis, step in columns)
    return d[0] * (h[1] * w[2] - h[2] * w[1]) - d[1] * (h[0] * w[2] - h[2] * w[0]) + d[2] * (h[0] * w[1] - h[1] * w[0])


def folding_losses(displacement: Tensor, *, least: float = 0.2) -> Tensor:
    """Mean of what the determinant lacks to `least`, differences to the next voxel; 0: nothing is near a fold.

    Args:
        displacement: (N, 3, D, H, W), voxels.

    Returns:
        Of each field, (N,).

    Source: the penalty of Mok and Chung, "Fast symmetric diffeomorphic image registration", CVPR 2020, Eq. 8.
    """
    d, h, w = (displacement.diff(dim=axis) for axis in (2, 3, 4))
    determinant = _determinant(d[..., :-1, :-1], h[:, :, :-1, :, :-1], w[:, :, :-1, :-1])
    return F.relu(least - determinant).mean((1, 2, 3))


def without_folds(velocity: Tensor, displacement_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The displacement of a velocity that is smoothed where it folds, more and more, until it does not.

    An integrated velocity folds on the grid where it changes faster than voxels can show.

    Args:
        velocity: (1, 3, D, H, W).
        displacement_of: velocity -> displacement (1, 3, D', H', W'), voxels.

    Returns:
        The displacement; every `least_determinant` is above 0, unless `MOST` tries are not enough.
    """
    sigma = SIGMA
    for _ in range(MOST):
        displacement = displacement_of(velocity)
        folds = least_determinant(displacement) <= LEAST
        if not folds.any():
            break
        around = F.adaptive_max_pool3d(folds[None].float(), tuple(velocity.shape[2:]))
        around = blurred(F.max_pool3d(around, 3, stride=1, padding=1), [SIGMA] * 3)
        velocity = velocity + (blurred(velocity, [sigma] * 3) - velocity) * around
        sigma *= GROWTH
    return displacement
