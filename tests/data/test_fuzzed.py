"""Inputs that fuzzing found: what libraries crash on, print, or take as sound although it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stages.data.faults import IntakeError
from stages.data.intake import read_image


def written(path: Path) -> tuple[bytes, np.ndarray]:
    """A compressed image of 120 voxels: its bytes and its voxels."""
    voxels = np.random.default_rng(0).integers(0, 9, (4, 5, 6)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), useCompression=True)
    return path.read_bytes(), voxels


def refused(path: Path, kind: str = "image") -> str:
    with pytest.raises(IntakeError) as error:
        read_image(path, "p1", kind)
    return str(error.value)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ".nii.gz"])
def test_damage_in_compressed_voxels_is_refused_or_has_no_effect(ending, tmp_path):
    """MetaIO says `Uncompress failed` on the terminal and hands out what it has; the reader of NRRD checks no sum."""
    path = tmp_path / f"scan{ending}"
    _, voxels = written(path)
    packed = tmp_path / "scan.zraw" if ending == ".mhd" else path
    sound = packed.read_bytes()
    for place in range(len(sound) - 100, len(sound)):
        data = bytearray(sound)
        data[place] ^= 16
        packed.write_bytes(data)
        try:
            found = read_image(path, "p1")
        except IntakeError:
            continue
        else:
            np.testing.assert_array_equal(sitk.GetArrayFromImage(found), voxels)
    packed.write_bytes(sound[:-5])
    assert "is unreadable or truncated" in refused(path)


def test_a_smaller_size_than_that_of_the_compressed_voxels_is_refused(tmp_path):
    path = tmp_path / "scan.mha"
    data, _ = written(path)
    (size,) = (line for line in data.split(b"\n") if line.startswith(b"CompressedDataSize"))
    path.write_bytes(data.replace(size, b"CompressedDataSize = 20"))
    assert "is unreadable or truncated" in refused(path)


@pytest.mark.parametrize("line", [b"[" * 4000, b"kinds: " + b"x" * 4000, b"thing: 1"])
def test_a_line_that_is_no_field_of_nrrd_never_reaches_its_library(line, tmp_path):
    """The library prints the line into a buffer of a fixed length, and the process ends."""
    path = tmp_path / "scan.nrrd"
    data, _ = written(path)
    path.write_bytes(data.replace(b"\nkinds:", b"\n" + line + b"\nkinds:", 1))
    assert "is unreadable or truncated" in refused(path)


def test_libraries_print_nothing_about_a_damaged_file(tmp_path, capfd):
    path = tmp_path / "scan.mha"
    data, _ = written(path)
    path.write_bytes(data.replace(b"NDims = 3\n", b"").replace(b"DimSize", b"NDims = 3\nDimSize"))
    assert "is unreadable or truncated" in refused(path)
    assert capfd.readouterr() == ("", "")


def test_a_scheduler_file_without_end_is_none(tmp_path):
    from stages.dask_clusters import _address
    from stages.errors import LrlsError

    file = tmp_path / "scheduler.json"
    file.write_text("[" * 60_000 + "]" * 60_000, encoding="utf-8")
    with pytest.raises(LrlsError, match="is no file of a Dask scheduler"):
        _address(str(file))
    file.write_text(json.dumps({"address": "tcp://a:1"}), encoding="utf-8")
    assert _address(str(file)) == "tcp://a:1"


def test_a_misspelt_note_of_a_review_is_named(tmp_path):
    from stages.errors import LrlsError
    from stages.reviewed import read_review

    file = tmp_path / "review.yaml"
    file.write_text('format: 1\nconfiguration: a\ncases: {"a": {"ratin": 4}}\n', encoding="utf-8")
    with pytest.raises(LrlsError, match=r"unknown setting cases\.a\.ratin; did you mean rating"):
        read_review(file)


def test_labels_of_a_dataset_that_are_no_numbers_are_no_structures(tmp_path):
    from stages.data.initialize import describe_folder

    (tmp_path / "images").mkdir()
    written(tmp_path / "images" / "a.nii.gz")
    labels = {"background": 0, "a": [[]], "b": {"c": 1}, "liver": 2, "ignore": [[1]]}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    assert describe_folder(tmp_path)["structures"]["liver"] == 2


@pytest.mark.parametrize("changed", [{"spacing": [1, 1]}, {"origin": [0, 0, {}]}, {"direction": [float("inf")] * 9}])
def test_kept_facts_that_describe_no_volume_are_not_believed(changed):
    from stages.data.facts import _facts

    geometry = {"size": [2, 2, 2], "spacing": [1, 1, 1], "origin": [0, 0, 0], "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1]}
    stored = {"geometry": geometry, "faults": [], "digest": "", "voxels": "", "classes": []}
    assert _facts(stored).geometry
    with pytest.raises((ValueError, TypeError)):
        _facts(stored | {"geometry": geometry | changed})


@pytest.mark.parametrize("changed", [{"case": None}, {"quality": {"x": 1, "flags": []}}, {"volumes_ml": {"a": "x"}}])
def test_a_record_of_an_answer_that_says_something_else_counts_as_none(changed, tmp_path):
    from attacks.fuzz import write_files
    from attacks.fuzz_workspaces import _answers, _record_digests

    from stages.answering.answered import AnswerFolder

    (files,) = _answers()
    (name,) = (name for name in files if name.startswith("out/.lrls/") and b'"case"' in files[name])
    record = json.loads(files[name]) | changed
    write_files(_record_digests(files | {name: json.dumps(record).encode()}, None), tmp_path)  # type: ignore[arg-type]
    assert AnswerFolder(tmp_path / "out", [("scan", tmp_path / "scan.nii")], "m", force=True).all() == []


def test_a_record_that_names_a_device_is_not_waited_for(tmp_path):
    from attacks.fuzz import write_files
    from attacks.fuzz_workspaces import _answers, _record_digests

    from stages.answering.answered import AnswerFolder

    (files,) = _answers()
    (name,) = (name for name in files if name.startswith("out/.lrls/") and b'"case"' in files[name])
    record = json.loads(files[name]) | {"files": {"/dev/zero": "0" * 64}}
    write_files(_record_digests(files | {name: json.dumps(record).encode()}, None), tmp_path)  # type: ignore[arg-type]
    answers = AnswerFolder(tmp_path / "out", [("scan", tmp_path / "scan.nii")], "m", force=True)
    assert len(answers.all()) == 1
    assert answers.done("scan", tmp_path / "scan.nii") is None
