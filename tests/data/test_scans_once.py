"""A scan is decoded, checked, aligned and brought to the grid once; and what is kept to that end never lies."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import Project

from stages.data import contents, facts, intake, prepare
from stages.data.contents import Contents
from stages.data.kept import keep, read_kept

NEVER_RACY = -(10**18)


@pytest.fixture
def here(scans, new_project, tmp_path, in_this_process, no_pictures) -> Project:
    """A project with scans of its own beside it, in `scans`; three of them have no part."""
    shutil.copytree(scans, tmp_path / "scans")
    data = {"folder": "scans", "supervised": ["free_1"], "dev": [], "test": ["test_1"]}
    return new_project(tmp_path, data=data)


@pytest.fixture
def decoded(monkeypatch) -> Counter[str]:
    """How often each file was decoded, by "images/case" or "labels/case"."""
    counts: Counter[str] = Counter()
    read = intake.read_voxels

    def counted(files, data_file=None):
        path = Path(files)
        counts[f"{path.parent.name}/{path.name.partition('.')[0]}"] += 1
        return read(files, data_file)

    monkeypatch.setattr(intake, "read_voxels", counted)
    return counts


@pytest.fixture
def alignments(monkeypatch) -> list[str]:
    """An entry per alignment that was made."""
    calls: list[str] = []
    align = prepare.aligned.__globals__["align"]

    def counted(*arguments, **settings):
        calls.append(settings["kind"])
        return align(*arguments, **settings)

    monkeypatch.setattr("stages.data.alignments.align", counted)
    return calls


def image_file(project: Project, case: str) -> Path:
    return project.folder / "scans" / "images" / f"{case}.nii.gz"


def label_file(project: Project, case: str) -> Path:
    return project.folder / "scans" / "labels" / f"{case}.nii.gz"


def change(path: Path, function=lambda voxels: voxels[::-1]) -> None:
    """Another image in the same file."""
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(np.ascontiguousarray(function(sitk.GetArrayFromImage(image))))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path), useCompression=True)


# Files


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files whose bytes were read to look at them."""
    names: list[str] = []
    digest = contents.bytes_digest
    monkeypatch.setattr(contents, "bytes_digest", lambda file: names.append(file.name) or digest(file))
    return names


def looked(workspace: Path, file: Path) -> str:
    found = Contents(workspace)
    content = found.look(file)
    found.save()
    return content.digest


def test_a_file_that_is_as_it_was_is_not_read_again(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(contents, "RACY_NS", NEVER_RACY)
    file = tmp_path / "x.nii.gz"
    file.write_bytes(b"one")
    assert looked(tmp_path / "runs", file) == looked(tmp_path / "runs", file) != ""
    assert hashed == ["x.nii.gz"]


def test_a_file_that_was_just_written_is_read_again_as_it_may_be_written_once_more(tmp_path, hashed):
    file = tmp_path / "x.nii.gz"
    file.write_bytes(b"one")
    before = looked(tmp_path / "runs", file)
    stamp = file.stat()
    file.write_bytes(b"two")  # of the same size
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert looked(tmp_path / "runs", file) != before
    looked(tmp_path / "runs", file)
    assert len(hashed) == 3


def test_a_time_of_modification_that_is_set_back_hides_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "RACY_NS", NEVER_RACY)
    file = tmp_path / "x.nii.gz"
    file.write_bytes(b"one")
    before, stamp = looked(tmp_path / "runs", file), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)
    assert looked(tmp_path / "runs", file) != before


def test_a_file_whose_voxels_lie_elsewhere_is_always_decoded(tmp_path):
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    for name, is_known in (("x.mha", True), ("x.nrrd", True), ("x.mhd", False)):
        sitk.WriteImage(image, str(tmp_path / name))
        assert bool(looked(tmp_path / "runs", tmp_path / name)) == is_known
    header, _, _ = (tmp_path / "x.nrrd").read_bytes().partition(b"\n\n")
    (tmp_path / "detached.nrrd").write_bytes(header + b"\ndata file: x.raw\n\n")
    (tmp_path / "detached.mha").write_bytes((tmp_path / "x.mhd").read_bytes())
    for name in ("detached.nrrd", "detached.mha"):
        assert looked(tmp_path / "runs", tmp_path / name) == ""


