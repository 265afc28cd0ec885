"""Large volumes are worked on piece by piece: the same results, and little memory beside the volume."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from stages.artifacts.cohort import Grid
from stages.config import Config, IntensitySettings, PreprocessSettings
from stages.data.digests import image_digest, label_digest
from stages.data.faults import IntakeError
from stages.data.flat_borders import border_faces
from stages.data.grid import cut_shares, image_box, label_box
from stages.data.intensities import intensity_range, normalise
from stages.data.labels import class_indices
from stages.data.slabs import slabs
from stages.data.writers import volumes_ml

SIZE = (40, 50, 60)
TURN = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
CONFIG = Config.model_validate(
    {"workspace": "runs", "data": {"folder": "."}, "structures": {"a": 3, "b": [17, -2], "c": 70000}}
)


def labelled() -> sitk.Image:
    """A label map of blocks, in some of whose planes no structure lies."""
    values = np.zeros(SIZE, np.int32)
    values[5:20, 8:30, 9:44], values[20:33, 8:30, 9:44], values[22:25, 30:40, 40:55] = 3, 17, 70000
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.7, 0.9, 1.3))
    image.SetOrigin((12.5, -7.25, 3.0))
    image.SetDirection(TURN)
    return image


def everything() -> list[Any]:
    label = labelled()
    image = sitk.Cast(label, sitk.sitkFloat32) * -1.0
    classes = class_indices(sitk.GetArrayViewFromImage(label), CONFIG, "c")
    grid = Grid((20, 24, 30), (1.3, 0.9, 0.7), label.TransformIndexToPhysicalPoint((12, 10, 8)), TURN)
    return [
        classes.tolist(), str(classes.dtype), image_digest(image), label_digest(label), border_faces(classes),
        volumes_ml(classes, list(CONFIG.structures), label.GetSpacing()), label_box(label, classes, np.eye(4), TURN),
        cut_shares(label, classes, np.eye(4), grid), image_box(label, above=2),
    ]  # fmt: skip


def test_piece_by_piece_everything_is_what_it_is_in_one_piece(monkeypatch):
    whole = everything()
    assert len(whole[4]) == 2 and set(whole[7]) == {1, 2, 3} and 0 < whole[7][1] < 1
    for most in (1, 7000, 10**9):  # a plane, a few planes, all of it
        monkeypatch.setattr("stages.data.slabs.MOST_VOXELS", most)
        assert everything() == whole


def test_slabs_are_a_volume_in_order(monkeypatch):
    monkeypatch.setattr("stages.data.slabs.MOST_VOXELS", 25)
    assert [(slab.start, slab.stop) for slab in slabs(np.zeros((7, 5, 2)))] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert list(slabs(np.zeros(0))) == [] and class_indices(np.zeros(0, int), CONFIG, "c").shape == (0,)


def test_values_of_all_pieces_are_told_together(monkeypatch):
    monkeypatch.setattr("stages.data.slabs.MOST_VOXELS", 1)
    with pytest.raises(IntakeError, match=r"c: label values 5, 9 not named"):
        class_indices(np.array([[9, 0], [3, 5], [9, 9]]), CONFIG, "c")


def bytes_a_voxel(work: Callable[[], Any], voxels: int) -> float:
    """What numpy takes at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / voxels
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", ["window", "percentiles"])
def test_a_large_volume_has_no_copies_of_64_bits(monkeypatch, method):
    monkeypatch.setattr("stages.data.slabs.MOST_VOXELS", 2**14)
    shape = (60, 100, 100)
    values = np.repeat(np.array([0, 3, 17], np.int32), 20)[:, None, None] * np.ones(shape, np.int32)
    label, number = sitk.GetImageFromArray(values), values.size
    classes = class_indices(values, CONFIG, "c")
    image = sitk.Cast(label, sitk.sitkFloat32)
    settings = PreprocessSettings(intensity=IntensitySettings(method=method, window=(0.0, 10.0)))

    assert bytes_a_voxel(lambda: class_indices(values, CONFIG, "c"), number) < 2.5  # one is its result
    assert bytes_a_voxel(lambda: label_digest(label), number) < 1
    assert bytes_a_voxel(lambda: volumes_ml(classes, ["a", "b", "c"], (1, 1, 1)), number) < 1
    assert bytes_a_voxel(lambda: border_faces(classes), number) < 5
    assert bytes_a_voxel(lambda: label_box(label, classes, np.eye(4), TURN), number) < 3.5
    assert bytes_a_voxel(lambda: normalise(image, settings), number) < (5.5 if method == "window" else 10.5)


@pytest.mark.parametrize("background", [0.0, 0.5])
def test_intensities_are_scaled_by_the_same_numbers_as_ever(background):
    rng = np.random.default_rng(3)
    voxels = rng.normal(300, 90, (12, 14, 16)).astype(np.float32)
    voxels[rng.random(voxels.shape) < background] = -50.0
    foreground = voxels[voxels > voxels.min()]
    settings = PreprocessSettings()
    low = float(voxels.min()) if background else float(np.percentile(voxels.ravel(), 0.5))
    high = float(np.percentile(foreground if background else voxels.ravel(), 99.5))
    expected = ((voxels - low) / (high - low)).clip(0, 1).astype(np.float32)

    before = voxels.copy()
    assert intensity_range(voxels, settings.intensity) == (low, high)
    np.testing.assert_array_equal(voxels, before)
    scaled, found_low, found_high = normalise(sitk.GetImageFromArray(voxels), settings)

    assert (found_low, found_high) == (low, high)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(scaled), expected)
