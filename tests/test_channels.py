"""Scans of two images each, through whole commands: T1 and its inverse, as nnU-Net names them."""

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from conftest import Project, work_here, write_scans

from stages import load_model
from stages.artifacts.digests import digest_of
from stages.errors import LrlsError

FEW = 3  # steps


def as_channels(folder: Path) -> Path:
    """Every image as `_0000`, and its inverse with noise as `_0001`."""
    for number, path in enumerate(sorted((folder / "images").glob("*.nii.gz"))):
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
        voxels = sitk.GetArrayFromImage(image)
        noise = np.random.default_rng(number).normal(0, 0.03 * voxels.max(), voxels.shape)
        inverse = sitk.GetImageFromArray((3 * (voxels.max() - voxels) + noise).astype(np.float32))
        inverse.CopyInformation(image)
        case = path.name.removesuffix(".nii.gz")
        for channel, each in enumerate((image, inverse)):
            sitk.WriteImage(each, str(path.with_name(f"{case}_000{channel}.nii.gz")), useCompression=True)
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory) -> Path:
    """The tiny cohort with two images a scan; tests only read it."""
    return as_channels(write_scans(tmp_path_factory.mktemp("channels")))


@pytest.fixture(scope="module")
def project(tmp_path_factory, new_project, two_channels):
    """A project of these scans; what its tests make stays for the next ones."""
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        changes = {section: {"steps": FEW} for section in ("train_reg", "train_seg")}
        yield new_project(tmp_path_factory.mktemp("project"), data={"folder": str(two_channels)}, **changes)


@pytest.mark.parametrize("method", ["affine", "unet", "best", "brbs", "syn", "voxelmorph", "deep-atlas"])
def test_methods_run_on_two_channels(project, no_pictures, method):
    project.made("run", "--method", method)

    summary = json.loads((project.workspace / method / "scores" / "v0001" / "summary.json").read_text(encoding="utf-8"))
    assert summary["scans"] == 2


def test_the_cohort_stores_both_channels_each_normalised_by_itself(project):
    project.made("preprocess")
    folder = project.workspace / "cohort" / "v0001"
    with h5py.File(folder / "cohort.h5") as file:
        image, reference = file["images/atlas_1"][()], file["reference"][()]
    record = json.loads((folder / "transforms" / "atlas_1.json").read_text(encoding="utf-8"))

    assert (image.shape, image.dtype, reference.ndim) == ((2, 24, 16, 24), np.float16, 3)
    assert json.loads((folder / "cohort.json").read_text(encoding="utf-8"))["channels"] == 2
    assert image.reshape(2, -1).max(1).min() > 0.95  # the second one is three times as bright in its file
    body = image[0] > 0
    assert np.corrcoef(image[0][body], image[1][body])[0, 1] < -0.8  # they lie on one another
    assert np.shape(record["intensity"]) == (2, 2)


def test_pictures_show_the_first_channel(tmp_path, new_project, two_channels, in_this_process):
    project = new_project(tmp_path, data={"folder": str(two_channels)}, train_seg={"steps": 1}, generate={"samples": 2})
    project.made("run", "--method", "best")
    project.made(
        "predict",
        "--method",
        "best",
        str(two_channels / "images" / "dev_1_0000.nii.gz"),
        "--out",
        str(tmp_path / "seen"),
    )

    assert list((project.workspace / "cohort" / "v0001" / "qc").glob("*.png"))
    with h5py.File(project.workspace / "best" / "generated" / "v0001" / "generated.h5") as file:
        assert file["samples/image"].shape == (2, 2, 24, 16, 24)


