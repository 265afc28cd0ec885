"""A short part of the attacks in `tests/attacks`; and what stopped runs left is made again where it is damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from attacks import flips, hostile_models, hostile_workspaces
from attacks.trying import failed, table
from conftest import Project, draw_no_pictures, work_here

from stages.artifacts.manifest import MANIFEST


@pytest.fixture(scope="module")
def finished(tmp_path_factory, new_project) -> Project:
    """Everything that commands answer from."""
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        draw_no_pictures(patch)
        here = "stages.answering.predictor.in_processes"
        patch.setattr(here, lambda work, calls, **_: (work(*call) for call in calls))
        yield flips.finished_project(tmp_path_factory.mktemp("attacked"), new_project)


@pytest.fixture
def copied(finished, tmp_path) -> Project:
    shutil.copytree(finished.folder, tmp_path / "copy")
    return Project(tmp_path / "copy")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_damage_in_a_workspace_is_refused_or_made_again_or_has_no_effect(finished, tmp_path):
    counts = flips.attack(finished.folder, tries=len(flips.ANSWERS) + len(flips.STOPS), seed=1, scratch=tmp_path)
    assert failed(counts) == 0, table(counts)
    assert sum(counter["refused"] for counter in counts.values()) > 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_hostile_models_are_refused_in_one_line_or_answer(finished, tmp_path):
    finished.made("export", "--method", "best", "--out", str(tmp_path / "model.zip"))
    counts = hostile_models.attack(tmp_path / "model.zip", tries=40, seed=1, scratch=tmp_path)
    assert failed(counts) == 0, table(counts)
    assert counts["unchanged"]["opened, answered"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workspaces_of_strangers_are_refused_in_one_line_or_answered_from(finished, tmp_path):
    counts = hostile_workspaces.attack(finished.folder, tries=20, seed=1, scratch=tmp_path)
    assert failed(counts) == 0, table(counts)


@pytest.mark.parametrize("method", ["best", "brbs"])
@pytest.mark.parametrize(
    "command",
    [("export", "--out", "OUT/m.zip"), ("export", "--to", "nnunet", "--out", "OUT/Dataset101_X"),
     ("predict", "SCAN", "--out", "OUT/labels"), ("calibrate", "--couples", "9"), ("eval",), ("run",)],
)  # fmt: skip
def test_zeros_in_the_label_of_an_atlas_give_no_answer(command, method, copied, tmp_path):
    path = copied.workspace / "cohort" / "v0001" / "cohort.h5"
    with h5py.File(path, "r+") as file:
        file["labels/atlas_1"][:8] = 0
    scan = next((copied.config.data.folder / "images").iterdir())
    words = [str(scan) if word == "SCAN" else word.replace("OUT", str(tmp_path)) for word in command]
    done = copied.lrls(*words, "--method", method)
    assert done.code == 1
    assert "cohort/v0001: cohort.h5 changed since it was written; make it again with `lrls preprocess --fo" in done.err
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.parametrize("name", ["summary.json", "scores.csv"])
@pytest.mark.parametrize("command", [("eval",), ("run",), ("compare", "--method", "unet")])
def test_scores_that_changed_are_not_printed(command, name, copied):
    path = copied.workspace / "best" / "scores" / "v0001" / name
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("0.", "0.9", 1), encoding="utf-8")
    done = copied.lrls(*command, "--method", "best")
    assert done.code == 1 and f"best/scores/v0001: {name} changed since it was written; make it again" in done.err
    assert "DSC" not in done.out


def test_a_damaged_calibration_is_not_left_out_in_silence(copied, tmp_path):
    path = copied.workspace / "best" / "calibration" / "v0001" / "calibration.json"
    path.write_bytes(path.read_bytes()[:-30])
    done = copied.lrls("export", "--method", "best", "--out", str(tmp_path / "m.zip"))
    assert done.code == 1 and "calibration.json changed since it was written" in done.err
    assert "lrls calibrate --force" in done.err
    copied.made("calibrate", "--method", "best", "--couples", "9", "--force")
    copied.made("export", "--method", "best", "--out", str(tmp_path / "m.zip"))


def test_values_of_another_file_of_the_machine_are_put_into_no_model(copied, tmp_path):
    """A stranger's cohort whose images lie in a file elsewhere, with digests that are right."""
    from conftest import resealed

    from stages.artifacts.intact import bytes_digest

    secret = tmp_path / "secret"
    secret.write_bytes(np.full(16**3, 0.25, np.float16).tobytes())
    folder = copied.workspace / "cohort" / "v0001"
    with h5py.File(folder / "cohort.h5", "r+") as file:
        del file["images/atlas_1"]
        file.create_dataset("images/atlas_1", (16, 16, 16), np.float16, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    resealed(folder, raw={"cohort.h5": bytes_digest(folder / "cohort.h5")})
    done = copied.lrls("export", "--method", "best", "--out", str(tmp_path / "m.zip"))
    assert done.code == 1 and "takes values from another file, which lrls does not write" in done.err
    assert not (tmp_path / "m.zip").exists()


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    ("stop", "target", "pattern", "told"),
    [
        ("eval", "brbs/scores", ".draft-*/labels/test_1.nii.gz", "case test_1: "),
        ("eval", "brbs/scores", ".draft-*/labels-registration/test_2.nii.gz", "case test_2: "),
        ("eval", "brbs/scores", ".draft-*/resume/test_1.npy", "case test_1: "),
        ("eval", "brbs/scores", ".draft-*/resume/test_1.json", "case test_1: "),
        ("generate", "brbs/generated", ".draft-*/resume/0/000001.npz", "piece 2 of the generated data: "),
        ("train-seg", "brbs/segmentation", ".draft-*/resume/training.pt", "training: the state that a stopped run"),
        ("preprocess", "cohort", ".work-*/scans/free_1.npz", "case free_1: "),
        ("preprocess", "cohort", ".work-*/atlases/atlas_1.npz", "case atlas_1: "),
        ("complete", "brbs/scores", ".draft-*/scores.csv", "brbs/scores: "),
    ],
)  # fmt: skip
def test_what_a_stopped_run_left_is_made_again_where_it_is_damaged(
    stop, target, pattern, told, damage: Callable, finished, tmp_path
):
    expected = finished.manifest(target).digest
    project = Project(flips.stopped(finished.folder, tmp_path / "stopped", stop))
    (file,) = (project.workspace / target).glob(pattern)
    damage(file)
    done = project.made(*flips.STOPS[stop][3])
    assert project.manifest(target).digest == expected
    assert not list((project.workspace / target).glob(".[dw]*-*"))
    if damage is not Path.unlink:
        assert told in done.err and ("is made again." in done.err or "starts over." in done.err)


def test_history_lists_what_a_stopped_run_left(finished, tmp_path):
    project = Project(flips.stopped(finished.folder, tmp_path / "stopped", "eval"))
    (project.workspace / "unet" / "scores" / "v0001" / MANIFEST).write_text("{", encoding="utf-8")
    lines = project.made("history").out.splitlines()
    (left,) = (line for line in lines if line.startswith("unfinished: brbs/scores/.draft-"))
    assert left.endswith("MB, 0.0 hours old; the command that was stopped resumes from it, or delete it.")
    assert any("unet/scores/v0001: artifact.json is not readable" in line for line in lines)
