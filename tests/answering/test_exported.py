"""Exported models: whole, the same again, and refused where they were tampered with."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import Project, work_here

from stages.answering.exported import _sha256, export_model, open_model, tensors_of
from stages.answering.model import running_on
from stages.answering.packages import IMAGES, MODEL, NAMES, WEIGHTS
from stages.artifacts.digests import digest_of
from stages.artifacts.scores import Scores
from stages.errors import LrlsError


@pytest.fixture(scope="module")
def shared(tmp_path_factory, new_project, no_pictures_in_module) -> Project:
    project = new_project(
        tmp_path_factory.mktemp("exported"),
        methods={"best": {"coarse_steps": 1, "fine_steps": 1}, "unet": {"train_seg": {"steps": 2}}},
        preprocess={"shape": [16, 16, 16]},
    )
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        project.made("run", "--method", "best", "--until", "train-seg")
        project.made("calibrate", "--method", "best", "--couples", "9")
        project.made("export", "--method", "best", "--out", str(project.folder / "best.zip"))
        project.made("export", "--method", "best", "--out", str(project.folder / "best"))
        project.made("calibrate", "--method", "best", "--network-only", "--couples", "9")
        project.made("export", "--method", "best", "--network-only", "--out", str(project.folder / "network.zip"))
    return project


@pytest.fixture
def contents(shared) -> dict[str, bytes]:
    with zipfile.ZipFile(shared.folder / "best.zip") as file:
        return {name: file.read(name) for name in file.namelist()}


def write(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in contents.items():
            file.writestr(name, data)
    return path


def resealed(contents: dict[str, bytes], **changes) -> dict[str, bytes]:
    """`model.json` changed by someone who makes all digests right again."""
    values = json.loads(contents[MODEL])
    values.pop("digest")
    values.update(changes)
    for name in (WEIGHTS, IMAGES):
        values["files"][name] = {"bytes": len(contents[name]), "sha256": _sha256(contents[name])}
    values["digest"] = digest_of(values)
    return {**contents, MODEL: json.dumps(values).encode()}


def test_a_model_holds_no_code_no_path_and_no_scan_but_reference_and_atlases(shared, contents):
    assert set(contents) == set(NAMES)
    text = contents[MODEL].decode()
    for secret in (str(shared.folder), "free_1", "atlas_1_", "test_1", "runs"):
        assert secret not in text.replace("stored_atlases", "").replace("num_atlases", "")
    assert set(tensors_of(contents[IMAGES], "images")) == {"reference", "atlas_0_image", "atlas_0_label"}
    assert all(key.startswith("segmentation/") for key in tensors_of(contents[WEIGHTS], "weights"))


def test_zip_and_folder_are_the_same_model(shared, contents):
    assert {path.name: path.read_bytes() for path in (shared.folder / "best").iterdir()} == contents
    model = open_model(shared.folder / "best")
    expected = open_model(shared.folder / "best.zip")
    assert model.calibration == expected.calibration is not None
    assert model.structures == shared.config.structures
    for a, b in zip(*(each.recipe.answer.network.parameters() for each in (model, expected)), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_array_equal(model.template(), expected.template())


def test_network_only_holds_no_atlas_and_registers_nothing(shared):
    model = open_model(shared.folder / "network.zip")
    assert model.atlases == ()
    assert not running_on(model, {"threads": 1}).answering().registers
    assert "agreement" not in model.calibration.weights and "stability" in model.calibration.weights
    refused = shared.lrls("export", "--method", "affine", "--network-only", "--out", str(shared.folder / "no.zip"))
    assert refused.code == 1 and "no segmentation network" in refused.err


def test_an_export_says_what_it_holds_and_replaces_nothing_unasked(shared):
    out = shared.folder / "again.zip"
    done = shared.made("export", "--method", "best", "--out", str(out))
    assert done.out.splitlines()[-2:] == [
        "holds image and label of 1 atlas, whose labels best propagates; --network-only leaves them out",
        str(out),
    ]
    assert out.read_bytes() == (shared.folder / "best.zip").read_bytes()
    refused = shared.lrls("export", "--method", "best", "--out", str(out))
    assert refused.code == 1 and "exists already" in refused.err
    mine = shared.folder / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("")
    refused = shared.lrls("export", "--method", "best", "--out", str(mine), "--force")
    assert refused.code == 1 and "holds thesis.txt" in refused.err
    assert list(mine.iterdir()) == [mine / "thesis.txt"]
    assert not list(shared.folder.glob(".*tmp"))


@pytest.mark.parametrize("name", ["../evil.json", "/evil", "sub/../../evil", "weights.pkl", "sub/model.json"])
def test_a_zip_with_any_other_name_is_refused_and_nothing_is_written(name, contents, tmp_path):
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "m.zip", {**contents, name: b"x"})
    with pytest.raises(LrlsError, match="which no exported model has; do not use this file"):
        open_model(path)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


def test_a_link_in_a_zip_is_refused(contents, tmp_path):
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in contents.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == WEIGHTS else 0o100644) << 16
            file.writestr(info, b"/etc/passwd" if name == WEIGHTS else data)
    with pytest.raises(LrlsError, match="do not use this file"):
        open_model(path)


def test_a_file_that_expands_beyond_belief_is_refused(contents, tmp_path):
    with pytest.raises(LrlsError, match=f"{MODEL} is larger than it should be"):
        open_model(write(tmp_path / "m.zip", {**contents, MODEL: b" " * 6_000_000}))
    bomb = {**contents, WEIGHTS: bytes(30_000_000)}
    with pytest.raises(LrlsError, match=f"{WEIGHTS} is larger than it should be"):
        open_model(write(tmp_path / "b.zip", resealed(bomb)))


def test_a_huge_safetensors_header_is_refused(contents, tmp_path):
    for claimed in (2**62, 50_000_000):
        data = struct.pack("<Q", claimed) + contents[WEIGHTS][8:]
        with pytest.raises(LrlsError, match=f"header of {claimed} bytes, more than is possible"):
            open_model(write(tmp_path / "m.zip", resealed({**contents, WEIGHTS: data})))
    with pytest.raises(LrlsError, match="not a readable safetensors"):
        open_model(write(tmp_path / "m.zip", resealed({**contents, WEIGHTS: struct.pack("<Q", 4) + b"abcd" * 9})))


@pytest.mark.parametrize("name", [WEIGHTS, IMAGES])
def test_a_changed_byte_is_refused(name, contents, tmp_path):
    data = bytearray(contents[name])
    data[-1] ^= 1
    with pytest.raises(LrlsError, match=rf"{name} is not what was exported \(digest differs\)"):
        open_model(write(tmp_path / "m.zip", {**contents, name: bytes(data)}))


def test_a_changed_description_is_refused(contents, tmp_path):
    text = contents[MODEL].replace(b'"seed": 0', b'"seed": 1')
    assert text != contents[MODEL]
    for changed in (text, b"[1, 2]", b"{", b"\xff", b"[" * 50_000):
        with pytest.raises(LrlsError, match="was changed; copy or export it again"):
            open_model(write(tmp_path / "m.zip", {**contents, MODEL: changed}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"shape": [4096, 4096, 4096], "spacing_mm": [1, 1, 1], "origin": [0, 0, 0],
                   "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1]}}, "more than"),
        ({"method": "brsb"}, "no method 'brsb'"),
        ({"settings": {"segmentation_network": "__import__('os')"}}, "segmentation_network"),
        ({"others": "ignore"}, "others"),
        ({"hook": "x"}, "unknown setting hook"),
        ({"stored_atlases": 2}, "2 of 1 atlases are stored"),
        ({"stored_atlases": 2, "num_atlases": 2}, "does not fit model.json"),
        ({"structures": [["one", [1]]]}, "the calibration is of other structures"),
        ({"structures": [["one", [1]]], "calibration": None}, "the network expects"),
        ({"structures": [["one", [3]], ["two", [3]]]}, "there twice"),
        ({"structures": [["one", [3]], ["one", [4]]]}, "there twice"),
        ({"structures": [["one\x1b[31m", [3]]]}, "control characters"),
        ({"structures": [["n" * 100_000, [3]]]}, "of more than 200"),
        ({"n" * 100_000: 1}, "of more than 200"),
        ({"settings": {"coarse_steps": 10**12}}, "at most 10000 is possible"),
        ({"settings": {"fine_steps": 10**3000}}, "too large"),
        ({"reference_direction": [1, 0, 0, 1, 0, 0, 0, 0, 1]}, "span the space"),
        ({"reference_spacing": [1, 1e-300, 1]}, "spacing"),
        ({"grid": {"shape": [1, 1, 1], "spacing_mm": [1, 1, 1], "origin": [0, 0, 0],
                   "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1]}}, "fewer than 4 voxels"),
        ({"grid": {"shape": [16, 16, 4], "spacing_mm": [1, 1, 1], "origin": [0, 0, 0],
                   "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1]}}, "too small for a U-Net"),
        ({"num_atlases": -1}, "num_atlases"),
        ({"calibration": {}}, "is missing"),
        ({"files": {"hook": {"x" * 90: 1}}}, "model.json: "),
        ({"borders": [{"classes": [1, 2], "normal": [0, 0, 1], "hook": 1}]}, "model.json: "),
        ({"borders": [{"classes": [1, 9], "normal": [0, 0, 1]}]}, "border"),
        ({"format_version": 2}, "newer than this lrls reads"),
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit_is_refused_in_one_line(changes, message, contents, tmp_path):
    with pytest.raises(LrlsError, match=message) as refused:
        open_model(write(tmp_path / "m.zip", resealed(contents, **changes)))
    assert "\n" not in str(refused.value)


def test_missing_and_truncated_files_are_refused(shared, contents, tmp_path):
    with pytest.raises(LrlsError, match="no such model"):
        open_model(tmp_path / "none.zip")
    data = (shared.folder / "best.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(LrlsError, match="not a readable zip"):
        open_model(tmp_path / "half.zip")
    with pytest.raises(LrlsError, match=f"holds no {IMAGES}"):
        open_model(write(tmp_path / "less.zip", {name: contents[name] for name in (MODEL, WEIGHTS)}))
    shutil.copytree(shared.folder / "best", tmp_path / "folder")
    (tmp_path / "folder" / WEIGHTS).unlink()
    with pytest.raises(LrlsError, match=f"holds no readable {WEIGHTS}"):
        open_model(tmp_path / "folder")


def test_only_where_it_runs_can_be_set(shared):
    model = open_model(shared.folder / "best.zip")
    assert running_on(model, ["threads=1", "device=cpu", "preprocess.workers=1"]).config.threads == 1
    with pytest.raises(LrlsError, match="an exported model is as it was trained"):
        running_on(model, ["seed=3"])
    with pytest.raises(LrlsError, match="device"):
        running_on(model, {"device": "tpu"})


def test_nnunet_finds_the_layout_that_it_reads(shared, tmp_path):
    import SimpleITK as sitk

    out = tmp_path / "Dataset101_Phantom"
    shared.made("export", "--method", "best", "--to", "nnunet", "--out", str(out), "--couples", "3")
    about = json.loads((out / "dataset.json").read_text())
    assert about["labels"] == {"background": 0} | {name: k for k, name in enumerate(shared.config.structures, 1)}
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (out / "labelsTr").iterdir())
    assert cases == ["atlas_1", "generated_0000", "generated_0001", "generated_0002"]
    assert about["numTraining"] == len(cases) and about["file_ending"] == ".nii.gz"
    assert sorted(path.name for path in (out / "imagesTr").iterdir()) == [f"{case}_0000.nii.gz" for case in cases]
    assert sorted(path.name for path in (out / "imagesTs").iterdir()) == ["free_1_0000.nii.gz", "free_2_0000.nii.gz"]
    for case in cases:
        image = sitk.ReadImage(str(out / "imagesTr" / f"{case}_0000.nii.gz"))
        label = sitk.ReadImage(str(out / "labelsTr" / f"{case}.nii.gz"))
        for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(image, geometry)() == getattr(label, geometry)()
        assert 0 < sitk.GetArrayFromImage(label).max() <= 4
    refused = shared.lrls("export", "--method", "best", "--to", "nnunet", "--out", str(tmp_path / "set"))
    assert refused.code == 1 and "nnU-Net reads folders like Dataset101_Hippocampus only" in refused.err
    again = shared.lrls("export", "--method", "best", "--to", "nnunet", "--out", str(out))
    assert again.code == 1 and "exists already" in again.err


def test_answers_of_nnunet_are_scored_as_ours(shared, tmp_path):
    import SimpleITK as sitk

    from stages.nnunet import score_answers, write_scans
    from stages.preprocess import preprocess

    shared.made("run", "--method", "affine")
    config = shared.config
    cohort = preprocess(config, "train")
    held_out = preprocess(config, config.eval.part, base=cohort)
    cases = held_out.parts[config.eval.part]
    write_scans(cases, held_out, tmp_path / "scans")
    for case in cases:  # the label of the atlas as the answer, on the grid of what nnU-Net was given: that is `affine`
        scan = sitk.ReadImage(str(tmp_path / "scans" / f"{case}_0000.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(scan), held_out.image(case).astype(np.float32))
        answer = sitk.GetImageFromArray(cohort.label("atlas_1").astype(np.uint8))
        answer.CopyInformation(scan)
        sitk.WriteImage(answer, str(tmp_path / f"{case}.nii.gz"))
    found = score_answers("registration", tmp_path, held_out, config)
    ours = Scores.open(shared.workspace / "affine" / "scores" / "v0001").table
    pd.testing.assert_frame_equal(found, ours, atol=1e-6, check_dtype=False)

    answer.SetSpacing([2 * edge for edge in answer.GetSpacing()])
    sitk.WriteImage(answer, str(tmp_path / f"{case}.nii.gz"))
    with pytest.raises(LrlsError, match=f"case {case}: {case}.nii.gz does not lie on the cohort's grid"):
        score_answers("x", tmp_path, held_out, config)
    strange = sitk.GetImageFromArray(np.full(cohort.grid.shape, 9, np.uint8))
    strange.CopyInformation(scan)
    sitk.WriteImage(strange, str(tmp_path / f"{case}.nii.gz"))
    with pytest.raises(LrlsError, match=rf"case {case}: {case}.nii.gz holds the value 9, expected 0 to 4"):
        score_answers("x", tmp_path, held_out, config)
    (tmp_path / f"{case}.nii.gz").unlink()
    with pytest.raises(LrlsError, match=f"case {case}: .* holds no {case}.nii.gz; let `nnUNetv2_predict` write it"):
        score_answers("x", tmp_path, held_out, config)


def test_nnunet_replaces_only_what_it_wrote(shared, tmp_path):
    out = tmp_path / "Dataset101_Phantom"
    command = ("export", "--method", "best", "--to", "nnunet", "--couples", "0", "--out", str(out), "--force")
    shared.made(*command)
    shared.made(*command)
    (out / "imagesTr" / "mine_0000.nii.gz").write_bytes(b"mine")
    refused = shared.lrls(*command)
    assert "holds imagesTr/mine_0000.nii.gz, which lrls did not write; choose another name" in refused.err
    assert (out / "imagesTr" / "mine_0000.nii.gz").read_bytes() == b"mine"
    shutil.rmtree(out)
    (out / "labelsTr").mkdir(parents=True)
    (out / "dataset.json").write_text('{"labels": {}}', encoding="utf-8")
    refused = shared.lrls(*command)
    assert refused.code == 1 and "was not written by lrls (dataset.json does not say so)" in refused.err
    assert (out / "labelsTr").is_dir() and not list(tmp_path.glob(".*"))


def test_no_export_lands_on_what_is_in_use(shared, tmp_path, monkeypatch):
    data = shared.config.data.folder
    for place in (shared.workspace / "Dataset101_X", data / "images" / "Dataset101_X"):
        done = shared.lrls("export", "--method", "best", "--to", "nnunet", "--out", str(place), "--force")
        assert done.code == 1 and "which is in use; choose another place" in done.err
    monkeypatch.chdir(tmp_path)
    for place in (shared.workspace, data, shared.folder, tmp_path, tmp_path.parent):
        done = shared.lrls("export", "--method", "best", "--out", str(place), "--force")
        assert done.code == 1 and "which is in use; choose another place" in done.err
    assert data.is_dir() and shared.workspace.is_dir()


def test_a_model_replaces_a_model_of_either_form_and_nothing_else(shared, contents, tmp_path):
    out = tmp_path / "m.zip"
    out.mkdir()
    for name, data in contents.items():
        (out / name).write_bytes(data)
    shared.made("export", "--method", "best", "--out", str(out), "--force")
    assert out.read_bytes() == (shared.folder / "best.zip").read_bytes()
    shutil.move(out, tmp_path / "m")
    shared.made("export", "--method", "best", "--out", str(tmp_path / "m"), "--force")
    assert open_model(tmp_path / "m").method == "best"
    (tmp_path / "scans.zip").write_bytes(b"a patient's scans")
    refused = shared.lrls("export", "--method", "best", "--out", str(tmp_path / "scans.zip"), "--force")
    assert refused.code == 1 and "is no exported model; choose another name, or remove it yourself" in refused.err
    assert (tmp_path / "scans.zip").read_bytes() == b"a patient's scans"


def test_a_full_disk_leaves_the_old_model_and_nothing_else(shared, tmp_path, monkeypatch):
    out = tmp_path / "m.zip"
    shutil.copy(shared.folder / "best.zip", out)
    before = out.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stages.answering.packages.zipfile.ZipFile.writestr", full)
    done = shared.lrls("export", "--method", "best", "--out", str(out), "--force")
    assert done.code == 1 and "lrls: no room on the disk for " in done.err and "Traceback" not in done.err
    assert out.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["m.zip"]


def test_what_could_not_be_opened_is_not_exported(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.answering.description.LONGEST_TEXT", 3)
    done = shared.lrls("export", "--method", "best", "--out", str(tmp_path / "m.zip"))
    assert done.code == 1 and "this model cannot be exported" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("reference", torch.zeros(16, 16, 16, dtype=torch.bfloat16)),
        ("reference", torch.full((16, 16, 16), torch.nan)),
        ("reference", torch.zeros(1, 1, 1)),
        ("reference", torch.zeros(0, 16, 16)),
        ("atlas_0_image", torch.zeros(1, 1, 1, dtype=torch.float16)),
        ("atlas_0_label", torch.full((16, 16, 16), 99, dtype=torch.int16)),
        ("atlas_0_label", torch.zeros(16, 16, 16, dtype=torch.bfloat16)),
        ("atlas_7_label", torch.zeros(16, 16, 16, dtype=torch.int16)),
    ],
)
def test_images_that_do_not_fit_are_refused(name, tensor, contents, tmp_path):
    images = tensors_of(contents[IMAGES], "images") | {name: tensor}
    data = safetensors.torch.save(images)
    with pytest.raises(LrlsError, match=f"{IMAGES} does not fit {MODEL}: "):
        open_model(write(tmp_path / "m.zip", resealed({**contents, IMAGES: data})))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value, contents, tmp_path):
    weights = tensors_of(contents[WEIGHTS], "weights")
    weights["segmentation/head.bias"][0] = value
    data = safetensors.torch.save(weights)
    with pytest.raises(LrlsError, match="not finite"):
        open_model(write(tmp_path / "m.zip", resealed({**contents, WEIGHTS: data})))


def test_huge_networks_get_no_memory(contents, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.methods.best.segmentation_network", lambda *_: torch.nn.Linear(2**20, 2**20))
    with pytest.raises(LrlsError, match="at most 268435456 are possible"):
        open_model(write(tmp_path / "m.zip", contents))


def test_a_model_of_before_networks_followed_the_spacing_still_answers_and_stays_what_it_is(contents, tmp_path):
    values = json.loads(contents[MODEL])
    values["grid"]["spacing_mm"] = [8.0, 2.0, 2.0]
    assert values.pop("axes") == "own" and values.pop("digest")
    old = {**contents, MODEL: json.dumps({**values, "digest": digest_of(values)}).encode()}

    model = open_model(write(tmp_path / "old.zip", old))
    assert model.axes == "alike"
    export_model(model, tmp_path / "again.zip")
    assert open_model(tmp_path / "again.zip").axes == "alike"

    values["axes"] = "own"
    new = {**contents, MODEL: json.dumps({**values, "digest": digest_of(values)}).encode()}
    with pytest.raises(LrlsError, match="segmentation"):
        open_model(write(tmp_path / "new.zip", new))
