"""Scores of label maps and of displacements.

Label maps hold class indices: 0 is the background, structures are 1 to num_classes - 1.
Displacements have shape (N, 3, D, H, W), are in voxels and list their components in axis order (D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree
from torch import Tensor

Box = tuple[slice, ...]


@dataclass(frozen=True)
class StructureScore:
    """How well one structure of one scan was found."""

    class_index: int
    dice: float  # 0 to 1
    hd95_mm: float
    assd_mm: float
    missed: bool  # in one of the two label maps only


def score_structures(
    truth: np.ndarray, prediction: np.ndarray, *, num_classes: int, spacing_mm: Sequence[float]
) -> list[StructureScore]:
    """DSC, HD95 and ASSD of every structure of one scan.

    A structure that is in one of the two maps only is missed: DSC 0, distances the scan's diagonal. One that
    is in neither is not scored and not in the list, so `num_classes - 1 - len(scores)` structures were absent.

    Args:
        truth: class indices, (D, H, W), integers.
        prediction: the same.
        num_classes: with the background.
        spacing_mm: voxel size along (D, H, W).

    Returns:
        One score per structure that is in either map, by class index.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}")
    diagonal_mm = float(np.linalg.norm(np.multiply(truth.shape, spacing_mm)))
    boxes = zip(
        find_objects(truth, max_label=num_classes - 1),
        find_objects(prediction, max_label=num_classes - 1),
        strict=True,
    )
    scores = []
    for class_index, (truth_box, prediction_box) in enumerate(boxes, start=1):
        if truth_box is None and prediction_box is None:
            continue
        if truth_box is None or prediction_box is None:
            scores.append(StructureScore(class_index, 0.0, diagonal_mm, diagonal_mm, missed=True))
            continue
        box = joint_box(truth_box, prediction_box)
        t, p = truth[box] == class_index, prediction[box] == class_index
        dice = float(2 * np.count_nonzero(t & p) / (np.count_nonzero(t) + np.count_nonzero(p)))
        scores.append(StructureScore(class_index, dice, *surface_distances_mm(t, p, spacing_mm), missed=False))
    return scores


def joint_box(a: Box, b: Box) -> Box:
    """The smallest box that holds both."""
    return tuple(slice(min(i.start, j.start), max(i.stop, j.stop)) for i, j in zip(a, b, strict=True))


def surface(mask: np.ndarray) -> np.ndarray:
    """Border voxels by 6-neighbourhood; outside the array is background."""
    return mask & ~binary_erosion(mask)


def surface_distances_mm(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """HD95 and ASSD between the border voxels of two masks, neither of them empty.

    HD95 is the larger of the two directed 95th percentiles. ASSD is the mean over the distances of both directions
    pooled, so that the larger surface counts for more. It is how AVD is read here, which BRBS's tables have without a
    formula: as an average surface distance. The other reading, the mean of the two directed means, differs where the
    surfaces differ in size.
    The same nearest-neighbour search as in MONAI's `get_surface_distance`, which rounds to float32.

    Args:
        a: (D, H, W), bool.
        b: the same.
        spacing_mm: voxel size along (D, H, W).
    """
    points_a, points_b = (np.argwhere(surface(mask)) * np.asarray(spacing_mm, dtype=float) for mask in (a, b))
    a_to_b = KDTree(points_b).query(points_a)[0]
    b_to_a = KDTree(points_a).query(points_b)[0]
    hd95_mm = max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95))
    return float(hd95_mm), float(np.concatenate([a_to_b, b_to_a]).mean())


def dice_per_class(a: Tensor, b: Tensor, num_classes: int) -> Tensor:
    """DSC of every structure of two label maps on one grid.

    Args:
        a: class indices, any shape, integers.
        b: the same.
        num_classes: with the background.

    Returns:
        (num_classes - 1,), float64, structures 1 to num_classes - 1; nan where a structure is in neither map.
    """
    if a.shape != b.shape:
        raise ValueError(f"label maps have shapes {tuple(a.shape)} and {tuple(b.shape)}")
    in_a, in_b, in_both = (
        torch.bincount(label.flatten().long(), minlength=num_classes)[1:num_classes].double()
        for label in (a, b, torch.where(a == b, a, 0))
    )
    return 2 * in_both / (in_a + in_b)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Determinant of the Jacobian of x + u(x) at every voxel.

        |J| = det(I + grad u), central differences, one-sided ones at the grid's border

    1: volume is kept. Above 1: the mapping expands. 0 or below: it folds.

    Args:
        displacement: (N, 3, D, H, W), voxels; at least 2 voxels per axis.

    Returns:
        (N, D, H, W), float32 (float64 for float64 input).
    """
    if displacement.dtype != torch.float64:
        displacement = displacement.float()
    along_d, along_h, along_w = torch.gradient(displacement, dim=(2, 3, 4))
    # Column j of J holds the derivatives along axis j.
    d, h, w = (
        [derivative[:, row] + (row == axis) for row in range(3)]
        for axis, derivative in enumerate((along_d, along_h, along_w))
    )
    return (
        d[0] * (h[1] * w[2] - h[2] * w[1])
        - d[1] * (h[0] * w[2] - h[2] * w[0])
        + d[2] * (h[0] * w[1] - h[1] * w[0])
    )  # fmt: skip


def folding_fraction(determinant: Tensor) -> Tensor:
    """Share of voxels with |J| <= 0 (or not a number), in [0, 1]; (N, D, H, W) to (N,)."""
    return (~(determinant > 0)).flatten(1).double().mean(1)


def jacobian_std(determinant: Tensor) -> Tensor:
    """Standard deviation of |J| over the voxels; 0: uniform scaling. (N, D, H, W) to (N,)."""
    return determinant.flatten(1).double().std(1, correction=0)


def sd_log_jacobian(determinant: Tensor) -> Tensor:
    """SDlogJ: standard deviation of log |J|, with |J| clipped at 1e-9. (N, D, H, W) to (N,)."""
    return determinant.flatten(1).double().clamp_min(1e-9).log().std(1, correction=0)
