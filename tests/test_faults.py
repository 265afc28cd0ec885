"""What goes wrong ends as one line with its remedy and exit code 1, and leaves what was there untouched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from conftest import Done, Project, aged

from stages.artifacts.weights_file import load_state
from stages.data.facts import Looked
from stages.errors import LrlsError
from stages.processes import in_processes
from stages.training import loop

pytestmark = pytest.mark.usefixtures("no_pictures_in_module")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, new_project, no_pictures_in_module) -> Project:
    """`brbs` up to its segmentation; tests copy it."""
    project = new_project(tmp_path_factory.mktemp("trained"))
    project.made("run", "--method", "brbs", "--until", "train-seg")
    project.made("preprocess", "--part", "test")
    return project


@pytest.fixture
def copied(trained, tmp_path) -> Project:
    shutil.copytree(trained.folder, tmp_path / "copied")
    return Project(tmp_path / "copied")


def fault(done: Done) -> str:
    """The one line of a command that must fail, without "lrls: "."""
    assert done.code == 1, done
    assert "Traceback" not in done.err
    *progress, line = done.err.splitlines()
    assert line.startswith("lrls: ")
    assert line.endswith(".")
    assert not any(each.startswith("lrls: ") for each in progress)
    return line.removeprefix("lrls: ")


def change_a_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# The configuration and the order of commands


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train_seg.step=5", "unknown setting train_seg.step; did you mean steps?"),
        ("preprocess.intensity.metod=window", "unknown setting preprocess.intensity.metod; did you mean method?"),
        ("worksapce=runs", "unknown setting worksapce; did you mean workspace?"),
        ("methods.brbs.train_reg.stepz=5", "methods.brbs.train_reg: unknown setting stepz; did you mean steps?"),
        ("methods.brbs.mix_wait=1", "methods.brbs: unknown setting mix_wait; did you mean mix_weight?"),
        ("methods.brsb.sec=false", "unknown setting methods.brsb; did you mean brbs?"),
        ("train_seg.learning_rate=.inf", "setting train_seg.learning_rate: input should be a finite number"),
    ],
)
def test_a_setting_that_does_not_exist_or_fit_is_named(setting, expected, project):
    done = project.lrls("run", "--method", "brbs", "--set", setting)
    assert expected in done.err
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert not project.workspace.exists()


def test_a_method_that_does_not_exist_is_answered_with_those_that_do(project):
    assert fault(project.lrls("run", "--method", "brsb")).startswith("no method 'brsb'; choose one of: unet, ")


@pytest.mark.parametrize(
    ("command", "method", "expected"),
    [
        ("train-reg", "unet", "unet learns no registration; go on with `lrls train-seg`."),
        ("generate", "unet", "unet generates nothing; go on with `lrls train-seg`."),
        ("train-reg", "syn", "syn learns no registration; go on with `lrls eval`."),
        ("train-seg", "syn", "syn trains no segmentation network; go on with `lrls eval`."),
        ("generate", "voxelmorph", "holds no finished registration artifact; make it with `lrls train-reg`."),
        ("eval", "unet", "holds no finished segmentation artifact; make it with `lrls train-seg`."),
        ("train-seg", "supervised", "make it with `lrls preprocess --part supervised`."),
    ],
)
def test_a_stage_that_is_not_there_or_not_due_names_the_next_command(command, method, expected, trained):
    assert fault(trained.lrls(command, "--method", method)).endswith(expected)


def test_train_seg_before_generate_names_the_command(copied):
    shutil.rmtree(copied.workspace / "brbs" / "generated")
    line = fault(copied.lrls("train-seg", "--method", "brbs"))
    assert line.endswith("brbs/generated holds no finished generated artifact; make it with `lrls generate`.")


def test_a_stage_before_preprocess_names_it(project):
    line = fault(project.lrls("train-reg", "--method", "brbs"))
    assert line.endswith("cohort holds no finished cohort artifact; make it with `lrls preprocess`.")


def test_cuda_on_a_machine_without_it_is_refused(trained, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = fault(trained.lrls("train-seg", "--method", "unet", "--set", "device=cuda"))
    assert line == "device is cuda, but torch finds no CUDA GPU; set device: auto, or install torch's CUDA build."


# Damaged files


def test_truncated_generated_data_is_named_and_the_remedy_helps(copied):
    path = copied.workspace / "brbs" / "generated" / "v0001" / "generated.h5"
    os.truncate(path, path.stat().st_size // 2)

    for command in (("train-seg", "--force"), ("run", "--set", "train_seg.steps=3")):
        line = fault(copied.lrls(*command, "--method", "brbs"))
        assert line.endswith(
            "brbs/generated/v0001: generated.h5 changed since it was written; make it again with "
            "`lrls generate --force`."
        )
    assert copied.versions("brbs/segmentation") == ["v0001"]

    copied.made("generate", "--method", "brbs", "--force")
    copied.made("train-seg", "--method", "brbs", "--force")
    assert copied.manifest("brbs/segmentation", "v0002").digest == copied.manifest("brbs/segmentation").digest


@pytest.mark.parametrize(
    ("target", "command", "remedy"),
    [
        ("brbs/registration", "generate", "make it again with `lrls train-reg --force`."),
        ("brbs/segmentation", "eval", "make it again with `lrls train-seg --force`."),
    ],
)
def test_a_changed_byte_in_the_weights_is_found(target, command, remedy, copied):
    path = copied.workspace / target / "v0001" / "weights.safetensors"
    change_a_byte(path, path.stat().st_size - 2)
    line = fault(copied.lrls(command, "--method", "brbs", "--force"))
    assert line.endswith(f"{target}/v0001: weights.safetensors changed since it was written; {remedy}")


@pytest.mark.parametrize(
    ("dataset", "command"),
    [
        ("images/free_1", ("train-reg", "--method", "brbs", "--force")),
        ("labels/atlas_1", ("run", "--method", "unet")),
        ("reference", ("preprocess", "--part", "dev")),
    ],
)
def test_a_changed_byte_in_the_cohort_is_found(dataset, command, copied):
    path = copied.workspace / "cohort" / "v0001" / "cohort.h5"
    with h5py.File(path) as file:
        offset = file[dataset].id.get_offset()
    change_a_byte(path, offset + 100)
    before = copied.digests()

    line = fault(copied.lrls(*command))

    assert line.endswith(
        "cohort/v0001: cohort.h5 changed since it was written; make it again with `lrls preprocess --force`."
    )
    assert copied.digests() == before


def test_an_unreadable_manifest_is_named(copied):
    (copied.workspace / "brbs" / "registration" / "v0001" / "artifact.json").write_text("{")
    line = "artifact.json is not readable; delete that folder and make it again."
    assert line in fault(copied.lrls("generate", "--method", "brbs"))
    told = copied.made("history").out
    assert line in told and "brbs/segmentation/v0001" in told


def test_training_starts_over_where_its_state_is_damaged_and_says_so(copied, monkeypatch):
    command = ("train-seg", "--method", "unet")
    digests = []
    for damage in (lambda _: None, lambda state: os.truncate(state, 1000)):
        with monkeypatch.context() as patch:
            patch.setattr("stages.training.runs.save_weights", full_disk)
            fault(copied.lrls(*command))
        assert "unfinished: unet/segmentation/.draft-" in copied.made("history").out
        (state,) = (copied.workspace / "unet" / "segmentation").glob(".draft-*/resume/training.pt")
        damage(state)
        done = copied.made(*command)
        digests.append(copied.manifest("unet/segmentation").digest)
        shutil.rmtree(copied.workspace / "unet" / "segmentation")
    assert "training: the state that a stopped run left is damaged; training starts over." in done.err
    assert len(set(digests)) == 1


# The disk and other processes


@pytest.mark.parametrize(
    ("place", "command", "target"),
    [
        ("stages.data.prepare.label_to_grid", ("preprocess",), "cohort"),
        ("stages.training.loop.save_state", ("train-reg", "--method", "brbs"), "brbs/registration"),
        ("h5py.Dataset.__setitem__", ("generate", "--method", "brbs"), "brbs/generated"),
        ("stages.training.runs.save_weights", ("train-seg", "--method", "brbs"), "brbs/segmentation"),
        ("stages.artifacts.draft.fsync", ("train-seg", "--method", "unet"), "unet/segmentation"),
        ("stages.evaluate._write_label", ("eval", "--method", "brbs"), "brbs/scores"),
    ],
)
def test_a_full_disk_keeps_the_draft_and_the_same_command_finishes(
    place, command, target, copied, trained, monkeypatch, in_this_process
):
    expected = trained.digests().get(f"{target}/v0001")
    shutil.rmtree(copied.workspace / target, ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr(place, full_disk)
        line = fault(copied.lrls(*command))
    assert line.startswith("no room on the disk for ")
    assert line.endswith(f"{target}; free some and run the same command again: it resumes.")
    assert copied.versions(target) == []
    assert len(list((copied.workspace / target).glob(".draft-*"))) == 1

    copied.made(*command)

    assert copied.versions(target) == ["v0001"]
    assert list((copied.workspace / target).glob(".draft-*")) == []
    assert expected in (None, copied.digests()[f"{target}/v0001"])


def test_data_that_would_not_fit_is_refused_before_it_is_written(copied, monkeypatch):
    usage = shutil.disk_usage(copied.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    line = fault(copied.lrls("generate", "--method", "brbs", "--force"))
    assert line.endswith("1 kB free; make room, or set workspace to a folder on another disk.")
    assert copied.versions("brbs/generated") == ["v0001"]


def test_a_second_run_of_the_same_is_refused(copied):
    command = [sys.executable, "-m", "lrls_cli.main", "train-seg", str(copied.config_file), "--method", "unet"]
    first = subprocess.Popen([*command, "--set", "train_seg.steps=1000000"], stderr=subprocess.DEVNULL)
    try:
        target = copied.workspace / "unet" / "segmentation"
        end = time.monotonic() + 300
        while not list(target.glob(".draft-*/resume/training.pt")):
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        for second in ("train-seg",), ("run", "--set", "seed=0"):
            line = fault(copied.lrls(*second, "--set", "train_seg.steps=1000000", "--method", "unet"))
            assert line.startswith("another lrls process is writing in ")
            assert line.endswith("unet/segmentation; wait for it or stop it.")
        copied.made("run", "--method", "affine", "--until", "train-seg")  # writes elsewhere
        copied.made("train-seg", "--method", "unet", "--set", "seed=1")  # another seed
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    copied.made("train-seg", "--method", "unet")


def test_an_interrupted_run_says_that_it_resumes(copied, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stages.training.loop._save", interrupt)
        done = copied.lrls("train-seg", "--method", "unet")
    assert done.code == 130
    assert done.err.splitlines()[-1] == "lrls: stopped; the same command resumes."
    copied.made("train-seg", "--method", "unet")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_training_that_a_signal_stops_goes_on_behind_its_last_step(name, copied, monkeypatch):
    """Between checkpoints: of four steps the third is the last, and only the fourth is left."""
    taken = []

    def counted(*arguments: object) -> object:
        taken.append(arguments)
        if len(taken) == 3:
            for _ in range(2):  # a second one changes nothing
                os.kill(os.getpid(), getattr(signal, name))
        return move(*arguments)

    move = loop._move
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_move", counted)
        done = copied.lrls("train-seg", "--method", "unet")
        assert (done.code, done.err.splitlines()[-1]) == (75, "lrls: stopped; the same command resumes.")
        assert len(taken) == 3
        (draft,) = (copied.workspace / "unet" / "segmentation").glob(".draft-*")
        assert load_state(draft / "resume" / "training.pt")["step"] == 3
        taken.clear()
        copied.made("train-seg", "--method", "unet")
        assert len(taken) == 1
    copied.made("train-seg", "--method", "unet", "--force")
    resumed, undisturbed = (copied.manifest("unet/segmentation", version) for version in ("v0001", "v0002"))
    assert resumed.digest == undisturbed.digest


# What the data do


@pytest.mark.parametrize(
    ("loss", "command", "expected"),
    [
        (
            "unet.overlap_and_cross_entropy",
            "train-seg",
            "overlap of segmentation is nan at step 3 of labelled, scans atlas_1;",
        ),
        (
            "brbs.similarity",
            "train-reg",
            "similarity of registration is nan at step 3 of kcc, scans atlas_1, free_",
        ),
    ],
)
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_scans(loss, command, expected, copied, monkeypatch):
    from stages.methods import registration_losses, unet

    module, name = loss.split(".")
    target = f"{module}/{'segmentation' if command == 'train-seg' else 'registration'}"
    shutil.rmtree(copied.workspace / target, ignore_errors=True)
    of_registration = registration_losses.SIMILARITIES
    real = getattr(unet, name) if module == "unet" else of_registration["lncc"]
    calls = []

    def third_is_nan(state: object) -> torch.Tensor:
        calls.append(state)
        return real(state) * (float("nan") if len(calls) == 3 else 1.0)

    with monkeypatch.context() as patch:
        if module == "unet":
            patch.setattr(unet, name, third_is_nan)
        else:
            patch.setitem(of_registration, "lncc", third_is_nan)
        line = fault(copied.lrls(command, "--method", module))
    assert line.startswith(f"training stopped: {expected}")
    assert line.endswith("the same command resumes at the last checkpoint.")
    assert copied.versions(target) == []

    copied.made(command, "--method", module)
    resumed = copied.manifest(target).digest
    copied.made(command, "--method", module, "--force")
    assert copied.manifest(target, "v0002").digest == resumed


def test_a_screening_that_accepts_nothing_says_how_far_off_it_is(copied):
    line = fault(copied.lrls("generate", "--method", "brbs", "--set", "generate.min_similarity=0.999"))
    assert line.startswith("the screening accepts none of 2 couples (best similarity 0.")
    assert line.endswith("loosen generate.min_similarity or generate.max_folding.")
    copied.made("generate", "--method", "brbs", "--set", "generate.min_similarity=0.0")


def unbelievable(*_: object, **__: object) -> np.ndarray:
    return np.diag([3.0, 1.0, 1.0, 1.0])


def failing(reference: sitk.Image, scan: sitk.Image, *_: object, **__: object) -> np.ndarray:
    if scan is reference:
        return np.eye(4)
    raise RuntimeError("Registration failed with error code 1")


@pytest.mark.parametrize("ants", [unbelievable, failing])
def test_a_failed_alignment_falls_back_and_is_told_again_with_the_scores(
    ants, new_project, tmp_path, monkeypatch, in_this_process
):
    monkeypatch.setattr("stages.data.alignment._ants", ants)
    project = new_project(tmp_path, preprocess={"align": "rigid"}, data={"unlabeled": ["free_1"], "test": ["test_1"]})

    done = project.made("preprocess")
    assert (
        "warning: case free_1: the alignment was refused, centres of mass are used; look at qc/cohort.png." in done.out
    )

    for _ in range(2):  # made, up to date
        done = project.made("run", "--method", "affine")
        for case in ("free_1", "test_1"):
            assert f"warning: case {case}: its alignment was refused, centres of mass were used" in done.out
    summary = json.loads((project.workspace / "affine" / "scores" / "v0001" / "summary.json").read_text())
    assert summary["alignment_fell_back"] == ["free_1", "test_1"]


def test_if_ants_fails_on_the_first_atlas_too_no_scan_is_blamed(project, monkeypatch, in_this_process):
    def broken(*_: object, **__: object) -> np.ndarray:
        raise RuntimeError("Registration failed with error code 1")

    monkeypatch.setattr("stages.data.alignment._ants", broken)
    done = project.lrls("preprocess", "--set", "preprocess.align=affine")
    assert (done.code, done.err.splitlines()[-1]) == (
        1,
        "lrls: ANTs cannot register an atlas to itself, so the scans are not to blame; set TMPDIR to a folder with "
        "free space, look whether memory is left, or install antspyx again.",
    )
    assert not list(project.workspace.glob(".scans/alignments/*"))


def test_held_out_scans_without_any_structure_are_not_scored_as_perfect(scans, copied, tmp_path):
    """One such scan: its structures are absent in both or missed. All of them: there is nothing to score."""
    folder = tmp_path / "scans"
    shutil.copytree(scans, folder)
    for case, expected in (("test_1", 0), ("test_2", 1)):
        path = str(folder / "labels" / f"{case}.nii.gz")
        sitk.WriteImage(sitk.ReadImage(path) * 0, path)
        done = copied.lrls("eval", "--method", "brbs", "--set", f"data.folder={folder}")
        assert done.code == expected
    assert fault(done) == "no label map of data.test holds any of the structures; correct their values in structures."

    summary = json.loads((copied.workspace / "brbs" / "scores" / "v0001" / "summary.json").read_text())
    found = summary["outputs"]["registration"]
    assert summary["scans"] == 2
    assert found["absent_in_both"] + found["missed"] == 4
    assert found["dsc"]["min"] == 0


def test_a_scan_that_lies_elsewhere_is_refused(scans, new_project, tmp_path):
    folder = tmp_path / "scans"
    shutil.copytree(scans, folder)
    path = str(folder / "images" / "free_2.nii.gz")
    image = sitk.ReadImage(path)
    image.SetOrigin([500.0, 0.0, 0.0])  # mm
    sitk.WriteImage(image, path)
    project = new_project(tmp_path, data={"folder": str(folder)})
    assert fault(project.lrls("preprocess")) == (
        "case free_2: its image does not reach the grid, which lies round the first atlas; "
        "set preprocess.align to rigid or affine, or correct the header's origin."
    )
    assert project.versions("cohort") == []


def test_artifacts_of_an_older_cohort_are_passed_over(copied):
    copied.made("preprocess", "--set", "preprocess.margin_mm=3")
    other = ("--method", "brbs", "--set", "preprocess.margin_mm=3")
    assert fault(copied.lrls("generate", *other)).endswith(
        "brbs/registration: no version was made from the newest cohort with these settings; "
        "make one with `lrls train-reg`."
    )
    copied.made("generate", "--method", "brbs")  # with the settings of the older cohort, that one is read
    assert copied.manifest("brbs/generated", copied.versions("brbs/generated")[-1]).identity.inputs["cohort"] == (
        copied.manifest("cohort", "v0001").digest
    )


def test_artifacts_of_an_older_format_are_listed_and_made_again(copied):
    for kind in ("registration", "generated", "segmentation"):
        aged(copied.workspace / "brbs" / kind / "v0001")
    assert copied.made("history").out.count("(older format: not read)") == 3
    assert fault(copied.lrls("generate", "--method", "brbs")).endswith(
        "brbs/registration holds only versions of an older format: registration format 2, this lrls reads 3; "
        "make it again with `lrls train-reg`."
    )
    copied.made("train-reg", "--method", "brbs")
    assert copied.manifest("brbs/registration", "v0002").identity.format_version == 3


def test_weights_of_another_network_with_the_same_shapes_are_not_taken(copied):
    line = fault(copied.lrls("eval", "--method", "brbs", "--set", "methods.brbs.diffeomorphic=true"))
    assert line.endswith(
        "no version was made from the newest cohort with these settings; make one with `lrls train-reg`."
    )


def test_the_order_of_structures_is_part_of_a_cohort(copied):
    values = yaml.safe_load(copied.config_file.read_text())
    values["structures"] = dict(reversed(values["structures"].items()))
    copied.config_file.write_text(yaml.safe_dump(values, sort_keys=False))
    assert fault(copied.lrls("train-reg", "--method", "brbs")).startswith("no version of cohort was made with these")
    copied.made("preprocess")
    assert copied.versions("cohort") == ["v0001", "v0002"]


def test_a_stage_does_not_run_on_a_cohort_of_other_settings(copied):
    assert fault(copied.lrls("train-reg", "--method", "brbs", "--set", "preprocess.margin_mm=4")) == (
        "no version of cohort was made with these preprocess, structures and data settings; "
        "make one with `lrls preprocess`."
    )


def test_a_label_map_to_score_on_is_missed_before_training(tmp_path, new_project):
    project = new_project(tmp_path, data={"test": ["free_1", "nobody"]})
    assert fault(project.lrls("run", "--method", "unet")).startswith("case nobody: no label map")
    assert not project.workspace.exists()


def test_a_wrong_folder_is_one_fault(tmp_path, new_project):
    project = new_project(tmp_path, data={"folder": str(tmp_path / "nowhere")})
    for command in (("check",), ("run", "--method", "unet")):
        done = project.lrls(*command)
        assert done.code == 1
        lines = (done.out + done.err).splitlines()
        assert sum("is not a folder; correct it." in line for line in lines) == 1
        assert not any("no label map" in line for line in lines)


@pytest.mark.parametrize("typed", ["train_seg.steps=2", "train_seg={steps: 2}"])
def test_training_settings_that_are_typed_come_before_those_of_a_method_in_the_file(typed, tmp_path, new_project):
    project = new_project(tmp_path, methods={"unet": {"train_seg": {"steps": 9, "batch_size": 1}}})
    project.made("run", "--method", "unet", "--until", "train-seg", "--set", typed)
    settings = project.manifest("unet/segmentation").identity.config["train_seg"]
    assert (settings["steps"], settings["batch_size"]) == (2, 1)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("preprocess.spacing_mm=0", "setting preprocess.spacing_mm: input should be greater than 0 (found 0)"),
        ("structures={foo: 0}", "setting structures: foo has value 0, which is the background"),
        ("preprocess.shape=[0,10,10]", "setting preprocess.shape.0: input should be greater than 0 (found 0)"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(setting, expected, project):
    assert expected in fault(project.lrls("check", "--set", setting))


@pytest.mark.parametrize("part", ["dev", "supervised"])
def test_a_part_without_scans_is_no_cohort(part, tmp_path, new_project):
    project = new_project(tmp_path, data={part: []})
    line = f"data.{part} lists no scan; list labelled scans there."
    assert fault(project.lrls("preprocess", "--part", part)) == line
    if part == "supervised":
        assert fault(project.lrls("run", "--method", "supervised")) == line


def test_check_looks_at_the_settings_of_every_method(project):
    done = project.lrls("check", "--set", "methods.brbs.semantic_wieght=1")
    assert (done.code, done.err) == (
        1,
        "lrls: methods.brbs: unknown setting semantic_wieght; did you mean semantic_weight?\n",
    )


def _killed(case: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_by(case: str) -> str:
    if case == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return case


def test_a_scan_that_kills_its_worker_costs_no_other_scan():
    cases = [("a",), ("bad",), ("b",), ("c",), ("bad",), ("d",)]
    results = list(in_processes(_killed_by, cases, workers=2, broken=lambda case: f"{case} is lost"))
    assert sorted(results) == ["a", "b", "bad is lost", "bad is lost", "c", "d"]


@pytest.mark.parametrize("command", [("preprocess",), ("check",)])
def test_a_scan_that_kills_its_worker_is_named_and_the_others_are_checked(command, project, monkeypatch):
    def each(_, function, arguments, *, broken):
        for case in arguments:
            kills = any(isinstance(argument, Looked) and argument.case == "free_2" for argument in case)
            yield broken(*case) if kills else function(*case)

    monkeypatch.setattr("stages.processes.Processes.each", each)
    monkeypatch.setattr("stages.data.checks.WORTH_PROCESSES", 0)
    done = project.lrls(*command)
    lines = (done.err + done.out).splitlines()
    assert done.code == 1
    assert [line.removeprefix("lrls: ") for line in lines if "killed" in line] == [
        "case free_2: the process that read it was killed, by a damaged file or for lack of memory; "
        "export it again, crop it, or set preprocess.workers to 1."
    ]


def _own_temporary_folder(case: str) -> str:
    return tempfile.gettempdir()


def test_workers_have_a_temporary_folder_that_ants_can_read_and_that_goes_with_them(tmp_path, monkeypatch):
    odd = tmp_path / "job[1],x"
    odd.mkdir()
    monkeypatch.setenv("TMPDIR", str(odd))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (folder,) = in_processes(_own_temporary_folder, [("a",)])
    assert "[" not in folder and "," not in folder
    assert not Path(folder).exists()


def test_a_killed_worker_is_told_in_one_line():
    with pytest.raises(LrlsError, match=r"^one of 1 worker processes was killed, most likely for lack of memory"):
        list(in_processes(_killed, [("a",)], workers=1))
