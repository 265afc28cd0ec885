"""Intervals of volumes: how far the volume of a structure may be from the truth, by how far answers differ.

Network, registration and the network's answers to the scan turned and shifted each give a volume. Their spread is
scaled by one factor, so that 90 of 100 intervals of couples, whose volumes are known, hold the truth: split conformal
prediction with residuals over spreads (Lei et al., "Distribution-free predictive inference for regression", JASA 2018,
section 5.2). Annotators of other scans may draw structures larger or smaller than the atlas's, which couples do not
show: that is added as an error of another source.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stages.answering.answers import Answer

SHARE = 0.9  # of intervals that hold the truth
LEAST_SPREAD = 0.02  # of a structure's usual volume: answers that agree by chance are not certain


def voxels_of(classes: Tensor, num_classes: int) -> np.ndarray:
    """Voxels of each structure, (structures,), of a label map of class indices."""
    return torch.bincount(classes.flatten().cpu().long(), minlength=num_classes)[1:].double().numpy()


def spread_of_volumes(
    answer: Answer, perturbed: Sequence[Tensor], usual: Sequence[float], num_classes: int
) -> np.ndarray:
    """Root mean square difference, in voxels, of each structure's volume to those of the other answers.

    Args:
        perturbed: class indices (D, H, W) of answers to the scan after turns and shifts.
        usual: median voxels of each structure.

    Returns:
        (structures,), at least `LEAST_SPREAD` of the usual volume, and half a voxel.
    """
    own = voxels_of(answer.probabilities.argmax(0), num_classes)
    maps = [*perturbed, *(each.argmax(0) for each in (answer.network, answer.votes) if each is not None)]
    others = np.array([voxels_of(classes, num_classes) for classes in maps]).reshape(-1, num_classes - 1)
    squares = np.square(others - own).mean(0) if len(others) else np.zeros(num_classes - 1)
    return np.sqrt(squares + np.square(LEAST_SPREAD * np.array(usual)) + 0.25)


def fitted_factor(errors: np.ndarray, spreads: np.ndarray) -> float:
    """The factor of spreads within which `SHARE` of the errors lie.

    Args:
        errors, spreads: voxels, (couples, structures).
    """
    ratios = np.sort((np.abs(errors) / spreads).ravel())
    place = int(np.ceil(SHARE * (len(ratios) + 1))) - 1  # one more than there are: the scan to come
    return float(ratios[min(place, len(ratios) - 1)])


def coverage(errors: np.ndarray, spreads: np.ndarray) -> float:
    """Share of true volumes inside their intervals, each couple left out of the fit in turn; arrays as above."""
    inside = [
        np.abs(errors[k]) <= fitted_factor(np.delete(errors, k, 0), np.delete(spreads, k, 0)) * spreads[k]
        for k in range(len(errors))
    ]
    return float(np.mean(inside))


def half_width(spreads: np.ndarray, factor: float, annotation: float, usual: Sequence[float]) -> np.ndarray:
    """Half of the intervals, in voxels.

    Args:
        annotation: share of a structure's usual volume by which annotations may differ.
    """
    return np.hypot(factor * spreads, annotation * np.array(usual))


def interval_ml(
    volumes_ml: Sequence[float], voxels: np.ndarray, half_width_voxels: Sequence[float], grid_voxel_ml: float
) -> list[tuple[float, float]]:
    """Lowest and highest volume of each structure, in ml of the scan.

    Args:
        volumes_ml: at the scan's own voxels.
        voxels: of the same answer on the grid.
        half_width_voxels: on the grid.
        grid_voxel_ml: of a voxel of the grid, for answers without any structure; alignment scales scans.
    """
    total = float(voxels.sum())
    voxel_ml = sum(volumes_ml) / total if total and sum(volumes_ml) else grid_voxel_ml
    return [
        (max(0.0, ml - half * voxel_ml), ml + half * voxel_ml)
        for ml, half in zip(volumes_ml, half_width_voxels, strict=True)
    ]
