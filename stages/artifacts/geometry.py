"""Whether stored geometry can be worked with: what a stranger wrote may be singular, infinite or of a wrong type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MOST_EDGE = 2**14  # voxels along an axis
MOST_VOXELS = 2**29  # of a grid
MOST_MM = 1e6  # of a coordinate
LEAST_SPACING_MM, MOST_SPACING_MM = 1e-6, 1e4


def check_grid(grid: Any) -> None:
    """Raises ValueError or TypeError unless the values make a `stages.artifacts.cohort.Grid`."""
    if len(grid.shape) != 3 or not all(type(n) is int and 1 <= n <= MOST_EDGE for n in grid.shape):
        raise ValueError(f"the shape of the grid is not three whole numbers from 1 to {MOST_EDGE}")
    if math.prod(grid.shape) > MOST_VOXELS:
        raise ValueError(f"the grid has more than {MOST_VOXELS} voxels")
    check_geometry(grid.spacing_mm, grid.origin, grid.direction)


def check_geometry(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> None:
    """Raises ValueError or TypeError unless an image can have this spacing, origin and direction (mm)."""
    if len(spacing) != 3 or not all(LEAST_SPACING_MM <= value <= MOST_SPACING_MM for value in spacing):
        raise ValueError(f"the spacing is not three numbers from {LEAST_SPACING_MM} to {MOST_SPACING_MM} mm")
    if len(origin) != 3 or not all(abs(value) <= MOST_MM for value in origin):
        raise ValueError(f"the origin is not three numbers of up to {MOST_MM:.0f} mm")
    if len(direction) != 9 or not all(abs(value) <= 2 for value in direction) or abs(_determinant(direction)) < 1e-3:
        raise ValueError("the direction is not nine numbers of three axes that span the space")


def check_borders(borders: Sequence[Any], num_classes: int) -> None:
    """Raises ValueError or TypeError unless every border lies between two classes and has a normal."""
    for border in borders:
        if len(border.classes) != 2 or not all(type(c) is int and 0 < c < num_classes for c in border.classes):
            raise ValueError("a border names a class that does not exist")
        if len(border.normal) != 3 or not 0.5 < math.hypot(*border.normal) < 2:
            raise ValueError("the normal of a border is no unit vector")


def check_record(record: dict[str, Any]) -> None:
    """Raises ValueError, TypeError or KeyError unless it is a record of `stages.data.prepare.prepare`."""
    check_geometry(record["spacing"], record["origin"], record["direction"])
    matrix = record["matrix"]
    if len(record["size"]) != 3 or not all(type(n) is int and 1 <= n <= 2**20 for n in record["size"]):
        raise ValueError("the size is not three whole numbers")
    if len(matrix) != 4 or not all(len(row) == 4 and all(abs(value) <= MOST_MM for value in row) for row in matrix):
        raise ValueError("the matrix is not 4 x 4 numbers")
    if abs(_determinant([value for row in matrix[:3] for value in row[:3]])) < 1e-9 or matrix[3] != [0, 0, 0, 1]:
        raise ValueError("the matrix has no inverse")
    if not isinstance(record["fell_back"], bool) or not math.isfinite(record["correlation"]):
        raise ValueError("the quality of the alignment is unknown")


def _determinant(m: Sequence[float]) -> float:
    """Of a 3 x 3 matrix, row by row."""
    a, b, c, d, e, f, g, h, i = m
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
