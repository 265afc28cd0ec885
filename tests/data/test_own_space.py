"""The way back: classes on the cohort's grid reach the right voxels of a scan, wherever and however it lies."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stages.artifacts.cohort import Grid
from stages.data import own_space
from stages.data.own_space import as_label_image, classes_in_own_space, own_to_grid
from stages.parts.warps import one_hot

IDENTITY = tuple(np.eye(3).ravel())
GRID = Grid((12, 14, 16), (2.0, 1.5, 1.0), (-8.0, -10.0, -11.0), IDENTITY)


def rotation(degrees, i, j):
    matrix = np.eye(3)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def geometry(size=(16, 14, 12), spacing=(1.0, 1.5, 2.0), origin=(-8.0, -10.0, -11.0), direction=IDENTITY, matrix=None):
    """A scan's record, x y z; the default lies exactly on the grid."""
    return {
        "size": size,
        "spacing": spacing,
        "origin": origin,
        "direction": tuple(np.ravel(direction)),
        "matrix": (np.eye(4) if matrix is None else matrix).tolist(),
    }


def centred(size, spacing, direction, matrix=None):
    """A scan whose middle lies at the mm origin."""
    half = np.reshape(direction, (3, 3)) @ ((np.array(size) - 1) / 2 * np.array(spacing))
    return geometry(size, spacing, tuple(-half), direction, matrix)


def positions(image):
    """Position in mm of every voxel, (D, H, W, 3), as SimpleITK has it."""
    size = image.GetSize()
    return np.array(
        [
            [[image.TransformIndexToPhysicalPoint((x, y, z)) for x in range(size[0])] for y in range(size[1])]
            for z in range(size[2])
        ]
    )


def drawn(points):
    """Classes at points in the reference's mm: an ellipsoid (1) and, off to one side of each axis, a ball (2)."""
    ellipsoid = np.linalg.norm((points - [-2.0, -1.0, 0.5]) / [4.0, 6.0, 7.0], axis=-1) < 1
    ball = np.linalg.norm(points - [4.0, 3.0, 6.0], axis=-1) < 3.2
    return np.where(ball, 2, ellipsoid.astype(int))


def probabilities(label, num_classes=3):
    return one_hot(torch.from_numpy(label)[None], num_classes)[0]


def agreement(found, expected):
    """Dice of each structure."""
    return [2 * np.sum((found == c) & (expected == c)) / (np.sum(found == c) + np.sum(expected == c)) for c in (1, 2)]


def test_scan_that_lies_on_the_grid_has_the_identity_map():
    np.testing.assert_allclose(own_to_grid(geometry(), GRID), np.eye(4), atol=1e-12)


def test_map_lists_axes_as_arrays_do():
    # Voxels of half the size along x (the last axis), first voxel 3 mm further along z (the first axis).
    record = geometry(spacing=(0.5, 1.5, 2.0), origin=(-8.0, -10.0, -8.0))
    expected = np.diag([1, 1, 0.5, 1])
    expected[0, 3] = 3.0 / 2.0
    np.testing.assert_allclose(own_to_grid(record, GRID), expected)


def test_map_goes_against_the_alignment():
    # The alignment maps the reference's mm to the scan's: 2 mm along y further there is 2 mm back here.
    matrix = np.eye(4)
    matrix[1, 3] = 2.0
    expected = np.eye(4)
    expected[1, 3] = -2.0 / 1.5
    np.testing.assert_allclose(own_to_grid(geometry(matrix=matrix), GRID), expected, atol=1e-12)


def test_scan_that_lies_on_the_grid_gets_the_grids_classes():
    label = np.random.default_rng(0).integers(0, 3, GRID.shape)
    found = classes_in_own_space(probabilities(label), geometry(), GRID)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, label)


AFFINE = np.eye(4)
AFFINE[:3, :3] = rotation(12, 0, 1) @ rotation(-8, 1, 2) @ np.diag([1.1, 0.9, 1.05])
AFFINE[:3, 3] = (3.0, -2.0, 1.5)

SCANS = {
    "flipped": centred((24, 26, 28), (1.0, 1.0, 1.0), np.diag([-1.0, -1.0, 1.0])),
    "axes exchanged": centred((28, 24, 26), (1.0, 1.0, 1.0), np.eye(3)[:, [2, 0, 1]]),
    "left-handed": centred((24, 26, 28), (1.0, 1.0, 1.0), np.diag([1.0, -1.0, 1.0])),
    "anisotropic and oblique": centred((30, 28, 11), (0.8, 0.9, 2.5), rotation(25, 0, 2) @ rotation(10, 0, 1)),
    "aligned": centred((34, 34, 34), (1.0, 1.0, 1.0), np.eye(3), AFFINE),
    "all at once": centred((16, 40, 36), (2.2, 0.8, 1.0), rotation(20, 1, 2) @ np.diag([-1.0, 1.0, -1.0]), AFFINE),
}
TURNED = Grid(
    (26, 28, 30), (1.0, 1.1, 0.9), tuple(-rotation(15, 0, 1) @ [13.0, 14.8, 12.5]), tuple(rotation(15, 0, 1).ravel())
)


