"""The cohort's grid and what lies on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from stages.config import IntensitySettings, load_config
from stages.data.intensities import intensity_range
from stages.preprocess import preprocess

SPACING = (1.0, 1.25, 2.0)  # x, y, z


def write_scans(folder: Path, box: tuple[slice, slice, slice]) -> int:
    """An atlas with a labelled box and an unlabelled scan; returns the number of labelled voxels."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    label = np.zeros((18, 22, 24), np.uint8)
    label[box] = 7
    for case in ("atlas", "scan"):
        image = sitk.GetImageFromArray(random.random(label.shape, np.float32) + 4 * (label > 0))
        mask = sitk.GetImageFromArray(label)
        for each in (image, mask):
            each.SetSpacing(SPACING)
            each.SetOrigin((3.3, -7.7, 11.1))
        sitk.WriteImage(image, str(folder / "images" / f"{case}.nii.gz"))
        if case == "atlas":
            sitk.WriteImage(mask, str(folder / "labels" / f"{case}.nii.gz"))
    return int((label > 0).sum())


@pytest.mark.parametrize("box", [np.s_[5:9, 6:11, 7:12], np.s_[4:9, 5:11, 6:10]], ids=["odd box", "even box"])
@pytest.mark.parametrize("margin_mm", [4.0, 5.5])
def test_the_atlas_keeps_every_voxel_of_its_label(box, margin_mm, tmp_path, in_this_process):
    count = write_scans(tmp_path, box)
    settings = {"align": "none", "spacing_mm": list(SPACING[::-1]), "margin_mm": margin_mm}
    data = {"folder": ".", "atlases": ["atlas"], "unlabeled": ["scan"]}
    text = yaml.safe_dump({"workspace": "runs", "data": data, "structures": {"box": 7}, "preprocess": settings})
    (tmp_path / "lrls.yaml").write_text(text)

    cohort = preprocess(load_config(tmp_path / "lrls.yaml"))

    assert cohort.grid.spacing_mm == SPACING[::-1]
    assert int(cohort.label("atlas").sum()) == count
    assert float(cohort.image("atlas")[cohort.label("atlas") > 0].min()) > 0.7  # image and label lie on each other
    assert [case for case in cohort.cases if cohort.transform(case)["fell_back"]] == []


def test_background_of_a_brain_extracted_scan_becomes_0_and_does_not_count():
    voxels = np.zeros(1000)
    voxels[:400] = np.linspace(100, 200, 400)
    low, high = intensity_range(voxels, IntensitySettings(percentiles=(0.0, 50.0)))
    assert (low, high) == (0, pytest.approx(150))


def test_a_window_is_taken_as_it_is():
    settings = IntensitySettings(method="window", window=(-100, 300))
    assert intensity_range(np.arange(10.0), settings) == (-100, 300)