def test_a_dicom_folder_is_all_its_files(tmp_path):
    (tmp_path / "ct").mkdir()
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / "ct" / name).write_bytes(name.encode())
    before = looked(tmp_path / "runs", tmp_path / "ct")
    assert before
    (tmp_path / "ct" / "2.dcm").rename(tmp_path / "ct" / "0.dcm")
    assert looked(tmp_path / "runs", tmp_path / "ct") != before


def test_what_another_process_saw_is_kept(tmp_path):
    first, second = Contents(tmp_path), Contents(tmp_path)
    for name, found in (("a.nii", first), ("b.nii", second)):
        (tmp_path / name).write_bytes(b"x")
        found.look(tmp_path / name)
        found.save()
    assert read_kept(tmp_path / ".scans" / "files.json").keys() == {"a.nii", "b.nii"}


def test_a_kept_file_that_is_not_as_it_was_written_counts_as_missing(tmp_path):
    file = tmp_path / "kept" / "x.json"
    keep(file, {"n": 125})
    assert read_kept(file) == {"n": 125}
    file.write_text(file.read_text().replace("125", "135"))
    assert read_kept(file) is None
    for content in (b"", b"{", b"[]", b"null", b"\xff\xfe"):
        file.write_bytes(content)
        assert read_kept(file) is None


# Decodes


def test_a_fresh_run_decodes_every_scan_of_the_cohort_once(here, decoded):
    here.made("preprocess")

    once = {f"images/{case}" for case in ("atlas_1", "free_1", "free_2", "test_1")} | {"labels/atlas_1"}
    assert decoded == dict.fromkeys(once, 1)


@pytest.mark.parametrize(
    "command",
    [("run", "--method", "affine"), ("eval", "--method", "affine"), ("preprocess",), ("preprocess", "--part", "test")],
)
def test_a_command_that_is_up_to_date_decodes_nothing(command, here, decoded):
    here.made("run", "--method", "affine")
    before = here.digests()
    assert decoded["images/free_1"] == 1
    decoded.clear()

    here.made(*command)

    assert decoded == {}
    assert here.digests() == before


def test_suggest_atlas_decodes_every_scan_once_and_again_none(here, decoded):
    unlabeled = ["free_1", "free_2", "dev_1", "test_2"]
    here.made("suggest-atlas", "--set", f"data.unlabeled=[{', '.join(unlabeled)}]")
    assert decoded == {f"images/{case}": 1 for case in unlabeled}
    here.made("suggest-atlas", "--set", f"data.unlabeled=[{', '.join(unlabeled)}]")
    assert decoded == {f"images/{case}": 1 for case in unlabeled}


def test_check_decodes_everything_afresh_and_keeps_nothing(here, decoded):
    for _ in range(2):
        here.made("check")
    assert decoded.pop("labels/atlas_1") == 4  # again for what the grid loses of its structures
    assert set(decoded.values()) == {2}
    assert not here.workspace.exists()


def test_a_changed_scan_is_decoded_and_makes_a_new_cohort(here, decoded):
    here.made("preprocess")
    decoded.clear()
    change(image_file(here, "free_2"))

    here.made("preprocess")

    assert here.versions("cohort") == ["v0001", "v0002"]
    assert decoded["images/free_2"] == 2  # to see that it is another one, and with all others
    assert decoded["images/free_1"] == 1


def test_the_same_voxels_in_another_file_are_no_new_cohort(here, decoded):
    here.made("preprocess")
    voxels = gzip.decompress(image_file(here, "free_1").read_bytes())
    image_file(here, "free_1").with_suffix("").write_bytes(voxels)
    image_file(here, "free_1").unlink()
    voxels = gzip.decompress(image_file(here, "free_2").read_bytes())
    image_file(here, "free_2").write_bytes(gzip.compress(voxels, 1))
    decoded.clear()

    here.made("preprocess")

    assert decoded == {"images/free_1": 1, "images/free_2": 1}
    assert here.versions("cohort") == ["v0001"]
    assert list((here.workspace / "cohort").glob(".work-*")) == []


