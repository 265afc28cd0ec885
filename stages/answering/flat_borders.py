"""Restores borders that a labelling protocol draws as one plane of voxels.

Alignment and registration turn such a plane along with the anatomy, so a network that learns from turned atlases
answers with a blurred mean of planes. `flatten` makes the border a plane across the scan's own axis again; only its
position along that axis is estimated. `stages.data.flat_borders` finds such borders in the labelled scans.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from stages.artifacts.cohort import FlatBorder, Grid
from stages.data.flat_borders import nearest_axis
from stages.data.own_space import in_own_space


def flatten(
    classes: np.ndarray, probabilities: Tensor, border: FlatBorder, record: dict[str, Any], grid: Grid
) -> np.ndarray:
    """Split the union of two structures anew, by the plane of voxels that the probabilities favour.

    Args:
        classes: class indices (D', H', W') in the scan's own voxels.
        probabilities: (C, D, H, W) on the grid. The plane is chosen that agrees best with which of the two structures
            is more probable at each voxel of their union. They need not be the probabilities behind `classes`.
        record: of the scan; see `stages.data.prepare.prepare`.

    Returns:
        Class indices of the same shape; other classes are unchanged.
    """
    first, second = border.classes
    union = (classes == first) | (classes == second)
    difference = (probabilities[first] - probabilities[second])[None]
    evidence = np.concatenate([slab[0].cpu().numpy() for slab in in_own_space(difference, record, grid)])
    axis = nearest_axis(record["direction"], border.normal)
    others = tuple(other for other in range(3) if other != axis)
    before = np.concatenate([[0.0], np.cumsum((evidence * union).sum(others, dtype=np.float64))])
    gain = 2 * before - before[-1]  # with `first` before the plane and `second` behind it; the negative: the reverse
    if gain.max() < -gain.min():
        first, second, gain = second, first, -gain
    in_front = np.arange(classes.shape[axis]) < gain.argmax()
    shape = [1, 1, 1]
    shape[axis] = -1
    return np.where(union, np.where(in_front.reshape(shape), first, second), classes).astype(classes.dtype)