@pytest.mark.parametrize("name", SCANS)
def test_classes_drawn_in_space_reach_the_scans_voxels_there(name):
    record = SCANS[name]
    on_grid = drawn(positions(TURNED.as_image()))
    there = positions(as_label_image(np.zeros(record["size"][::-1], np.uint8), record))
    back = np.linalg.inv(record["matrix"])
    expected = drawn(there @ back[:3, :3].T + back[:3, 3])

    found = classes_in_own_space(probabilities(on_grid), record, TURNED)

    assert found.shape == expected.shape
    assert min(agreement(found, expected)) > 0.88
    for axis in range(3):
        assert agreement(np.flip(found, axis), expected)[1] < 0.3  # the drawing tells directions apart


def test_the_way_back_is_the_inverse_of_simpleitks_resampling_to_the_grid():
    record = SCANS["all at once"]
    rng = np.random.default_rng(0)
    coarse = sitk.GetImageFromArray(rng.random((6, 6, 6)).astype(np.float32))
    coarse.SetSpacing((8.0, 8.0, 8.0))
    coarse.SetOrigin((-20.0, -20.0, -20.0))
    grid = sitk.Resample(coarse, TURNED.as_image(), sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    label = np.zeros(TURNED.shape, np.int64)  # ITK's images end half a voxel outside, so the border stays empty
    label[1:-1, 1:-1, 1:-1] = sitk.GetArrayFromImage(grid)[1:-1, 1:-1, 1:-1] > 0.5
    transform = sitk.AffineTransform(3)
    inverse = np.linalg.inv(record["matrix"])
    transform.SetMatrix(inverse[:3, :3].ravel())
    transform.SetTranslation(inverse[:3, 3])
    mask = sitk.GetImageFromArray(label.astype(np.float32))
    mask.CopyInformation(TURNED.as_image())
    empty = as_label_image(np.zeros(record["size"][::-1], np.uint8), record)
    share = sitk.GetArrayFromImage(sitk.Resample(mask, empty, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32))
    clear = np.abs(share - 0.5) > 1e-3

    found = classes_in_own_space(probabilities(label, 2), record, TURNED)

    assert clear.mean() > 0.99 and found.mean() > 0.05
    np.testing.assert_array_equal(found[clear], share[clear] > 0.5)


def test_outside_the_grid_is_background():
    # Two voxels more than the grid on every side.
    record = geometry((20, 18, 16), origin=(-10.0, -13.0, -15.0))
    found = classes_in_own_space(probabilities(np.ones(GRID.shape, int), 2), record, GRID)
    expected = np.zeros((16, 18, 20), int)
    expected[2:-2, 2:-2, 2:-2] = 1
    np.testing.assert_array_equal(found, expected)


def test_work_in_slabs_gives_the_same(monkeypatch):
    on_grid = probabilities(drawn(positions(TURNED.as_image())))
    record = SCANS["anisotropic and oblique"]
    whole = classes_in_own_space(on_grid, record, TURNED)
    monkeypatch.setattr(own_space, "SLAB_VOXELS", 3 * 30 * 28)  # 3 + 3 + 3 + 2 planes
    np.testing.assert_array_equal(classes_in_own_space(on_grid, record, TURNED), whole)


def test_soft_probabilities_are_interpolated_before_the_class_is_chosen():
    # Along x: 0.9, 0.4 of class 1; between them 0.65, so the halfway voxel is class 1 and the next one is not.
    soft = torch.zeros(2, *GRID.shape)
    soft[1, ..., :8], soft[1, ..., 8:] = 0.9, 0.4
    soft[0] = 1 - soft[1]
    record = geometry((32, 14, 12), spacing=(0.5, 1.5, 2.0))
    assert classes_in_own_space(soft, record, GRID)[5, 5, 12:20].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_more_than_255_structures_keep_their_class_index():
    label = np.full(GRID.shape, 299)
    found = classes_in_own_space(probabilities(label, 300), geometry(), GRID)
    assert found.dtype == np.uint16
    assert (found == 299).all()


def test_label_image_has_the_scans_geometry():
    record = SCANS["all at once"]
    image = as_label_image(np.zeros(record["size"][::-1], np.uint8), record)
    for name in ("Size", "Spacing", "Origin", "Direction"):
        assert getattr(image, f"Get{name}")() == pytest.approx(record[name.lower()])