def test_a_pair_of_header_and_voxels_is_decoded_by_every_command(here, decoded):
    image = sitk.ReadImage(str(image_file(here, "free_2")))
    sitk.WriteImage(image, str(image_file(here, "free_2")).replace(".nii.gz", ".mhd"))
    image_file(here, "free_2").unlink()
    for _ in range(2):
        here.made("preprocess")
    assert here.versions("cohort") == ["v0001"]
    assert (decoded["images/free_2"], decoded["images/free_1"]) == (2, 1)

    raw = image_file(here, "free_2").with_name("free_2.raw")
    voxels = np.frombuffer(raw.read_bytes(), np.uint8).copy()
    raw.write_bytes(voxels[::-1].tobytes())
    here.made("preprocess")
    assert here.versions("cohort") == ["v0001", "v0002"]


# Alignments


def test_an_alignment_is_made_once_whatever_the_part_or_the_seed(here, alignments):
    settings = ("--set", "preprocess.align=rigid")
    here.made("preprocess", *settings)
    assert alignments == ["rigid"] * 2  # the atlas is the reference
    here.made("preprocess", *settings, "--set", "seed=3")
    here.made("preprocess", *settings, "--part", "supervised")  # free_1 again
    assert len(alignments) == 2
    here.made("preprocess", *settings, "--set", "preprocess.margin_mm=2", "--force")
    assert len(alignments) == 2
    assert here.versions("cohort") == ["v0001", "v0002"]
    here.made("preprocess", "--set", "preprocess.align=centre")
    assert len(alignments) == 4


# What goes wrong


