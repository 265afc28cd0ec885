"""`lrls init` leaves no file out without a word: it couples what belongs together, and names the rest."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import SimpleITK as sitk

from stages.config import load_config
from stages.data.checks import cohort_faults
from stages.data.folders import files_in, name_of
from stages.data.initialize import describe_folder, write_config

PARTS = ("atlases", "unlabeled", "test")


def volume(path, *, is_label=False, shape=(8, 9, 10), dtype=None):
    """An image of noise, different for every name, or a label map with values 1 and 2; endings may be in capitals."""
    if is_label:
        voxels = np.zeros(shape, np.uint8)
        voxels[1:4, 2:6, 2:6], voxels[4:7, 2:6, 2:6] = 1, 2
    else:
        voxels = np.random.default_rng(list(path.name.encode())).uniform(0, 900, shape).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(path.name.lower())
    sitk.WriteImage(sitk.GetImageFromArray(voxels.astype(dtype or voxels.dtype)), str(written))
    written.rename(path)
    return path


def label_map(path, **settings):
    return volume(path, is_label=True, **settings)


def described(folder):
    return describe_folder(folder)


def couples(folder):
    """Image and label map of every labelled case, and the lines for what was left out."""
    about = describe_folder(folder)
    return about["files"], about["left_out"]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("img{}.nii.gz", "label{}.nii.gz"),
        ("p{}_T1w.nii.gz", "p{}_dseg.nii.gz"),
        ("p{}.nrrd", "p{}.seg.nrrd"),
        ("P{}.NII.GZ", "p{}-label.nii.gz"),
        ("p{}_0000.nii.gz", "p{}_seg.nii.gz"),
        ("patient{}.nii.gz", "truth_{}_final.nii.gz"),
        ("p{0}.nii/p{0}.nii", "p{}.nii.gz"),
        ("ct_p{}.mha", "SEG_p{}.nii.gz"),
    ],
)
def test_images_and_label_maps_of_different_names_are_coupled_and_checked_without_a_fault(tmp_path, image, label):
    scans = tmp_path / "scans"
    for number in ("0001", "0002", "0009"):
        volume(scans / "images" / image.format(number))
        if number != "0009":
            label_map(scans / "labels" / label.format(number))

    config = load_config(write_config(describe_folder(scans), tmp_path / "lrls.yaml"))

    assert [len(config.part(part)) for part in PARTS] == [2, 1, 0]
    for case in config.part("atlases"):
        assert [path.as_posix() for path in config.data.files[case]] == [
            f"images/{image.format(case[-4:] if case[-4:].isdigit() else case[1:5])}",
            f"labels/{label.format(case[-4:] if case[-4:].isdigit() else case[1:5])}",
        ]
    assert config.structure_values() == {"structure_1": [1], "structure_2": [2]}
    assert cohort_faults(config, PARTS) == []


@pytest.mark.parametrize("place", ["", "sub-{0}/anat/", "sub-{0}/ses-1/anat/"])
def test_a_bids_folder_has_images_and_label_maps_and_no_label_map_is_a_scan(tmp_path, place):
    scans = tmp_path / "bids"
    for number in ("01", "02", "09"):
        volume(scans / place.format(number) / f"sub-{number}_T1w.nii.gz")
        volume(scans / place.format(number) / f"sub-{number}_T2w.nii.gz")
        if number != "02":
            label_map(scans / place.format(number) / f"sub-{number}_space-T1w_dseg.nii.gz")
    label_map(scans / f"sub-11{'_dseg'}.nii.gz")
    (scans / "dataset_description.json").write_text("{}", encoding="utf-8")

    config = load_config(write_config(describe_folder(scans), tmp_path / "lrls.yaml"))

    assert config.part("atlases") == ["sub-01_T1w", "sub-09_T1w"]
    assert config.part("unlabeled") == ["sub-02_T1w"]
    assert cohort_faults(config, PARTS) == []
    text = (tmp_path / "lrls.yaml").read_text(encoding="utf-8")
    assert "# Left out: sub-11_dseg.nii.gz: a label map that no image goes with" in text
    assert "sub-02_T2w.nii.gz: beside sub-02_T1w.nii.gz; one image per scan" in text or (
        f"{place.format('01')}sub-01_T2w.nii.gz and 2 more: T2w beside T1w; one contrast for all scans" in text
    )


def test_what_cannot_be_coupled_is_named_and_nothing_says_that_no_scan_has_labels(tmp_path):
    for case in ("a", "b"):
        volume(tmp_path / "images" / f"{case}.nii.gz")
    for number in range(14):
        label_map(tmp_path / "labels" / f"x{number}.nii.gz")

    about = describe_folder(tmp_path)

    assert about["unlabeled"] == ["a", "b"]
    assert "No label map goes with a scan; see what was left out." in about["notes"]
    assert not any("No scan has labels" in note for note in about["notes"])
    assert about["left_out"][0] == "labels/x0.nii.gz: a label map that no image goes with"
    assert (len(about["left_out"]), about["left_out"][-1]) == (11, "4 more")


def test_names_alone_couple_nothing_of_another_size(tmp_path):
    volume(tmp_path / "images" / "img01.nii.gz")
    label_map(tmp_path / "labels" / "label01.nii.gz", shape=(8, 9, 11))

    assert couples(tmp_path) == ({}, ["labels/label01.nii.gz: not of the size of images/img01.nii.gz"])


def test_two_label_maps_of_a_scan_are_left_out_unless_one_is_a_mask(tmp_path):
    volume(tmp_path / "images" / "p1.nii.gz")
    for name in ("p1_seg", "p1_mask"):
        label_map(tmp_path / "labels" / f"{name}.nii.gz")
    assert couples(tmp_path)[0] == {"p1": ["images/p1.nii.gz", "labels/p1_seg.nii.gz"]}

    label_map(tmp_path / "labels" / "p1_gt.nii.gz")
    files, left_out = couples(tmp_path)
    assert files == {}
    assert left_out == [
        f"labels/p1_{word}.nii.gz: one of 3 label maps of a scan; keep one of them" for word in ("gt", "mask", "seg")
    ]


def test_files_that_are_not_read_are_named_with_the_reason(tmp_path):
    volume(tmp_path / "images" / "p1.nii.gz")
    label_map(tmp_path / "labels" / "p2.nii.gz").rename(tmp_path / "elsewhere.nii.gz")
    os.symlink("nowhere", tmp_path / "labels" / "p1.nii.gz")
    for name in ("p3.mgz", "p4.hdr", "p4.img", "slice.dcm", "p5.nii.bz2", "._p1.nii.gz", "p6.nii.gz", "p\x1b[7m.nii"):
        (tmp_path / "images" / name).write_bytes(b"" if name == "p6.nii.gz" else b"x" * 400)

    assert describe_folder(tmp_path)["left_out"] == [
        "labels/p1.nii.gz: a link to a file that is not there",
        "images/p?[7m.nii: a name that is not plain text; rename it",
        *(f"images/{name}: files of this kind are not read; convert it to .nii.gz" for name in ("p3.mgz", "p4.hdr")),
        *(
            f"images/{name}: files of this kind are not read; convert it to .nii.gz"
            for name in ("p4.img", "p5.nii.bz2")
        ),
        "images/p6.nii.gz: an empty file; copy it again",
        "images: 1 loose DICOM file; put each series into a folder of its own",
        "1 hidden file in images",
    ]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs permissions that count")
def test_a_folder_without_permission_is_named(tmp_path):
    volume(tmp_path / "images" / "p1.nii.gz")
    (tmp_path / "images" / "closed").mkdir(mode=0)
    assert couples(tmp_path)[1] == ["images/closed: a folder that cannot be read; change its permissions"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    volume(tmp_path / "images" / "p1.nii.gz")
    (tmp_path / "images" / "closed").mkdir()
    listed = type(tmp_path).iterdir

    def iterdir(self):
        if self.name == "closed":
            raise PermissionError
        return listed(self)

    monkeypatch.setattr(type(tmp_path), "iterdir", iterdir)
    assert files_in(tmp_path, ["images"], []).left_out == [
        "images/closed: a folder that cannot be read; change its permissions"
    ]


def test_series_in_nested_folders_are_scans_of_different_names(tmp_path):
    for patient in ("p1", "p2"):
        folder = tmp_path / "images" / patient / "series"
        folder.mkdir(parents=True)
        for z in range(4):
            plane = sitk.GetImageFromArray(np.full((1, 5, 6), 10 * z + len(patient), np.int16))
            for tag, value in {
                "0008|0060": "MR", "0008|0016": "1.2.840.10008.5.1.4.1.1.4", "0008|0018": f"1.2.{patient[1]}.{z}",
                "0020|000d": "1.2", "0020|000e": f"1.3.{patient[1]}", "0020|0013": str(z),
                "0020|0032": f"0\\0\\{3 * z}", "0020|0037": "1\\0\\0\\0\\1\\0",
            }.items():  # fmt: skip
                plane.SetMetaData(tag, value)
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(folder / f"{z}.dcm"))
            writer.Execute(plane)

    about = describe_folder(tmp_path)

    assert about["unlabeled"] == ["series", "images_p2_series"]
    assert about["files"]["series"] == ["images/p1/series"]
    assert about["left_out"] == []


def test_scans_that_are_only_numbered_are_no_channels(tmp_path):
    for number in (1, 2):
        volume(tmp_path / "images" / f"scan_000{number}.nii.gz")
        label_map(tmp_path / "labels" / f"scan_000{number}.nii.gz")
    assert describe_folder(tmp_path)["atlases"] == ["scan_0001", "scan_0002"]


def test_label_maps_that_cannot_be_used_are_named_once_and_add_no_structures(tmp_path):
    for case in ("p1", "p2", "p3"):
        volume(tmp_path / "images" / f"{case}.nii.gz")
    volume(tmp_path / "labels" / "p1.nii.gz", dtype=np.int16)  # an image
    label_map(tmp_path / "labels" / "p2.nii.gz")
    holes = np.zeros((8, 9, 10), np.float32)
    holes[0, 0, 0] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(holes), str(tmp_path / "labels" / "p3.nrrd"))

    about = describe_folder(tmp_path)

    assert about["structures"] == {"structure_1": 1, "structure_2": 2}
    assert [note for note in about["notes"] if note.startswith("Case")] == [
        "Case p1: label map has 489 different values: it looks like an image; put the scan's label map in its place.",
        "Case p3: label map has 1 NaN voxel; replace these voxels by 0 or export it again.",
    ]


def test_the_value_ignore_is_named_and_becomes_no_background(tmp_path):
    volume(tmp_path / "imagesTr" / "a_0000.nii.gz")
    label_map(tmp_path / "labelsTr" / "a.nii.gz")
    text = json.dumps({"channel_names": {"0": "MR"}, "labels": {"background": 0, "liver": 1, "ignore": 2}})
    (tmp_path / "dataset.json").write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a byte order mark

    about = describe_folder(tmp_path)

    assert about["structures"] == {"liver": 1}
    assert any(note.startswith("Label value 2 is nnU-Net's ignore: voxels that nobody") for note in about["notes"])
    config = load_config(write_config(about, tmp_path / "lrls.yaml"))
    assert [fault.code for fault in cohort_faults(config, ("atlases",))] == ["label-value"]


def test_a_name_is_compared_without_the_words_for_its_role():
    from pathlib import Path

    for path in ("img0007.nii.gz", "label_0007.nrrd", "0007_T1w.NII.GZ", "0007.seg.nrrd", "0007_0000.nii"):
        assert name_of(Path(path)).key == "0007"
    assert name_of(Path("seg.nii.gz")).key == "seg"  # a word alone is a name
