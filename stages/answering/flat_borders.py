"""Borders that a labelling protocol draws as one plane of voxels: found in the atlases, put back into answers.

Many protocols split an organ where no edge is, at a slice of the scan: head from body of the hippocampus, lobes, levels
of the spine. Alignment and registration turn that slice along with the anatomy, and a network that learns from turned
atlases answers with a blurred mean of planes. What remains to be told is where along the scan's own axis it lies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stages.artifacts.cohort import Grid
from stages.data.own_space import in_own_space

LEAST_SHARE = 0.8  # of all faces between two structures that lie in one plane, mean over the atlases
LEAST_FACES = 20  # between them in every atlas; few faces lie in a plane by chance

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class FlatBorder:
    """Two structures that meet in a plane of voxels.

    Args:
        classes: their class indices.
        normal: of the plane, along a voxel axis of the first atlas; unit vector in its mm space (x, y, z).
    """

    classes: tuple[int, int]
    normal: Vector


def find_flat_borders(atlases: Iterable[tuple[np.ndarray, tuple[float, ...]]]) -> list[FlatBorder]:
    """Pairs of structures whose border is one plane of voxels in (nearly) every atlas.

    Args:
        atlases: class indices (D, H, W) in the atlas's own voxels, and the direction of its axes as SimpleITK has it.
    """
    found: dict[tuple[int, int], list[float]] = {}
    normals: dict[tuple[int, int], Vector] = {}
    count = 0
    for classes, direction in atlases:
        count += 1
        for pair, faces in _faces(classes).items():
            plane = max(faces, key=lambda place: faces[place])
            normal = normals.setdefault(pair, _axis(direction, plane[0]))
            total = sum(faces.values())
            if total >= LEAST_FACES and plane[0] == _nearest_axis(direction, normal):
                found.setdefault(pair, []).append(faces[plane] / total)
    return [
        FlatBorder(pair, normals[pair])
        for pair, shares in sorted(found.items())
        if len(shares) == count and np.mean(shares) >= LEAST_SHARE
    ]


def flatten(
    classes: np.ndarray, probabilities: Tensor, border: FlatBorder, record: dict[str, Any], grid: Grid
) -> np.ndarray:
    """Split the union of two structures anew, by the plane of voxels that the probabilities favour.

    Args:
        classes: class indices (D', H', W') in the scan's own voxels.
        probabilities: (C, D, H, W) on the grid; the plane that explains best which of the two is the likelier one in
            the voxels of their union is taken. They may be others than those that `classes` comes from.
        record: what `preprocess` did to the scan.

    Returns:
        Class indices of the same shape; other classes are as they were.
    """
    first, second = border.classes
    union = (classes == first) | (classes == second)
    difference = (probabilities[first] - probabilities[second])[None]
    evidence = np.concatenate([slab[0].cpu().numpy() for slab in in_own_space(difference, record, grid)])
    axis = _nearest_axis(record["direction"], border.normal)
    others = tuple(each for each in range(3) if each != axis)
    before = np.concatenate([[0.0], np.cumsum((evidence * union).sum(others, dtype=np.float64))])
    gain = 2 * before - before[-1]  # of `first` before the plane and `second` behind it; its negative: the reverse
    if gain.max() < -gain.min():
        first, second, gain = second, first, -gain
    in_front = np.arange(classes.shape[axis]) < gain.argmax()
    shape = [1, 1, 1]
    shape[axis] = -1
    return np.where(union, np.where(in_front.reshape(shape), first, second), classes).astype(classes.dtype)


def _faces(classes: np.ndarray) -> dict[tuple[int, int], dict[tuple[int, int], int]]:
    """{(class, larger class): {(axis, slice before the face): faces of voxels between the two}}; no background."""
    found: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
    for axis in range(3):
        before = classes.take(range(classes.shape[axis] - 1), axis).astype(np.int64)
        behind = classes.take(range(1, classes.shape[axis]), axis).astype(np.int64)
        meets = (before != behind) & (before > 0) & (behind > 0)
        pairs = np.sort(np.stack([before[meets], behind[meets]]), axis=0)
        rows, counts = np.unique(np.stack([*pairs, np.nonzero(meets)[axis]]), axis=1, return_counts=True)
        for (low, high, place), number in zip(rows.T.tolist(), counts.tolist(), strict=True):
            found.setdefault((low, high), {})[axis, place] = number
    return found


def _axis(direction: tuple[float, ...], axis: int) -> Vector:
    """Unit vector (x, y, z) of an axis (D, H, W) of an array; SimpleITK's columns are (W, H, D)."""
    x, y, z = np.reshape(direction, (3, 3))[:, 2 - axis].tolist()
    return x, y, z


def _nearest_axis(direction: tuple[float, ...], normal: Vector) -> int:
    return int(np.argmax([abs(np.dot(_axis(direction, axis), normal)) for axis in range(3)]))
