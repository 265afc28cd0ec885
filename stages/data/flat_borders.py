"""Borders that a labelling protocol draws as one plane of voxels, found in labelled scans.

Many protocols split an organ where no edge is, at a slice of the scan: head from body of the hippocampus, lobes, levels
of the spine. `stages.answering.flat_borders` puts such planes back into answers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from stages.artifacts.cohort import FlatBorder, Vector

LEAST_SHARE = 0.8  # of the faces between two structures: share in one plane, mean over the atlases
LEAST_FACES = 20  # between two structures in every atlas; a few faces may lie in one plane by chance

Faces = list[tuple[int, int, int, int, int]]  # class, larger class, axis, slice before the face, number of faces


def find_flat_borders(atlases: Iterable[tuple[Faces, tuple[float, ...]]]) -> list[FlatBorder]:
    """Pairs of structures whose border is one plane of voxels in (nearly) every atlas.

    Args:
        atlases: per atlas its `border_faces` and the direction of its axes, as SimpleITK returns it.
    """
    shares_of: dict[tuple[int, int], list[float]] = {}
    normals: dict[tuple[int, int], Vector] = {}
    count = 0
    for rows, direction in atlases:
        count += 1
        by_pair: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
        for low, high, axis, place, number in rows:
            by_pair.setdefault((low, high), {})[axis, place] = number
        for pair, faces in by_pair.items():
            plane = max(faces, key=lambda place: faces[place])
            normal = normals.setdefault(pair, axis_vector(direction, plane[0]))
            total = sum(faces.values())
            if total >= LEAST_FACES and plane[0] == nearest_axis(direction, normal):
                shares_of.setdefault(pair, []).append(faces[plane] / total)
    return [
        FlatBorder(pair, normals[pair])
        for pair, shares in sorted(shares_of.items())
        if len(shares) == count and np.mean(shares) >= LEAST_SHARE
    ]


def border_faces(classes: np.ndarray) -> Faces:
    """Faces between voxels of two structures, counted by the plane that they lie in; background does not count.

    Args:
        classes: class indices (D, H, W) in the atlas's own voxels.
    """
    faces: Faces = []
    for axis in range(3):
        along = np.moveaxis(classes, axis, 0)
        before, behind = (np.moveaxis(part, 0, axis) for part in (along[:-1], along[1:]))  # views: volumes are large
        meets = before != behind
        meets &= before > 0
        meets &= behind > 0
        pairs = np.sort(np.stack([before[meets], behind[meets]]).astype(np.int64), axis=0)
        rows, counts = np.unique(np.stack([*pairs, np.nonzero(meets)[axis]]), axis=1, return_counts=True)
        for (low, high, place), number in zip(rows.T.tolist(), counts.tolist(), strict=True):
            faces.append((low, high, axis, place, number))
    return faces


def axis_vector(direction: tuple[float, ...], axis: int) -> Vector:
    """Unit vector (x, y, z) of an axis (D, H, W) of an array; SimpleITK's columns are (W, H, D)."""
    x, y, z = np.reshape(direction, (3, 3))[:, 2 - axis].tolist()
    return x, y, z


def nearest_axis(direction: tuple[float, ...], normal: Vector) -> int:
    """The axis (D, H, W) of an array that is most nearly parallel to a vector."""
    return int(np.argmax([abs(np.dot(axis_vector(direction, axis), normal)) for axis in range(3)]))
