"""Random inputs for properties, drawn by hypothesis: how many, and geometries of scans.

`make test` draws the same few every time; `make properties` draws thousands of others (`LRLS_PROPERTIES`, a factor).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import SimpleITK as sitk
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from stages.data.geometry import Geometry

FACTOR = float(os.environ.get("LRLS_PROPERTIES", "1"))
FLIPS_AND_TURNS = [
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    for signs in np.array(np.meshgrid([1, -1], [1, -1], [1, -1])).reshape(3, 8).T
]


def examples(number: int) -> settings:
    """So many examples, or `FACTOR` times as many. Nothing depends on the clock, or on what was drawn before."""
    return settings(
        max_examples=max(1, round(number * FACTOR)),
        derandomize=FACTOR <= 1,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )


def numbers(low: float, high: float, digits: int = 4) -> st.SearchStrategy[float]:
    """Decimals, as people and scanners write them."""
    unit = 10**digits
    return st.integers(round(low * unit), round(high * unit)).map(lambda n: n / unit)


def rotation(axis: int, degrees: float) -> np.ndarray:
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


@st.composite
def directions(draw: Any) -> np.ndarray:
    """Axes of an image (columns): exchanged, flipped, oblique by hundredths of a degree or by anything."""
    most = draw(st.sampled_from([0.0, 0.05, 10.0, 180.0]))
    axes = draw(st.sampled_from(FLIPS_AND_TURNS))
    for axis in range(3):
        axes = rotation(axis, draw(numbers(-most, most, 2))) @ axes
    return axes


@st.composite
def geometries(draw: Any, edges: tuple[int, int] = (5, 12)) -> Geometry:
    """Of a scan, its voxels up to 20 times as long as they are wide."""
    size = tuple(draw(st.integers(*edges)) for _ in range(3))
    spacing = tuple(draw(numbers(0.25, 5.0)) for _ in range(3))
    origin = tuple(draw(numbers(-400.0, 400.0, 3)) for _ in range(3))
    return Geometry(size, spacing, origin, tuple(draw(directions()).ravel().tolist()))


def image_with(voxels: np.ndarray, geometry: Geometry) -> sitk.Image:
    """An image of voxels (D, H, W)."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image


def centred(geometry: Geometry, middle_mm: tuple[float, float, float]) -> Geometry:
    """The same geometry round another middle."""
    half = (np.array(geometry.size) - 1) / 2 * geometry.spacing
    origin = np.array(middle_mm) - np.reshape(geometry.direction, (3, 3)) @ half
    return Geometry(geometry.size, geometry.spacing, tuple(origin.tolist()), geometry.direction)


def positions(geometry: Geometry) -> np.ndarray:
    """Of all voxels in mm (x, y, z), (D, H, W, 3)."""
    index = np.stack(np.meshgrid(*(range(n) for n in geometry.size), indexing="ij"), -1).transpose(2, 1, 0, 3)
    axes = np.reshape(geometry.direction, (3, 3)) * geometry.spacing
    return index @ axes.T + np.array(geometry.origin)


def noise(size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Stored numbers (D, H, W), int16."""
    return np.random.default_rng(seed).integers(-1000, 3000, size[::-1]).astype(np.int16)
