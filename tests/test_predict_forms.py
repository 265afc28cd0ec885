"""What `lrls predict` writes for other programs, read back by those programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import ants
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import slicerio
from conftest import Project, work_here
from pytest import MonkeyPatch
from test_predict import write_series

from stages.data.phantoms import STRUCTURES, make_phantom

COLOURED = "core"


@pytest.fixture(scope="module")
def project(tmp_path_factory, new_project, no_pictures_in_module) -> Project:
    """A project whose method registers one atlas and trains nothing."""
    with MonkeyPatch.context() as patch:
        work_here(patch)
        project = new_project(tmp_path_factory.mktemp("forms"), colours={COLOURED: "#102030"})
        project.made("preprocess")
        yield project


def predict(project: Project, out: Path, *arguments: str):
    return project.lrls("predict", "--method", "affine", "--out", str(out), *arguments)


def array(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def oblique_and_flipped(scans: Path, path: Path) -> Path:
    """A scan whose axes are flipped, permuted and not those of the world."""
    image = sitk.Flip(
        sitk.PermuteAxes(sitk.ReadImage(str(scans / "images" / "test_1.nii.gz")), [2, 0, 1]), [True, False, True]
    )
    tilt = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.15, 0.2).GetMatrix(), (3, 3))
    image.SetDirection((tilt @ np.reshape(image.GetDirection(), (3, 3))).ravel())
    image.SetOrigin((tilt @ np.array(image.GetOrigin())).tolist())
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture(scope="module")
def answers(project, scans, tmp_path_factory) -> dict[str, Path]:
    """One oblique, flipped scan answered in every format, in a folder each."""
    folder = tmp_path_factory.mktemp("answers")
    scan = oblique_and_flipped(scans, folder / "p1.nii.gz")
    for form in ("nifti", "nrrd", "mha", "seg.nrrd"):
        done = predict(project, folder / form, str(scan), "--format", form, "--transforms")
        assert done.code == 0, done.err
    return {form: folder / form for form in ("nifti", "nrrd", "mha", "seg.nrrd")}


def test_every_format_has_the_same_voxels_at_the_same_places(answers):
    expected = sitk.ReadImage(str(answers["nifti"] / "p1.nii.gz"))
    assert sitk.GetArrayViewFromImage(expected).any()
    for form in ("nrrd", "mha", "seg.nrrd"):
        assert not (answers[form] / "p1.nii.gz").exists()
        found = sitk.ReadImage(str(answers[form] / f"p1.{form}"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
        for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(found, geometry)() == pytest.approx(getattr(expected, geometry)(), abs=1e-5)


def test_slicers_reader_finds_segments_with_names_colours_and_places(answers):
    found = slicerio.read_segmentation(str(answers["seg.nrrd"] / "p1.seg.nrrd"))
    assert {segment["name"]: segment["labelValue"] for segment in found["segments"]} == STRUCTURES
    own = next(segment for segment in found["segments"] if segment["name"] == COLOURED)
    assert own["color"] == pytest.approx([0x10 / 255, 0x20 / 255, 0x30 / 255], abs=1e-5)
    label = sitk.ReadImage(str(answers["nifti"] / "p1.nii.gz"))
    for segment in found["segments"]:
        voxels = np.argwhere(found["voxels"] == segment["labelValue"])  # (i, j, k)
        expected = np.argwhere(sitk.GetArrayFromImage(label) == segment["labelValue"])[:, ::-1]
        place = (found["ijkToLPS"] @ [*voxels.mean(0), 1])[:3]
        assert place == pytest.approx(
            label.TransformContinuousIndexToPhysicalPoint(expected.mean(0).tolist()), abs=1e-3
        )
        low, high = np.reshape(segment["extent"], (3, 2)).T
        np.testing.assert_array_equal((low, high), (voxels.min(0), voxels.max(0)))


def test_a_segmentation_of_ours_is_a_label_map_of_ours(answers, scans, tmp_path):
    from stages.data.intake import read_image

    label = read_image(answers["seg.nrrd"] / "p1.seg.nrrd", "p1", "label map")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), array(answers["nifti"] / "p1.nii.gz"))


def test_label_tables_have_the_chosen_colours(answers):
    table = (answers["nifti"] / "labels.ctbl").read_text(encoding="utf-8")
    assert f"{STRUCTURES[COLOURED]} {COLOURED} 16 32 48 255" in table


def test_ants_lays_the_atlas_where_lrls_laid_it(answers, scans):
    """On a coarse grid the surfaces differ; the places do not."""
    (file,) = (answers["nifti"] / "transforms" / "p1").iterdir()
    assert file.name == "atlas_1.h5"
    ours = ants.image_read(str(answers["nifti"] / "p1.nii.gz"))
    atlas = ants.image_read(str(scans / "labels" / "atlas_1.nii.gz"))
    theirs = ants.apply_transforms(ours, atlas, [str(file)], interpolator="genericLabel").numpy()
    for value in (STRUCTURES["left_lobe"], STRUCTURES["right_lobe"]):
        own, found = ours.numpy() == value, theirs == value
        assert 2 * (own & found).sum() / (own.sum() + found.sum()) > 0.8
        assert np.argwhere(own).mean(0) == pytest.approx(np.argwhere(found).mean(0), abs=0.5)


@pytest.fixture(scope="module")
def derivatives(project, scans, tmp_path_factory) -> Path:
    """A BIDS folder with the answers to two of its scans, and to three of other names."""
    raw = tmp_path_factory.mktemp("bids") / "ds"
    for stem, case in (("sub-01/ses-a/anat/sub-01_ses-a_T1w", "test_1"), ("sub-02/anat/sub-02_run-1_T1w", "test_2")):
        (raw / stem).parent.mkdir(parents=True)
        shutil.copy(scans / "images" / f"{case}.nii.gz", raw / f"{stem}.nii.gz")
    (raw / "dataset_description.json").write_text(
        json.dumps({"Name": "x", "BIDSVersion": "1.10.0", "DatasetDOI": "doi:10.18112/openneuro.ds000001.v1.0.0"})
    )
    others = [
        str(shutil.copy(scans / "images" / f"{case}.nii.gz", raw.parent / f"p_{place}.nii.gz"))
        for place, case in enumerate(("dev_1", "free_1", "free_2"), start=3)
    ]
    out = raw / "derivatives" / "lrls"
    done = predict(project, out, str(raw), *others, "--bids", "--transforms")
    assert done.code == 0, done.err
    return out


def issues(folder: Path) -> list[str]:
    """What BIDS's own validator says is wrong."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run(
        [validator, "--format", "json", "--ignoreWarnings", folder], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)["issues"]["issues"]
    return [f"{issue['code']} {issue.get('location', '')}" for issue in found if issue["severity"] == "error"]


