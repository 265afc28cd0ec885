"""A BIDS folder comes in: sessions, pipelines, label tables, and a reason for every file that is left out."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from stages.config import PARTS, load_config
from stages.data.checks import cohort_faults
from stages.data.initialize import config_text, describe_folder, write_config

SIZE = (8, 9, 10)


def volume(path, seed=0, size=SIZE):
    write(np.random.default_rng([seed, *path.name.encode()]).uniform(0, 900, size[::-1]).astype(np.float32), path)


def label_map(path, values=(3, 17), size=SIZE):
    label = np.zeros(size[::-1], np.uint8)
    for place, value in enumerate(values):
        label[place + 2, 3:6, 3:6] = value
    write(label, path)


def write(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


@pytest.fixture
def dataset(tmp_path):
    """Three subjects, one with two sessions; two pipelines of label maps, of which one was made by hand."""
    raw = tmp_path / "ds"
    (raw / "sub-01" / "func").mkdir(parents=True)
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}', encoding="utf-8")
    for stem in ("sub-01/ses-a/anat/sub-01_ses-a", "sub-01/ses-b/anat/sub-01_ses-b", "sub-02/anat/sub-02"):
        volume(raw / f"{stem}_T1w.nii.gz")
        volume(raw / f"{stem}_T2w.nii.gz")
        label_map(raw / "derivatives" / "auto" / f"{stem}_desc-aseg_dseg.nii.gz", (1, 2))
    volume(raw / "sub-02/anat/sub-02_run-2_T1w.nii.gz")
    volume(raw / "sub-03/anat/sub-03_FLAIR.nii.gz")
    by_hand = raw / "derivatives" / "manual"
    label_map(by_hand / "sub-01/ses-b/anat/sub-01_ses-b_dseg.nii.gz")
    label_map(by_hand / "sub-02/anat/sub-02_run-2_space-T1w_dseg.nii.gz")
    label_map(raw / "derivatives/lrls/sub-02/anat/sub-02_desc-lrls_dseg.nii.gz", (3, 5))
    label_map(by_hand / "sub-02/anat/sub-02_space-MNI152NLin2009cAsym_dseg.nii.gz")
    (by_hand / "dseg.tsv").write_text("index\tname\tcolor\n3\tleft lobe\t#ff0010\n17\tcore\tn/a\n99\tnone\t#000000\n")
    return raw


def test_sessions_get_the_label_maps_of_one_pipeline_with_its_names_and_colours(dataset, tmp_path):
    config = load_config(write_config(describe_folder(dataset), tmp_path / "lrls.yaml"))
    assert config.part("atlases") == ["sub-01_ses-b_T1w", "sub-02_run-2_T1w"]
    assert config.part("unlabeled") == ["sub-01_ses-a_T1w"]
    assert config.structures == {"left lobe": 3, "core": 17}
    assert config.colours == {"left lobe": "#ff0010"}
    assert cohort_faults(config, PARTS) == []


def test_what_is_left_out_of_a_bids_folder_has_a_reason(dataset):
    left_out = describe_folder(dataset)["left_out"]
    for path, reason in {
        "sub-03/anat/sub-03_FLAIR.nii.gz": "its session has no T1w",
        "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz and 2 more": "T2w beside T1w",
        "sub-02/anat/sub-02_T1w.nii.gz": "a second T1w of its session",
        "derivatives/manual/sub-02/anat/sub-02_space-MNI152NLin2009cAsym_dseg.nii.gz": "another space (MNI152NLin",
        "derivatives/auto/sub-01/ses-a/anat/sub-01_ses-a_desc-aseg_dseg.nii.gz and 2 more": "another kind than manual",
        "derivatives/lrls/sub-02/anat/sub-02_desc-lrls_dseg.nii.gz": "label maps that lrls answered",
        "sub-01/func": "func holds no anatomical images",
    }.items():
        assert [line for line in left_out if line.startswith(f"{path}: ") and reason in line], (path, left_out)


def test_a_label_map_of_another_size_or_run_is_no_scans(dataset):
    by_hand = dataset / "derivatives" / "manual"
    label_map(by_hand / "sub-01/ses-b/anat/sub-01_ses-b_dseg.nii.gz", size=(8, 9, 11))
    (by_hand / "sub-02/anat/sub-02_run-2_space-T1w_dseg.nii.gz").rename(
        by_hand / "sub-02/anat/sub-02_run-3_space-T1w_dseg.nii.gz"
    )
    found = describe_folder(dataset)
    assert found["atlases"] == []
    assert any("sub-01_ses-b_dseg.nii.gz: a label map that is not of the size" in line for line in found["left_out"])
    assert any("run-3" in line and "another image of its session" in line for line in found["left_out"])


def test_without_any_t1w_the_most_frequent_contrast_is_taken(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}", encoding="utf-8")
    for number in ("01", "02", "03"):
        volume(tmp_path / f"sub-{number}/anat/sub-{number}_FLAIR.nii.gz")
    volume(tmp_path / "sub-01/anat/sub-01_T2w.nii.gz")
    assert describe_folder(tmp_path)["unlabeled"] == ["sub-01_FLAIR", "sub-02_FLAIR", "sub-03_FLAIR"]


def test_label_maps_of_one_hemisphere_are_left_out(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}", encoding="utf-8")
    for number in ("01", "02"):
        volume(tmp_path / f"sub-{number}/anat/sub-{number}_T1w.nii.gz")
        for side in "LR":
            label_map(tmp_path / f"sub-{number}/anat/sub-{number}_hemi-{side}_dseg.nii.gz")
    label_map(tmp_path / "sub-02/anat/sub-02_dseg.nii.gz")
    found = describe_folder(tmp_path)
    assert (found["atlases"], found["unlabeled"]) == (["sub-02_T1w"], ["sub-01_T1w"])
    assert found["files"]["sub-02_T1w"][1] == "sub-02/anat/sub-02_dseg.nii.gz"
    assert any("and 3 more: a label map of one hemisphere" in line for line in found["left_out"])


@pytest.mark.parametrize(
    "inside", ["t\n  review: evil.yaml\n  #", "t\u2028workspace: evil\u2028#", "t\x85seed: 7\x85#"]
)
def test_no_name_of_a_file_becomes_a_setting(dataset, tmp_path, inside):
    (dataset / "derivatives" / "manual" / "dseg.tsv").rename(dataset / f"{inside}_dseg.tsv")
    label_map(dataset / f"{inside}.nii.gz")
    config = load_config(write_config(describe_folder(dataset), tmp_path / "lrls.yaml"))
    assert (config.data.review, config.seed) == (None, 0) and config.workspace.name == "ds"
    assert config.structures == {"structure_3": 3, "structure_17": 17}
    assert "a name that is not plain text; rename it" in (tmp_path / "lrls.yaml").read_text(encoding="utf-8")


def test_no_name_of_a_dataset_becomes_a_setting(tmp_path):
    volume(tmp_path / "images/p1.nii.gz")
    label_map(tmp_path / "labels/p1.nii.gz")
    name = "a: 9\nseed: 7"
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {name: 3}}), encoding="utf-8")
    text = config_text(describe_folder(tmp_path), tmp_path / "lrls.yaml")
    assert yaml.safe_load(text)["structures"] == {name: 3, "structure_17": 17}
    assert yaml.safe_load(text)["seed"] == 0