@pytest.mark.parametrize("method", ["unet", "affine"])
def test_an_exported_model_answers_as_the_workspace_does(project, no_pictures, two_channels, tmp_path, method):
    project.made("run", "--method", method)
    model, scan = tmp_path / "model.zip", two_channels / "images" / "dev_1_0000.nii.gz"
    project.made("export", "--method", method, "--out", str(model), "--set", "data.channels=[T1, inverse]")
    with zipfile.ZipFile(model) as file:
        assert json.loads(file.read("model.json"))["channels"] == ["T1", "inverse"]

    images = [sitk.ReadImage(str(scan).replace("_0000", f"_000{channel}"), sitk.sitkFloat32) for channel in (0, 1)]
    predictor = load_model(model, device="cpu")
    answers = [
        predictor.predict(scan),
        predictor.predict(str(scan).replace("_0000", "_0001")),
        predictor.predict(sitk.Compose(images)),
    ]
    swapped = predictor.predict(sitk.Compose(images[::-1]))

    assert answers[0].case == answers[1].case == "dev_1"
    project.made("predict", "--method", method, str(scan), "--out", str(tmp_path / "out"))
    by_workspace = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "dev_1.nii.gz")))
    assert np.array_equal(by_workspace, sitk.GetArrayFromImage(answers[0].label))
    for other in answers[1:]:
        assert np.array_equal(other.classes, answers[0].classes)
    assert answers[0].label.GetSize() == images[0].GetSize()
    assert (swapped.quality.intensity_shift or 0) > (answers[0].quality.intensity_shift or 0)
    with pytest.raises(LrlsError) as error:
        predictor.predict(images[0])
    assert str(error.value) == (
        "case scan_0: image of 1 channel, and the model learned from 2 channels (_0000 T1, _0001 inverse); "
        "give as many components, in this order."
    )


def test_predict_takes_the_files_of_a_scan_as_one(project, no_pictures, two_channels, tmp_path):
    project.made("run", "--method", "affine")
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for case in ("dev_1", "test_1"):
        for channel in (0, 1):
            name = f"{case}_000{channel}.nii.gz"
            (scans / name).write_bytes((two_channels / "images" / name).read_bytes())
    (scans / "test_1_0001.nii.gz").unlink()
    (scans / "alone.nii.gz").write_bytes((scans / "test_1_0000.nii.gz").read_bytes())
    done = project.lrls("predict", "--method", "affine", str(scans), "--out", str(out))

    assert done.code == 1
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["dev_1.nii.gz"]
    for case, has in (("test_1", "_0000"), ("alone", "one image")):
        line = (
            f"case {case}: has {has}, and the model learned from 2 channels (_0000, _0001); "
            f"lay its files side by side, named {case}_0000, {case}_0001."
        )
        assert line in done.out + done.err

    both = [str(scans / f"dev_1_000{channel}.nii.gz") for channel in (0, 1)]
    again = project.made("predict", "--method", "affine", *both, "--out", str(out))
    assert "1 of 1 scans were answered before and have not changed" in again.out
    (scans / "dev_1_0001.nii.gz").write_bytes((two_channels / "images" / "free_1_0001.nii.gz").read_bytes())
    changed = project.lrls("predict", "--method", "affine", both[0], "--out", str(out))
    assert "answered before" not in changed.out
    assert "case dev_1: channel _0001 " in changed.out + changed.err  # of another grid


def test_nnunet_gets_a_file_a_channel(project, no_pictures, tmp_path):
    project.made("run", "--method", "best")
    out = tmp_path / "Dataset007_Two"
    project.made("export", "--method", "best", "--to", "nnunet", "--out", str(out), "--couples", "2")

    assert sorted(path.name for path in (out / "imagesTr").iterdir()) == [
        f"{case}_000{channel}.nii.gz" for case in ("atlas_1", "generated_0000", "generated_0001") for channel in (0, 1)
    ]
    about = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert about["channel_names"] == {"0": "_0000", "1": "_0001"}


def test_methods_of_one_image_refuse_before_anything_is_aligned(project):
    done = project.lrls("run", "--method", "ist")

    assert done.code == 1
    assert done.err.startswith("lrls: ist learns from one image per scan, and the scans have 2 channels (_0000, ...);")
    assert not (project.workspace / "ist").exists()
    assert not done.out


