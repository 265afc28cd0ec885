"""The grid that is derived from the first atlas: spacing per axis, margins, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from stages.artifacts.cohort import Grid
from stages.config import PreprocessSettings
from stages.data.grid import cut_shares, derive_grid, label_box, label_to_grid, to_grid

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


# Images and labels on the grid


def image_of(voxels, spacing, direction=IDENTITY, origin=(0.0, 0.0, 0.0)):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    image.SetOrigin(origin)
    return image


def noise(shape):
    return np.random.default_rng(0).random(shape).astype(np.float32)


UNMOVED = {"matrix": np.eye(4).tolist()}


def test_only_axes_that_get_coarser_are_smoothed():
    image = image_of(noise((10, 40, 40)), (1.0, 1.0, 8.0))
    coarser = Grid((10, 20, 20), (8.0, 2.0, 2.0), (0.0, 0.0, 0.0), IDENTITY)
    smooth = sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, [0.7**2, 0.7**2, 0.0]))
    np.testing.assert_allclose(to_grid(image, UNMOVED, coarser), smooth[:, ::2, ::2], atol=1e-6)
    alike = Grid((10, 20, 20), (8.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    np.testing.assert_array_equal(to_grid(image, UNMOVED, alike), sitk.GetArrayFromImage(image)[:, :20, :20])


def test_isotropic_scans_are_smoothed_alike_along_all_axes():
    image = image_of(noise((24, 24, 24)), (1.0, 1.0, 1.0))
    grid = Grid((12, 12, 12), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), IDENTITY)
    smooth = sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, [(0.35 * 2.0) ** 2] * 3))
    np.testing.assert_array_equal(to_grid(image, UNMOVED, grid), smooth[::2, ::2, ::2])


def test_axes_are_compared_with_those_that_they_lie_on():
    """The same scan stored sagittally, and turned by the alignment."""
    voxels = noise((10, 40, 40))
    grid = Grid((10, 20, 20), (8.0, 2.0, 2.0), (0.0, 0.0, 0.0), IDENTITY)
    expected = to_grid(image_of(voxels, (1.0, 1.0, 8.0)), UNMOVED, grid)
    cycle = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)  # its axes x, y, z run along z, x, y
    stored = image_of(voxels.transpose(1, 2, 0), (8.0, 1.0, 1.0), cycle)
    np.testing.assert_allclose(to_grid(stored, UNMOVED, grid), expected, atol=1e-5)
    turned = np.eye(4)
    turned[:3, :3] = np.array(cycle).reshape(3, 3).T
    own = image_of(voxels.transpose(1, 2, 0), (8.0, 1.0, 1.0))
    np.testing.assert_allclose(to_grid(own, {"matrix": turned}, grid), expected, atol=1e-5)


def test_label_maps_are_smoothed_as_images_are():
    classes = np.zeros((6, 40, 40), np.uint8)
    classes[:, 8:32, 8:32] = 1
    classes[2, 12, 12] = 2  # one voxel in sixteen of the grid
    label = image_of(classes, (1.0, 1.0, 8.0))
    grid = Grid((6, 10, 10), (8.0, 4.0, 4.0), (1.5, 1.5, 0.0), IDENTITY)
    on_grid = label_to_grid(label, classes, 3, UNMOVED, grid)
    assert set(np.unique(on_grid)) == {0, 1}
    np.testing.assert_array_equal(on_grid[0], on_grid[3])  # slices do not run into one another
    assert int((on_grid == 1).sum()) == 6 * 6 * 6


@pytest.mark.parametrize("margin_mm", [0.0, 2.0])
@pytest.mark.parametrize("shape", [(5, 9, 30), (16, 16, 16), (90, 90, 90)])
def test_a_shape_alone_never_cuts_the_labels(shape, margin_mm):
    classes = np.zeros((20, 20, 20), np.uint8)
    for last in (9, 10, 11):
        classes[3:last, 2:last, 4 : last + 4] = 1
        label = image_of(classes, (1.0, 1.2, 2.0), origin=(3.3, -7.7, 11.1))
        box = label_box(label, classes > 0, np.eye(4), IDENTITY)
        settings = PreprocessSettings(shape=shape, margin_mm=margin_mm)
        grid = derive_grid(settings, box, IDENTITY, label.GetSpacing(), label.GetOrigin())
        assert grid.shape == shape and cut_shares(label, classes, np.eye(4), grid) == {}
