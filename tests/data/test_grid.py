"""The grid that is derived from the first atlas: spacing per axis, margins, sizes."""

from __future__ import annotations

import numpy as np
import pytest

from stages.config import PreprocessSettings
from stages.data.grid import derive_grid

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def grid_of(edges_mm, spacing, shown=None, **settings):
    """The grid (D, H, W) around a box from 0 to `edges_mm` (x, y, z), of an atlas of this spacing (x, y, z)."""
    box = ([0.0, 0.0, 0.0], list(edges_mm))
    return derive_grid(PreprocessSettings(**settings), box, IDENTITY, spacing, (0.0, 0.0, 0.0), shown)


def reach(grid):
    """Lowest and highest voxel centres (x, y, z) in mm."""
    low = np.array(grid.origin)
    return low, low + (np.array(grid.shape[::-1]) - 1) * grid.spacing_mm[::-1]


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [((1.5, 1.5, 10.0), (10.0, 1.5, 1.5)), ((4.0, 1.0, 1.0), (1.0, 1.0, 4.0)), ((1.2, 1.2, 7.7), (7.7, 1.2, 1.2)),
     ((0.15, 0.15, 0.15), (0.15, 0.15, 0.15)), ((1.0, 1.25, 3.0), (1.0, 1.0, 1.0)), ((1.0, 5.0, 6.0), (6.0, 5.0, 1.0))],
)  # fmt: skip
def test_thick_slices_keep_their_spacing(spacing, expected):
    assert grid_of([40 * min(spacing)] * 3, spacing).spacing_mm == expected


def test_the_grid_of_isotropic_scans_has_twelve_voxels_round_the_box_and_multiples_of_8():
    assert grid_of((24, 37, 21), (1.0, 1.0, 1.0)).shape == (48, 64, 48)
    assert grid_of((24, 37, 21), (1.0, 1.0, 1.0)).spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("factor", [1 / 20, 1 / 1000, 7.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.5, 10.0), (4.2, 4.2, 4.2)])
def test_a_cohort_of_another_size_gets_the_same_grid(factor, spacing):
    edges = np.array([120.0, 100.0, 80.0])
    one = grid_of(edges, spacing, max_voxels=30_000)
    other = grid_of(edges * factor, tuple(mm * factor for mm in spacing), max_voxels=30_000)
    assert other.shape == one.shape
    np.testing.assert_allclose(np.array(other.spacing_mm) / factor, one.spacing_mm, rtol=1e-12)
    np.testing.assert_allclose(np.array(other.origin) / factor, one.origin, rtol=1e-9, atol=1e-9)


def test_too_many_voxels_coarsen_the_finest_axes_until_they_reach_the_thick_ones():
    edges, spacing = (300.0, 200.0, 180.0), (1.0, 1.0, 6.0)
    few = grid_of(edges, spacing, max_voxels=500_000)
    assert few.spacing_mm[0] == 6.0 and 1.0 < few.spacing_mm[1] == few.spacing_mm[2] < 6.0
    fewest = grid_of(edges, spacing, max_voxels=20_000)
    assert fewest.spacing_mm[0] == fewest.spacing_mm[1] == fewest.spacing_mm[2] > 6.0
    assert np.prod(few.shape) <= 500_000 and np.prod(fewest.shape) <= 20_000


def test_slices_are_not_padded_to_multiples_of_8():
    grid = grid_of((90.0, 100.0, 70.0), (1.5, 1.5, 10.0))
    assert grid.shape[0] == 12  # 8 slices in the box, two on either side
    assert grid.shape[1] % 8 == grid.shape[2] % 8 == 0
    assert grid_of((90.0, 100.0, 20.0), (1.5, 1.5, 10.0)).shape[0] == 10


def test_margins_follow_the_box_as_far_as_the_first_atlas_shows_something():
    edges, spacing = (200.0, 200.0, 200.0), (0.5, 0.5, 0.5)
    low, high = reach(grid_of(edges, spacing, max_voxels=10**9))
    assert (low <= -29.5).all() and (high >= 229.5).all()  # 15 % on either side
    shown = ([-5.0, -100.0, -100.0], [300.0, 300.0, 300.0])
    low, high = reach(grid_of(edges, spacing, shown, max_voxels=10**9))
    assert -20 < low[0] <= -14.5 and low[1] <= -29.5 and high[0] >= 229.5  # 5 %, and 10 beyond


@pytest.mark.parametrize("margin_mm", [0.0, 3.0, 40.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 8.0)])
def test_a_set_margin_counts_and_the_box_is_always_inside(margin_mm, spacing):
    for edge in (15.0, 16.0, 23.0, 24.0, 31.0, 32.0):
        edges = np.array([edge, edge, 8 * edge])
        grid = grid_of(edges, spacing, margin_mm=margin_mm, max_voxels=10**9)
        low, high = reach(grid)
        half = np.array(grid.spacing_mm[::-1]) / 2
        assert (low - 2 * half <= -margin_mm).all() and (high + 2 * half >= edges + margin_mm).all()
        assert (low - half <= 0).all() and (high + half >= edges).all()