def test_names_of_channels_are_as_many_as_the_channels(project, no_pictures, tmp_path):
    project.made("run", "--method", "affine")
    out = str(tmp_path / "model.zip")
    done = project.lrls("export", "--method", "affine", "--out", out, "--set", "data.channels=[T1, T2, FLAIR]")

    assert done.err == (
        "lrls: data.channels: found 3 names, the scans have 2 channels (_0000, _0001); name each image once.\n"
    )


def test_a_cohort_of_fewer_channels_is_made_again(tmp_path, new_project, in_this_process, no_pictures):
    scans = write_scans(tmp_path / "scans")
    project = new_project(tmp_path / "project", data={"folder": str(scans)})
    project.made("run", "--method", "affine")
    as_channels(scans)
    done = project.lrls("eval", "--method", "affine")

    assert done.err == (
        "lrls: case test_1: found 2 channels (_0000, _0001), and the cohort was made of 1 channel a scan; "
        "make it again with `lrls preprocess`.\n"
    )
    project.made("run", "--method", "affine")
    assert project.versions("cohort") == ["v0001", "v0002"]


def test_a_cohort_of_one_channel_is_what_it_was_before_scans_had_channels(tmp_path, new_project, scans):
    project = new_project(tmp_path)
    project.made("preprocess")
    folder, identity = project.workspace / "cohort" / "v0001", project.manifest("cohort").identity
    with h5py.File(folder / "cohort.h5") as file:
        assert file["images/atlas_1"].shape == (24, 16, 24)
    about = json.loads((folder / "cohort.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "transforms" / "atlas_1.json").read_text(encoding="utf-8"))

    assert about.keys() == {"grid", "structures", "parts", "flat_borders", "notes"}
    assert np.shape(record["intensity"]) == (2,)
    assert identity.config.keys() == {"preprocess", "structures", "others", "members"}
    assert set(identity.inputs) == {f"scan/{case}" for case in ("atlas_1", "free_1", "free_2")}
    # `free_1` has no label map here: its digest is its image's alone
    image = sitk.ReadImage(str(scans / "images" / "free_1.nii.gz"), sitk.sitkFloat32)
    from stages.data.digests import image_digest

    assert identity.inputs["scan/free_1"] == image_digest(image) != digest_of([image_digest(image)])


def lesions(folder: Path, *, cases: int, channels: int) -> Project:
    """Scans of a noisy body with a ball at a random place, which only the second image shows."""
    shape = (16, 16, 16)
    for number in range(cases):
        rng = np.random.default_rng(number)
        centre = rng.uniform(5, 10, 3)
        d = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
        body = np.linalg.norm(d - 7.5, axis=-1) < 7.5
        ball = np.linalg.norm(d - centre, axis=-1) < 3
        images = [body + rng.normal(0, 0.1, shape), body * (1 + ball) + rng.normal(0, 0.1, shape)]
        for channel in range(channels):
            _write(folder / "images" / f"s{number}_000{channel}.nii.gz", images[channel].astype(np.float32))
        _write(folder / "labels" / f"s{number}.nii.gz", ball.astype(np.uint8))
    names = [f"s{number}" for number in range(cases)]
    settings = {
        "workspace": "runs",
        "data": {"folder": str(folder), "atlases": names[:-4], "unlabeled": names[-4:-3], "test": names[-3:]},
        "structures": {"ball": 1},
        "threads": 1,
        "preprocess": {"align": "none", "crop": "none", "spacing_mm": 1.0, "shape": list(shape), "workers": 1},
        "train_seg": {"steps": 80, "augmentation": "none"},
    }
    (folder / "lrls.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return Project(folder)


def _write(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), useCompression=True)


def test_a_structure_that_only_the_second_image_shows_is_found_with_it_alone(tmp_path, in_this_process, no_pictures):
    dice = []
    for channels in (1, 2):
        project = lesions(tmp_path / str(channels), cases=12, channels=channels)
        project.made("run", "--method", "unet")
        summary = project.workspace / "unet" / "scores" / "v0001" / "summary.json"
        dice.append(json.loads(summary.read_text(encoding="utf-8"))["outputs"]["segmentation"]["dsc"]["mean"])

    assert dice[0] < 0.5 and dice[1] > 0.8, dice
