"""An atlas that ANTs lays on a scan with our transform lies where our own warp lays it."""

import ants
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stages.artifacts.cohort import Grid
from stages.data.grid import label_to_grid, to_grid
from stages.data.itk_transforms import atlas_to_scan, write_transform
from stages.data.own_space import as_label_image, classes_in_own_space
from stages.parts.warps import warp_label, warp_probabilities

TILT = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.4).GetMatrix(), (3, 3))


def image(array, spacing, origin, direction):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    made.SetDirection(np.asarray(direction).ravel().tolist())
    return made


def asymmetric(shape):
    """Three structures of which no mirroring or turning is the same (D, H, W)."""
    d, h, w = np.indices(shape) / np.array(shape)[:, None, None, None]
    label = np.zeros(shape, np.uint8)
    label[(d > 0.2) & (d < 0.5) & (h > 0.2) & (h < 0.8) & (w > 0.25) & (w < 0.45)] = 1
    label[((d - 0.65) / 0.22) ** 2 + ((h - 0.3) / 0.17) ** 2 + ((w - 0.65) / 0.2) ** 2 < 1] = 2
    label[(d > 0.25) & (d < 0.55) & (h > 0.5) & (h < 0.75) & (w > 0.55) & (w < 0.85)] = 3
    return label


def as_ants(of):
    return ants.from_numpy(
        sitk.GetArrayFromImage(of).transpose(2, 1, 0).astype(np.float32), origin=of.GetOrigin(),
        spacing=of.GetSpacing(), direction=np.reshape(of.GetDirection(), (3, 3)),
    )  # fmt: skip


def dice(a, b):
    return [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in (1, 2, 3)]


@pytest.fixture
def case():
    """Grid, atlas, displacement and the alignments of atlas and scan; the atlas's axes are oblique and flipped."""
    grid = Grid((48, 44, 52), (1.0, 1.2, 0.9), (-20.0, 15.0, 7.0), tuple(np.eye(3).ravel()))
    flipped = TILT @ np.diag([-1, 1, -1])
    atlas = image(asymmetric((50, 48, 56)), (0.9, 1.1, 1.0), (50.0, -8.0, 60.0), flipped)
    centre = np.array(grid.origin) + np.array(grid.spacing_mm[::-1]) * (np.array(grid.shape[::-1]) - 1) / 2
    middle = np.array(atlas.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in atlas.GetSize()]))
    of_atlas = np.eye(4)
    of_atlas[:3, :3] = TILT @ np.diag([1.05, 0.95, 1.0])
    of_atlas[:3, 3] = middle - of_atlas[:3, :3] @ centre
    of_scan = np.eye(4)
    of_scan[:3, :3] = np.linalg.inv(TILT) @ np.diag([0.95, 1.0, 1.1])
    of_scan[:3, 3] = [4.0, -9.0, 30.0]
    d, h, w = np.indices(grid.shape) / 8.0
    displacement = np.stack([2.5 * np.sin(h), 2.0 * np.cos(w), 3.0 * np.sin(d + 0.5)]).astype(np.float32)
    return grid, atlas, displacement, of_atlas, of_scan


def test_on_the_grid_both_are_the_same(case, tmp_path):
    grid, atlas, displacement, of_atlas, _ = case
    on_grid = label_to_grid(atlas, sitk.GetArrayFromImage(atlas), 4, {"matrix": of_atlas}, grid)
    ours = warp_label(torch.from_numpy(on_grid)[None], torch.from_numpy(displacement)[None])[0].numpy()
    write_transform(atlas_to_scan(displacement, grid, {"matrix": np.eye(4)}, np.eye(4)), tmp_path / "a.h5")
    of_grid = image(on_grid, grid.spacing_mm[::-1], grid.origin, grid.direction)
    theirs = ants.apply_transforms(
        as_ants(of_grid), as_ants(of_grid), [str(tmp_path / "a.h5")], interpolator="nearestNeighbor"
    )
    assert min(dice(ours, theirs.numpy().transpose(2, 1, 0))) > 0.999


def test_on_the_scans_own_voxels_both_are_the_same(case, tmp_path):
    grid, atlas, displacement, of_atlas, of_scan = case
    corner = np.array(grid.origin)
    scan = image(
        np.zeros((60, 50, 58), np.uint8), (0.95, 1.0, 0.9), (0, 0, 0), np.linalg.inv(TILT) @ np.diag([1, -1, 1])
    )
    middle = of_scan[:3, :3] @ (corner + np.array(grid.spacing_mm[::-1]) * (np.array(grid.shape[::-1]) - 1) / 2)
    half = np.array(scan.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in scan.GetSize()]))
    scan.SetOrigin((middle + of_scan[:3, 3] - half).tolist())
    record = {
        "matrix": of_scan, "size": scan.GetSize(), "spacing": scan.GetSpacing(), "origin": scan.GetOrigin(),
        "direction": scan.GetDirection(),
    }  # fmt: skip
    classes = sitk.GetArrayFromImage(atlas)
    shares = []
    for k in range(4):
        mask = image((classes == k).astype(np.float32), atlas.GetSpacing(), atlas.GetOrigin(), atlas.GetDirection())
        shares.append(to_grid(mask, {"matrix": of_atlas}, grid))
    moved = warp_probabilities(torch.from_numpy(np.stack(shares))[None], torch.from_numpy(displacement)[None])[0]
    ours = classes_in_own_space(moved, record, grid)

    write_transform(atlas_to_scan(displacement, grid, record, of_atlas), tmp_path / "a.h5")
    theirs = ants.apply_transforms(
        as_ants(as_label_image(ours, record)), as_ants(atlas), [str(tmp_path / "a.h5")], interpolator="genericLabel"
    )
    found = theirs.numpy().transpose(2, 1, 0)
    scores = dice(ours, found)
    print(scores)
    assert min(scores) > 0.98
    assert max(dice(ours, found[:, :, ::-1])) < 0.6  # a mirrored one would be seen
