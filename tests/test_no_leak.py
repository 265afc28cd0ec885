"""Nothing that is held out reaches training: not the test scans, not a label besides the atlases'."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import CASES

HELD_OUT = ("dev_1", "test_1", "test_2")
pytestmark = pytest.mark.usefixtures("no_pictures", "in_this_process")


@pytest.fixture(scope="module")
def only_training_data(scans, tmp_path_factory):
    """The cohort's folder without the held-out images and without every label map but the atlas's."""
    folder = tmp_path_factory.mktemp("training") / "scans"
    shutil.copytree(scans, folder)
    for case in CASES:
        if case != "atlas_1":
            (folder / "labels" / f"{case}.nii.gz").unlink()
        if case in HELD_OUT:
            (folder / "images" / f"{case}.nii.gz").unlink()
    return folder


def test_training_is_the_same_without_any_held_out_file(only_training_data, new_project, tmp_path):
    digests = []
    for name, data in (("with", {}), ("without", {"folder": str(only_training_data)})):
        project = new_project(tmp_path / name, data={"supervised": [], **data})
        for method in ("brbs", "unet"):
            project.made("run", "--method", method, "--until", "train-seg")
        digests.append(project.digests())

    assert set(digests[0]) == {
        "cohort/v0001",
        "brbs/registration/v0001",
        "brbs/generated/v0001",
        "brbs/segmentation/v0001",
        "unet/segmentation/v0001",
    }
    assert digests[0] == digests[1]


def test_cohorts_store_no_label_but_those_that_may_be_trained_on(project):
    for part in ("train", "dev", "test", "supervised"):
        project.made("preprocess", "--part", part)

    stored = {}
    for part in ("cohort", "cohort-dev", "cohort-test", "cohort-supervised"):
        with h5py.File(project.workspace / part / "v0001" / "cohort.h5") as file:
            stored[part] = (set(file["images"]), set(file["labels"]))
    assert stored == {
        "cohort": ({"atlas_1", "free_1", "free_2"}, {"atlas_1"}),
        "cohort-dev": ({"dev_1"}, set()),
        "cohort-test": ({"test_1", "test_2"}, set()),
        "cohort-supervised": ({"atlas_2", "free_1"}, {"atlas_2", "free_1"}),
    }


def test_lineage_names_the_scans_that_were_trained_on_and_no_other(project):
    project.made("preprocess")
    assert set(project.manifest("cohort").identity.inputs) == {"scan/atlas_1", "scan/free_1", "scan/free_2"}


@pytest.mark.parametrize("part", ["unlabeled", "atlases", "supervised"])
def test_a_test_image_under_another_name_in_training_is_refused(part, scans, new_project, tmp_path):
    folder = tmp_path / "scans"
    shutil.copytree(scans, folder)
    image = sitk.ReadImage(str(folder / "images" / "test_2.nii.gz"))
    image.SetOrigin((np.array(image.GetOrigin()) + 5).tolist())  # another header is no other image
    sitk.WriteImage(image, str(folder / "images" / "copy.mha"))
    label = sitk.ReadImage(str(folder / "labels" / "test_2.nii.gz"))
    label.CopyInformation(image)
    sitk.WriteImage(label, str(folder / "labels" / "copy.mha"))
    members = {"unlabeled": ["free_1"], "atlases": ["atlas_1"], "supervised": ["atlas_2"]}
    members[part] = [*members[part], "copy"]
    project = new_project(tmp_path, data={"folder": str(folder), **members})
    fault = (
        f"case test_2: same image as case copy, which data.{part} trains on, and data.test scores this one; "
        "take one of the two out of the configuration."
    )

    checked = project.lrls("check")
    assert checked.code == 1
    assert fault in checked.out.splitlines()
    for of in ("supervised", "test") if part == "supervised" else ("train", "test"):
        refused = project.lrls("preprocess", "--part", of)
        assert refused.code == 1
        assert refused.err.splitlines()[-1] == f"lrls: {fault}"
        assert project.versions("cohort" if of == "train" else f"cohort-{of}") == []


def test_a_case_in_training_and_test_is_refused(new_project, tmp_path):
    project = new_project(tmp_path, data={"unlabeled": ["free_1", "test_1"]})
    for command in ("check", "preprocess"):
        done = project.lrls(command)
        assert done.code == 1
        assert (
            "case test_1: listed in data.unlabeled and data.test; keep training and held-out cases apart"
            in done.out + done.err
        )