def test_a_stopped_pass_goes_on_behind_the_scans_that_are_on_the_grid(here, decoded, monkeypatch):
    here.made("preprocess")
    expected = here.digests()["cohort/v0001"]
    shutil.rmtree(here.workspace)
    decoded.clear()
    brought = []
    bring = prepare.bring_scan

    def stopped(config, looked, *rest):
        if brought:
            raise KeyboardInterrupt
        brought.append(looked.case)
        return bring(config, looked, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("stages.data.bringing.bring_scan", stopped)
        assert here.lrls("preprocess").code == 130
    assert here.versions("cohort") == []

    here.made("preprocess")

    assert brought == ["free_1"]
    assert set(decoded.values()) == {1}
    assert here.digests()["cohort/v0001"] == expected
    assert list((here.workspace / "cohort").glob(".work-*")) == []


def test_scans_that_another_process_may_be_about_to_write_are_left_to_it_for_a_day(here):
    new, old = (here.workspace / "cohort" / f".work-{name}" for name in ("new", "old"))
    for folder in (new, old):
        folder.mkdir(parents=True)
    os.utime(old, (1e9, 1e9))
    here.made("preprocess")
    assert list((here.workspace / "cohort").glob(".work-*")) == [new]


def test_with_the_first_fault_the_rest_is_checked_and_nothing_aligned(here, alignments):
    change(image_file(here, "free_1"), lambda voxels: voxels * 0)
    image_file(here, "free_2").write_bytes(b"no image")
    config = ("--set", "preprocess.align=centre", "--set", "data.supervised=[]")
    for _ in range(2):  # found, known
        done = here.lrls("preprocess", *config)
        assert done.err.splitlines()[-1] == (
            "lrls: case free_1: image is empty (every voxel is 0); export the scan again or take the case out of the "
            "configuration. (1 more: `lrls check` lists them)"
        )
    assert alignments == []
    assert here.versions("cohort") == []
    assert list((here.workspace / "cohort").glob(".work-*")) == []


def test_a_fault_that_shows_in_headers_is_told_before_anything_is_aligned(here, alignments):
    label = sitk.ReadImage(str(label_file(here, "atlas_1")))
    label.SetOrigin((0, 0, 99))
    sitk.WriteImage(label, str(label_file(here, "atlas_1")))
    done = here.lrls("preprocess")
    assert "case atlas_1: label origin (0.0, 0.0, 99.0) mm, image origin" in done.err
    assert alignments == []


def test_a_label_map_to_score_with_that_lies_elsewhere_is_told_before_training(here):
    label = sitk.ReadImage(str(label_file(here, "test_1")))
    label.SetSpacing((1, 1, 9))
    sitk.WriteImage(label, str(label_file(here, "test_1")))
    done = here.lrls("run", "--method", "unet")
    assert "case test_1: label spacing" in done.err
    assert not here.workspace.exists()


@pytest.mark.parametrize("damage", [lambda _: b"", lambda data: data[:-9], lambda data: data.replace(b"1", b"2")])
def test_damage_to_what_is_kept_costs_time_and_nothing_else(damage, here, decoded):
    here.made("run", "--method", "affine")
    expected = here.digests()
    kept = [path for path in (here.workspace / ".scans").rglob("*.json")]
    assert {path.parent.name for path in kept} == {".scans", "facts", "alignments"}
    for path in kept:
        path.write_bytes(damage(path.read_bytes()))
    decoded.clear()

    here.made("run", "--method", "affine")

    assert here.digests() == expected
    assert decoded["images/free_1"] == 1


def test_facts_depend_on_the_table_of_values(here):
    here.made("preprocess")
    done = here.lrls("preprocess", "--set", "structures={core: 205}")
    assert "case atlas_1: label values 3, 17, 1000 not named in structures" in done.err


def test_a_scan_that_changes_while_it_is_read_is_not_remembered_as_what_it_was(here, monkeypatch):
    config = here.config
    (looked,) = facts.Known(config).look({"free_1": False}).values()
    change(image_file(here, "free_1"))
    facts.examine(config, looked)
    assert facts.known_facts(config, looked) is None


def test_a_scan_that_changes_while_it_is_brought_to_the_grid_leaves_nothing_there(here, monkeypatch):
    examine = prepare.examine

    def changing(config, looked, **options):
        found = examine(config, looked, **options)
        if looked.case == "free_2":
            change(image_file(here, "free_2"))
        return found

    monkeypatch.setattr(prepare, "examine", changing)
    done = here.lrls("preprocess")
    assert "case free_2: its files changed while they were read; run the command again." in done.err
    assert list((here.workspace / "cohort").glob(".work-*")) == []


def test_a_label_map_that_changes_while_it_is_scored_is_noticed(here, monkeypatch):
    here.made("run", "--method", "affine", "--until", "preprocess")
    from stages import evaluate

    answers = evaluate._answers

    def changing(*arguments):
        for each in answers(*arguments):
            change(label_file(here, "test_1"))
            yield each

    monkeypatch.setattr(evaluate, "_answers", changing)
    done = here.lrls("eval", "--method", "affine")
    assert done.err.splitlines()[-1] == (
        "lrls: case test_1: its label map has changed since the command began; run the command again."
    )


# Provenance


def test_label_maps_that_are_edited_behind_a_cohort_change_no_answer(here, tmp_path):
    """The borders that answers are drawn along, too, come from the cohort."""
    on = ("--method", "unet", "--set", "methods.unet.flat_borders=true")
    change(label_file(here, "atlas_1"), halved)
    here.made("run", *on)
    cohort = json.loads((here.workspace / "cohort" / "v0001" / "cohort.json").read_text())
    assert [border["classes"] for border in cohort["flat_borders"]] == [[2, 3]]  # of the structures by name

    def answers(name: str) -> list[np.ndarray | str]:
        scores = here.made("eval", "--force", *on).out.splitlines()[-1]
        (calibration,) = here.made("calibrate", "--force", "--couples", "9", *on).out.splitlines()[-1:]
        model = tmp_path / name / "model"
        here.made("export", *on, "--out", str(model))
        here.made("predict", str(image_file(here, "test_2")), "--out", str(tmp_path / name / "labels"), *on)
        label = sitk.ReadImage(str(tmp_path / name / "labels" / "test_2.nii.gz"))
        return [
            pd.read_csv(f"{scores}/scores.csv").to_csv(),
            (here.workspace / "unet" / "calibration" / Path(calibration).name / "calibration.json").read_text(),
            (model / "model.json").read_text(),
            str(sitk.GetArrayFromImage(label).tobytes()),
        ]

    before = answers("before")
    change(label_file(here, "atlas_1"), lambda voxels: np.where(voxels == 17, 0, voxels))
    assert answers("after") == before
    assert here.versions("cohort") == ["v0001"]


def halved(voxels: np.ndarray) -> np.ndarray:
    """The first two structures as the halves of a block."""
    result = np.where(np.isin(voxels, (3, 17)), 0, voxels)
    d, h, w = voxels.shape
    result[d // 4 : d // 2, h // 4 : h // 2, w // 4 : w // 2] = 3
    result[d // 2 : 3 * d // 4, h // 4 : h // 2, w // 4 : w // 2] = 17
    return result
