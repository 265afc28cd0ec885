"""New scans in, label maps out: the same answers as `eval`, wherever and however a scan is stored."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import Project, work_here
from pytest import MonkeyPatch

from stages import Prediction, Predictor, load_model
from stages.answering.answered import AnswerFolder
from stages.calibrate import calibrated_model
from stages.data.new_scans import find_scans
from stages.data.phantoms import STRUCTURES, make_phantom
from stages.errors import LrlsError
from stages.parts.metrics import score_structures
from stages.predict import shown
from stages.workflow import trained

METHODS = ("best", "unet", "voxelmorph")  # fused, network alone, propagated labels
GEOMETRY = ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")


@pytest.fixture(scope="module")
def serial() -> Iterator[None]:
    """Cases are worked on in this process; nothing here is aligned by ANTs but where a test says so."""
    with MonkeyPatch.context() as patch:
        work_here(patch)
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory, new_project, serial, no_pictures_in_module) -> Project:
    """A project in which the methods are scored."""
    project = new_project(
        tmp_path_factory.mktemp("predict"),
        methods={"best": {"coarse_steps": 3, "fine_steps": 2}, "unet": {"train_seg": {"steps": 30}}},
    )
    for method in METHODS:
        project.made("run", "--method", method)
    return project


@pytest.fixture(scope="module")
def exported(shared, tmp_path_factory) -> dict[str, Path]:
    """What each method is exported as, in a folder of their own."""
    folder = tmp_path_factory.mktemp("exported")
    for method in METHODS:
        shared.made("calibrate", "--method", method, "--couples", "9")
        shared.made("export", "--method", method, "--out", str(folder / f"{method}.zip"))
    return {method: folder / f"{method}.zip" for method in METHODS}


def predict(project: Project, model: Path, *arguments: str):
    """`lrls predict MODEL ARGUMENTS`."""
    return Project.lrls(_At(project.folder, model), "predict", *arguments)


class _At(Project):
    def __init__(self, folder: Path, file: Path) -> None:
        super().__init__(folder)
        object.__setattr__(self, "file", file)

    @property
    def config_file(self) -> Path:
        return self.file


def array(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("method", METHODS)
def test_a_scan_of_the_cohort_is_answered_as_eval_answers_it(method, shared, exported, scans, tmp_path):
    images = [str(scans / "images" / f"{case}.nii.gz") for case in ("test_1", "test_2")]
    threads = ("--set", "threads=1")  # as eval has it; sums are rounded otherwise on more
    done = predict(shared, exported[method], *images, *threads, "--out", str(tmp_path / "of_model"))
    assert done.code == 0, done.err
    before = {path: path.stat().st_mtime_ns for path in shared.folder.rglob("*")}
    shared.made("predict", *images, "--method", method, "--out", str(tmp_path / "of_config"))
    assert {path: path.stat().st_mtime_ns for path in shared.folder.rglob("*")} == before

    for case in ("test_1", "test_2"):
        expected = array(shared.workspace / method / "scores" / "v0001" / "labels" / f"{case}.nii.gz")
        assert expected.any()
        for out in ("of_model", "of_config"):
            found = sitk.ReadImage(str(tmp_path / out / f"{case}.nii.gz"))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(found), expected)
            image = sitk.ReadImage(str(scans / "images" / f"{case}.nii.gz"))
            for geometry in GEOMETRY:
                assert getattr(found, geometry)() == pytest.approx(getattr(image, geometry)(), abs=1e-5)


def test_a_model_needs_nothing_of_the_cohort(shared, exported, scans, tmp_path):
    image = tmp_path / "new.nii.gz"
    shutil.copy(scans / "images" / "test_1.nii.gz", image)
    expected = array(shared.workspace / "best" / "scores" / "v0001" / "labels" / "test_1.nii.gz")
    moved = shared.folder.rename(shared.folder.with_name("gone"))
    try:
        found = load_model(exported["best"], threads=1).predict(image)
    finally:
        moved.rename(shared.folder)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found.label), expected)


def test_what_predict_writes_and_nothing_else(shared, exported, scans, tmp_path):
    (tmp_path / "new").mkdir()
    shutil.copy(scans / "images" / "test_1.nii.gz", tmp_path / "new" / "p1.nii.gz")
    before = {path: path.stat().st_mtime_ns for path in [*shared.folder.rglob("*"), *scans.rglob("*")]}

    done = predict(shared, exported["best"], str(tmp_path / "new"), "--out", str(tmp_path / "out"), "--probabilities")

    assert done.code == 0, done.err
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "new/p1.nii.gz",
        *(f"out/{name}" for name in ("p1.nii.gz", "labels.txt", "labels.ctbl", "volumes.csv", "qc.csv", "qc/p1.png")),
        *(f"out/probabilities/p1/{index:03d}.nii.gz" for index in range(1, 5)),
        "out/.lrls/model.json",
        *(f"out/.lrls/{file.name}" for file in (tmp_path / "out" / ".lrls").glob("?*" * 16 + ".json")),
    }
    assert len(list((tmp_path / "out" / ".lrls").iterdir())) == 2
    assert {path: path.stat().st_mtime_ns for path in [*shared.folder.rglob("*"), *scans.rglob("*")]} == before
    label, image = array(tmp_path / "out" / "p1.nii.gz"), sitk.ReadImage(str(tmp_path / "new" / "p1.nii.gz"))
    volumes = pd.read_csv(tmp_path / "out" / "volumes.csv").iloc[0]
    for name, value in STRUCTURES.items():
        expected = (label == value).sum() * np.prod(image.GetSpacing()) / 1000
        assert volumes[f"{name}_ml"] == pytest.approx(expected, rel=1e-4)
    qc = pd.read_csv(tmp_path / "out" / "qc.csv").iloc[0]
    assert 0 <= qc["estimated_dsc"] <= 1
    assert qc["agreement"] < 1 and qc["stability"] < 1


def test_volumes_have_intervals_and_five_scans_show_which_is_unlike_the_others(shared, exported, scans, tmp_path):
    out, names = tmp_path / "out", ("dev_1", "free_1", "free_2", "test_1", "test_2")
    done = predict(
        shared, exported["unet"], *(str(scans / "images" / f"{name}.nii.gz") for name in names), "--out", str(out)
    )
    assert done.code == 0, done.err
    volumes = pd.read_csv(out / "volumes.csv")
    for name in STRUCTURES:
        low, ml, high = (volumes[f"{name}_ml{end}"] for end in ("_low", "", "_high"))
        assert (low <= ml).all() and (ml < high).all() and (low >= 0).all()
    found = pd.read_csv(out / "outliers.csv")
    assert list(found.columns) == ["case", "what", "value", "median", "z"] and (found["z"].abs() >= 3.5).all()
    assert (out / "outliers.png").stat().st_size > 5000


def test_parts_of_the_scans_come_into_one_folder_and_tables_with_the_command_without_a_part(
    shared, exported, scans, tmp_path
):
    given = [str(scans / "images" / f"{name}.nii.gz") for name in ("free_1", "test_1", "test_2")]
    answers = {}
    for out, parts in ((tmp_path / "whole", [[]]), (tmp_path / "parts", [["--part", f"{k}/4"] for k in (2, 4, 1, 3)])):
        for part in parts:
            assert not (out / "volumes.csv").exists() and not (out / "labels.txt").exists()
            done = predict(shared, exported["unet"], *given, "--out", str(out), *part)
            assert done.code == 0, done.err
        if out.name == "parts":
            done = predict(shared, exported["unet"], *given, "--out", str(out))
            assert "3 of 3 scans were answered before and have not changed" in done.out
        files = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
        answers[out.name] = {path.relative_to(out): path.read_bytes() for path in files}
    assert answers["parts"] == answers["whole"]


@pytest.mark.parametrize("part", ["0/3", "4/3", "2", "1/2/3", "a/b"])
def test_a_part_that_is_none_is_refused(part, shared, exported, scans, tmp_path):
    done = predict(shared, exported["unet"], str(scans), "--out", str(tmp_path / "out"), "--part", part)
    assert done.code == 1 and not (tmp_path / "out").exists()
    assert done.err == f"lrls: --part {part}: expected a part and how many there are, such as 3/10.\n"


def test_parts_that_begin_at_the_same_time_open_one_folder_and_leave_a_strange_one_alone(tmp_path):
    out, scans = tmp_path / "out", [("p1", tmp_path / "new" / "p1.nii.gz")]
    with ThreadPoolExecutor(8) as pool:
        opened = [pool.submit(AnswerFolder, out, scans, "d1", force=False, is_shared=True) for _ in range(8)]
        assert [each.result().all() for each in opened] == [[]] * 8
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "notes.txt").write_text("mine")
    for model, folder in (("d1", strange), ("d2", out)):
        with pytest.raises(LrlsError, match="is not empty"):
            AnswerFolder(folder, scans, model, force=False, is_shared=True)
    assert [path.name for path in strange.iterdir()] == ["notes.txt"]


def test_export_writes_the_network_for_other_programs_and_says_how_near_it_comes(shared, tmp_path):
    out = tmp_path / "bundle"
    done = shared.made("export", "--method", "unet", "--to", "monai", "--out", str(out))
    assert done.out.startswith("verified against torch: logits differ by at most ")
    assert (out / "models" / "model.ts").is_file() and (out / "configs" / "inference.json").is_file()
    refused = shared.lrls("export", "--method", "voxelmorph", "--to", "onnx", "--out", str(tmp_path / "x"))
    assert refused.code == 1 and "--to onnx: voxelmorph has no segmentation network" in refused.err


def test_probabilities_are_those_that_the_label_map_comes_from(exported, scans):
    predictor = load_model(exported["unet"], threads=1)
    found = predictor.predict(scans / "images" / "test_1.nii.gz")
    each = np.stack([sitk.GetArrayFromImage(found.probability(index)) for index in range(5)])
    np.testing.assert_allclose(each.sum(0), 1, atol=1e-4)
    clear = np.sort(each, 0)[-1] - np.sort(each, 0)[-2] > 1e-3
    np.testing.assert_array_equal(each.argmax(0)[clear], found.classes[clear])
    assert found.label.GetPixelIDTypeAsString() == "16-bit unsigned integer"  # of values up to 1000


def test_the_picture_shows_the_label_map_that_is_written(exported, scans):
    found = load_model(exported["unet"], threads=1).predict(scans / "images" / "test_1.nii.gz")
    on_grid = found.answer.probabilities.argmax(0).numpy()
    assert (shown(found) == on_grid).mean() > 0.9  # but for nearest neighbours, there and back
    without = replace(found, classes=np.where(found.classes == 2, 0, found.classes))
    assert 2 not in shown(without) and shown(found).shape == on_grid.shape


def test_an_unreadable_scan_costs_one_line_and_the_others_are_done(shared, exported, scans, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    for name in ("a", "c"):
        shutil.copy(scans / "images" / "test_1.nii.gz", new / f"{name}.nii.gz")
    (new / "b.nii.gz").write_bytes((new / "a.nii.gz").read_bytes()[:2000])
    sitk.WriteImage(sitk.Image([12, 12, 12], sitk.sitkFloat32), str(new / "d.nrrd"))

    done = predict(shared, exported["unet"], str(new), str(tmp_path / "lost.mha"), "--out", str(tmp_path / "out"))

    assert done.code == 1
    assert [line for line in done.out.splitlines() if line.startswith("case")] == [
        "case b: image is unreadable or truncated; copy or export the file again.",
        "case d: image is empty (every voxel is 0); export the scan again or take the case out of the configuration.",
        "case lost: no such file or folder; correct the path.",
    ]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]


def test_scans_are_worked_on_a_few_at_a_time(exported, scans, monkeypatch):
    monkeypatch.setattr("stages.answering.predictor.AT_ONCE", 2)
    names = ["test_1", "lost", "test_2", "test_1", "dev_1"]
    found = list(
        load_model(exported["unet"], threads=1).predict_many([scans / "images" / f"{n}.nii.gz" for n in names])
    )
    assert [each.case for each in found] == names
    assert [isinstance(each, Prediction) for each in found] == [True, False, True, True, True]
    np.testing.assert_array_equal(found[0].classes, found[3].classes)


def test_a_scan_that_cannot_be_registered_does_not_stop_the_others(exported, scans, monkeypatch):
    predictor = load_model(exported["best"], threads=1)

    def register(optimisation, place, moving, fixed):
        if fixed.mean() == bad:
            raise LrlsError("case test_2: ANTs could not register it.")
        return place, np.zeros((3, *fixed.shape), np.float32)

    monkeypatch.setattr("stages.answering.registering.on_arrays", register)
    paths = [scans / "images" / f"{case}.nii.gz" for case in ("test_1", "test_2", "dev_1")]
    bad = predictor._prepared(paths[1:2], ["test_2"])[0].image.mean()
    found = list(predictor.predict_many(paths))
    assert [isinstance(each, Prediction) for each in found] == [True, False, True]
    assert found[1].reason == "case test_2: ANTs could not register it."
    assert [each.case for each in found] == ["test_1", "test_2", "dev_1"]


def test_existing_files_are_kept_unless_forced(shared, exported, scans, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    scan = str(scans / "images" / "test_1.nii.gz")
    done = predict(shared, exported["unet"], scan, "--out", str(out))
    assert (done.code, done.err.strip()) == (
        1,
        f"lrls: --out {out} is not empty; name another folder, or write into it with --force.",
    )
    assert predict(shared, exported["unet"], scan, "--out", str(out), "--force").code == 0
    assert (out / "notes.txt").read_text() == "mine"
    again = predict(shared, exported["unet"], str(out / "test_1.nii.gz"), "--out", str(out), "--force")
    assert again.code == 1 and "would be written over" in again.err


def test_scans_of_one_name_are_told_apart_by_their_folders(scans, tmp_path):
    for folder in ("p1", "p2"):
        (tmp_path / folder).mkdir()
        shutil.copy(scans / "images" / "test_1.nii.gz", tmp_path / folder / "t1.nii.gz")
    assert [case for case, _ in find_scans([tmp_path / "p1", tmp_path / "p2"])[0]] == ["p1_t1", "p2_t1"]
    (tmp_path / "p1" / "t1.mha").write_bytes(b"")
    with pytest.raises(LrlsError, match="two scans are named p1_t1; rename one of them"):
        find_scans([tmp_path / "p1", tmp_path / "p2"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LrlsError, match="holds no scan"):
        find_scans([tmp_path / "empty"])


def write_series(image: sitk.Image, folder: Path) -> None:
    """A DICOM series of an image of integers, as SimpleITK's examples write one."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(image.GetDirection(), (3, 3))
    common = {
        "0008|0060": "MR",
        "0008|0020": "20200101",
        "0008|0030": "120000",
        "0010|0010": "Test^Phantom",
        "0010|0020": "1",
        "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
        "0020|000e": "1.2.826.0.1.3680043.2.1125.2",
        "0020|0052": "1.2.826.0.1.3680043.2.1125.3",
        "0020|0037": "\\".join(f"{v:.8f}" for v in (*direction[:, 0], *direction[:, 1])),
    }
    for k in range(image.GetDepth()):
        plane = image[:, :, k]
        for key, value in common.items():
            plane.SetMetaData(key, value)
        position = image.TransformIndexToPhysicalPoint((0, 0, k))
        plane.SetMetaData("0020|0032", "\\".join(f"{v:.8f}" for v in position))
        plane.SetMetaData("0020|0013", str(k + 1))
        plane.SetMetaData("0008|0018", f"1.2.826.0.1.3680043.2.1125.4.{k + 1}")
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        writer.Execute(plane)