def test_the_validator_of_bids_accepts_the_answers(derivatives):
    names = {path.relative_to(derivatives).as_posix() for path in derivatives.rglob("*_dseg*")}
    stems = (
        "sub-01/ses-a/anat/sub-01_ses-a",
        "sub-02/anat/sub-02_run-1",
        *(f"sub-p{k}/anat/sub-p{k}" for k in (3, 4, 5)),
    )
    assert names == {f"{stem}_desc-lrls_dseg.{end}" for stem in stems for end in ("nii.gz", "json", "tsv")}
    about = json.loads((derivatives / f"{stems[0]}_desc-lrls_dseg.json").read_text(encoding="utf-8"))
    assert about["Sources"] == ["bids:raw:sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz"]
    whole = json.loads((derivatives / "dataset_description.json").read_text(encoding="utf-8"))
    assert whole["SourceDatasets"] == [{"DOI": "doi:10.18112/openneuro.ds000001.v1.0.0"}]
    assert whole["DatasetLinks"] == {"raw": "../../"}
    assert (derivatives / "outliers.csv").is_file() and (derivatives / "outliers.png").is_file()
    assert issues(derivatives) == []


def test_the_validator_of_bids_rejects_a_broken_copy(derivatives, tmp_path):
    broken = Path(shutil.copytree(derivatives, tmp_path / "broken"))
    (broken / "dataset_description.json").write_text('{"Name": "x"}')
    label = broken / "sub-02" / "anat" / "sub-02_run-1_desc-lrls_dseg.nii.gz"
    label.rename(label.with_name("sub-03_run-1_desc-lrls_dseg.nii.gz"))
    (broken / "sub-p3" / "anat" / "sub-p3_desc-lrls_dseg.tsv").write_text("value\tname\n1\tx\n")
    found = " ".join(issues(broken))
    assert "JSON_KEY_REQUIRED" in found or "BIDSVersion" in found
    assert "sub-03" in found


def test_what_cannot_be_written_is_refused_in_one_line(project, scans, tmp_path):
    scan = str(scans / "images" / "test_1.nii.gz")
    for arguments, expected in (
        (("--bids", "--format", "mha"), "--format mha: label maps of BIDS are NIfTI files; leave out"),
        (("--bids", str(shutil.copy(scan, tmp_path / "test-1.nii.gz"))), "would both be sub-test1/anat/sub-test1"),
    ):
        done = predict(project, tmp_path / "out", scan, *arguments)
        assert done.code == 1 and expected in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    done = predict(project, tmp_path / "noted", scan, "--rtstruct")
    assert done.code == 0 and "this scan is no DICOM series" in done.out


def test_answers_of_bids_follow_no_link(project, scans, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub-test1").symlink_to(elsewhere)
    scan = str(scans / "images" / "test_1.nii.gz")
    done = predict(project, tmp_path / "out", scan, "--bids", "--force")
    assert done.code == 1 and "is a link" in done.out
    assert list(elsewhere.iterdir()) == []


def test_contours_of_a_dicom_series_hold_its_label_map(project, tmp_path):
    image = make_phantom(np.random.default_rng([11, 5]), "LPS")[0]
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    image.SetOrigin((np.array(image.GetOrigin()) - middle).round(3).tolist())
    write_series(image, tmp_path / "series")
    done = predict(project, tmp_path / "out", str(tmp_path / "series"), "--rtstruct", "--format", "mha")
    assert done.code == 0 and "note" not in done.out, done.out
    label = array(tmp_path / "out" / "series.mha")
    found = pydicom.dcmread(tmp_path / "out" / "series_rtstruct.dcm")
    names = [roi.ROIName for roi in found.StructureSetROISequence]
    assert names == list(project.config.structures)
    slices = [len({c.ContourData[2] for c in roi.get("ContourSequence", [])}) for roi in found.ROIContourSequence]
    assert slices == [int((label == value).any((1, 2)).sum()) for value in project.config.structures.values()]
    assert list(found.ROIContourSequence[names.index(COLOURED)].ROIDisplayColor) == [16, 32, 48]