def test_a_dicom_series_is_answered_as_nifti_is_and_gets_a_dicom_seg(shared, exported, tmp_path):
    import highdicom as hd

    image = make_phantom(np.random.default_rng([11, 5]), "LPS")[0]
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    image.SetOrigin((np.array(image.GetOrigin()) - middle).round(3).tolist())
    sitk.WriteImage(image, str(tmp_path / "nifti.nii.gz"))
    write_series(image, tmp_path / "series")
    out = tmp_path / "out"

    done = predict(
        shared, exported["unet"], str(tmp_path / "series"), str(tmp_path / "nifti.nii.gz"), "--out", str(out)
    )

    assert done.code == 0, done.out + done.err
    label = sitk.ReadImage(str(out / "series.nii.gz"))
    assert (array(out / "series.nii.gz") == array(out / "nifti.nii.gz")).mean() > 0.9999
    assert label.GetSize() == image.GetSize()
    assert "note" not in done.out, done.out
    seg = hd.seg.segread(out / "series.dcm")
    names = list(shared.config.structures)
    present = [name for name in names if (array(out / "series.nii.gz") == STRUCTURES[name]).any()]
    assert [seg.get_segment_description(k + 1).segment_label for k in range(len(present))] == present
    uids = [f"1.2.826.0.1.3680043.2.1125.4.{k + 1}" for k in range(image.GetDepth())]
    frames = seg.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    for k, name in enumerate(present):
        np.testing.assert_array_equal(frames[..., k] > 0, array(out / "series.nii.gz") == STRUCTURES[name])
    assert not (out / "nifti.dcm").exists()


def turned(image: sitk.Image, degrees: float) -> sitk.Image:
    """The same anatomy turned about its middle, resampled on the image's own voxels."""
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    turn = sitk.Euler3DTransform(middle, 0.0, 0.0, np.radians(degrees))
    return sitk.Resample(image, image, turn, sitk.sitkLinear, 0.0), turn


def test_copies_that_lie_otherwise_get_the_label_map_of_the_original(tmp_path, new_project, scans):
    """Turned, flipped, permuted, coarser along one axis, oblique, cropped: all aligned by ANTs."""
    project = new_project(tmp_path, preprocess={"align": "affine", "spacing_mm": 1.2, "shape": None, "margin_mm": 6})
    project.made("preprocess")
    config = project.config
    predictor = Predictor(calibrated_model(trained(config, "affine"), config, "affine"))
    image = sitk.Cast(sitk.ReadImage(str(scans / "images" / "test_1.nii.gz")), sitk.sitkFloat32)
    rotated, turn = turned(image, 20.0)
    size = np.array(image.GetSize())
    crop = [round(n * 0.05) for n in size]
    oblique = sitk.Image(image)
    tilt = sitk.Euler3DTransform((0, 0, 0), 0.2, 0.1, 0.0)
    oblique.SetDirection((np.reshape(tilt.GetMatrix(), (3, 3)) @ np.reshape(image.GetDirection(), (3, 3))).ravel())
    coarse = sitk.Shrink(image, [1, 1, 2])
    copies = {
        "flipped": sitk.Flip(image, [True, False, True]),
        "permuted": sitk.PermuteAxes(image, [2, 0, 1]),
        "anisotropic": coarse,
        "oblique": oblique,
        "cropped": image[tuple(slice(int(c), int(n - c)) for c, n in zip(crop, size, strict=True))],
        "rotated": rotated,
    }
    found = dict(zip(["original", *copies], predictor.predict_many([image, *copies.values()], ["x"] * 7), strict=True))
    original = found.pop("original").label

    for name, each in found.items():
        label = each.label
        if name == "oblique":  # the header alone is another one
            back = sitk.Image(label)
            back.CopyInformation(image)
            label = back
        expected_to = sitk.Resample(
            label, original, turn.GetInverse() if name == "rotated" else sitk.Transform(), sitk.sitkNearestNeighbor
        )
        pair = []
        for every in (original, expected_to):
            classes = sitk.GetArrayFromImage(every)
            pair.append(np.searchsorted([0, *STRUCTURES.values()], classes))
        scores = score_structures(*pair, num_classes=5, spacing_mm=original.GetSpacing()[::-1])
        assert len(scores) == 4
        assert max(score.assd_mm for score in scores) < 0.8, name
        assert np.mean([score.assd_mm for score in scores]) < 0.5, name


def test_help_and_the_package_load_no_heavy_library():
    import subprocess

    script = "import sys, stages\nsys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
