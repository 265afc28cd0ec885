"""`lrls review`: ratings and corrected label maps come back, and nothing that a user wrote changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from stages.config import load_config
from stages.data.contents import bytes_digest
from stages.data.phantoms import STRUCTURES
from stages.errors import LrlsError
from stages.review import HEADER, changes, read_ratings, review
from stages.reviewed import read_review
from tests.conftest import Project

HEAD = "\t".join(HEADER)


def row(case: str, rating: str = "", note: str = "", correct: str = "", exclude: str = "", label_next: str = "") -> str:
    return "\t".join((case, rating, note, correct, exclude, label_next))


def table(folder: Path, *rows: str, head: str = HEAD) -> Path:
    path = folder / "ratings.tsv"
    path.write_text("\n".join((head, *rows, "")), encoding="utf-8")
    return path


def corrected(folder: Path, scans: Path, *cases: str) -> Path:
    """A folder of label maps as a person corrected them: the scans' own, a corner of one structure taken away."""
    (folder / "corrected").mkdir(parents=True, exist_ok=True)
    for case in cases:
        label = sitk.ReadImage(str(scans / "labels" / f"{case}.nii.gz"))
        voxels = sitk.GetArrayFromImage(label)
        voxels[tuple(np.argwhere(voxels > 0)[0])] = 0
        changed = sitk.GetImageFromArray(voxels)
        changed.CopyInformation(label)
        sitk.WriteImage(changed, str(folder / "corrected" / f"{case}.nii.gz"))
    return folder / "corrected"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([row("free_1", "6")], "line 2: case free_1: the rating is '6', expected 1 (unusable) to 5"),
        ([row("free_1", "3.0")], "line 2: case free_1: the rating is '3.0'"),
        ([row("free_1", exclude="true")], "line 2: case free_1: exclude is 'true', expected yes or nothing"),
        ([row("free_1", "2"), "free_2\t3"], "line 3: found 2 cells, expected 6"),
        ([row("free_1", "2"), "", row("free_2", "3")], "line 3: found 1 cell, expected 6"),
        ([row("fre_1", "2")], "line 2: case fre_1 is listed in no part of the configuration; did you mean free_1?"),
        ([row("", "2")], "line 2: names no case"),
        ([row("free_1", "2"), row("free_1", "3")], "line 3: case free_1 stands in line 2, too"),
        ([row("free_1", note="a\x1b[31mb")], "line 2: a control character"),
        ([row("free_1", note="n" * 4001)], "line 2: case free_1: a note of 4001 characters"),
    ],
)
def test_a_wrong_line_is_named(project: Project, lines: list[str], told: str) -> None:
    done = project.lrls("review", str(table(project.folder, *lines)))
    assert done.code == 1 and told in done.err and done.err.count("\n") == 1 and "\x1b" not in done.err
    assert sorted(path.name for path in project.folder.iterdir()) == ["lrls.yaml", "ratings.tsv"]


@pytest.mark.parametrize(
    "data",
    [b"", b"case\trating\n", b"\xff\xfec\x00a\x00", b"PK\x03\x04\x00\x00", b"\x93\xfa\x96\x7b", HEAD.upper().encode()],
)
def test_what_is_no_table_is_refused_in_one_line(project: Project, data: bytes) -> None:
    path = project.folder / "ratings.tsv"
    path.write_bytes(data)
    done = project.lrls("review", str(path))
    assert done.code == 1 and done.err.startswith("lrls: ratings.tsv") and done.err.count("\n") == 1


def test_what_spreadsheets_make_of_the_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ratings.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + f'{HEAD}\r\na\t4\t"cut, ""here"""\t\t\tyes\r\nb\t\t"quoted"\t\t\t\r\n'.encode())
    said = read_ratings(path)
    assert (said["a"].rating, said["a"].note, said["a"].label_next) == (4, 'cut, "here"', True)
    assert said["b"].note == '"quoted"'


def test_a_review_excludes_and_adds_atlases_and_check_says_so(project: Project, scans: Path, tmp_path: Path) -> None:
    before = (project.config_file).read_bytes()
    ratings = table(
        tmp_path, row("free_1", "2", "# 1e5: 'cut' \"at\" the top", "yes"), row("free_2", "1", exclude="yes")
    )
    done = project.made("review", str(ratings), "--corrected", str(corrected(tmp_path, scans, "free_1")))
    assert "review: review.yaml" in done.out and project.config_file.read_bytes() == before
    assert project.config.part("unlabeled") == ["free_1", "free_2"]  # the configuration does not name it yet
    named = load_config(project.config_file, ["data.review=review.yaml"])
    assert (named.part("atlases"), named.part("unlabeled")) == (["atlas_1", "free_1"], [])
    assert named.review and named.review.overlay.cases["free_1"].note == "# 1e5: 'cut' \"at\" the top"
    check = project.lrls("check", "--set", "data.review=review.yaml")
    assert "review.yaml: excluded 1 (free_2); atlases added: 1 (free_1)" in check.out
    as_json = project.lrls("check", "--json", "--set", "data.review=review.yaml")
    assert json.loads(as_json.out)["review"][0].startswith("review.yaml: excluded 1")


def test_a_second_review_goes_on_top_and_spares_edited_files(project: Project, tmp_path: Path) -> None:
    project.made("review", str(table(tmp_path, row("free_1", "2", exclude="yes"), row("test_1", "4"))))
    project.made("review", str(table(tmp_path, row("free_1", "5"), row("free_2", label_next="yes"))))
    overlay = project.folder / "review.yaml"
    named = load_config(project.config_file, ["data.review=review.yaml"])
    assert named.review and {case: said.rating for case, said in named.review.overlay.cases.items()} == {
        "free_1": 5, "test_1": 4, "free_2": None,
    }  # fmt: skip
    assert named.part("unlabeled") == ["free_1", "free_2"] and "label next (free_2)" in changes(named)[0]
    edited = overlay.read_text(encoding="utf-8").replace('"rating": 5', '"rating": 4')
    overlay.write_text(edited, encoding="utf-8")
    done = project.made("review", str(table(tmp_path, row("free_1", "1"))))
    assert overlay.read_text(encoding="utf-8") == edited and "review: review-2.yaml" in done.out
    overlay.write_text("mine: 1\n", encoding="utf-8")
    project.made("review", str(table(tmp_path, row("free_1", "1"))))
    assert overlay.read_text(encoding="utf-8") == "mine: 1\n"


def test_a_review_goes_on_top_of_the_file_that_it_writes(project: Project, tmp_path: Path) -> None:
    def said(file: str) -> dict[str, int | None]:
        return {case: told.rating for case, told in read_review(project.folder / file).overlay.cases.items()}

    project.made("review", str(table(tmp_path, row("free_1", "2"))))
    overlay = project.folder / "review.yaml"
    overlay.write_text(overlay.read_text(encoding="utf-8").replace(": 2}", ": 3}"), encoding="utf-8")
    for case, rating in (("free_2", "1"), ("atlas_1", "4")):
        done = project.made("review", str(table(tmp_path, row(case, rating))))
        assert "review: review-2.yaml" in done.out
    assert said("review.yaml") == {"free_1": 3} and said("review-2.yaml") == {"free_1": 3, "free_2": 1, "atlas_1": 4}
    other = shutil.copy(project.config_file, project.folder / "other.yaml")  # another configuration, the same folder
    files = [review(other, table(tmp_path, row(case, "5"))).file.name for case in ("free_1", "test_1")]
    assert files == ["review-3.yaml"] * 2 and said("review-3.yaml") == {"free_1": 5, "test_1": 5}


def test_a_corrected_label_map_goes_with_its_excluded_scan(project: Project, scans: Path, tmp_path: Path) -> None:
    named = ["data.review=review.yaml"]
    project.made("review", str(table(tmp_path, row("free_2", "3"))))
    project.made("review", "--corrected", str(corrected(tmp_path, scans, "free_1", "free_2")))
    config = load_config(project.config_file, named)
    assert config.part("atlases") == ["atlas_1", "free_1", "free_2"]  # as listed, whichever was spoken of first
    project.made("review", str(table(tmp_path, row("free_1", exclude="yes"))))
    done = project.made("review", str(table(tmp_path, row("free_1"))))
    assert "atlases added: 1 (free_2)" in done.out
    assert load_config(project.config_file, named).part("unlabeled") == ["free_1"]


def test_what_is_scored_is_never_learned_from(project: Project, scans: Path, tmp_path: Path) -> None:
    folder = corrected(tmp_path, scans, "test_1")
    done = project.lrls("review", "--corrected", str(folder))
    assert done.code == 1 and "case test_1: data.test scores it" in done.err
    done = project.made("review", str(table(tmp_path, row("test_2", "1", exclude="yes"))))
    assert "excluded and still scored: test_2" in done.out
    named = load_config(project.config_file, ["data.review=review.yaml"])
    assert named.part("test") == ["test_1", "test_2"]
    (project.folder / "review.yaml").unlink()
    project.made("review", "--corrected", str(corrected(tmp_path / "again", scans, "free_1")))
    moved = ["data.review=review.yaml", "data.unlabeled=[free_2]", "data.test=[free_1]"]
    with pytest.raises(LrlsError, match=r"case free_1: has a corrected label map, and data.test scores it"):
        load_config(project.config_file, moved)


def test_corrected_label_maps_are_checked(project: Project, scans: Path, tmp_path: Path) -> None:
    folder = corrected(tmp_path, scans, "free_1")
    label = sitk.ReadImage(str(folder / "free_1.nii.gz"))
    for change, told in (
        (label[1:], "case free_1: "),
        (label + 90, "case free_1: "),
        (label * 0, "case free_1: "),
    ):
        sitk.WriteImage(change, str(folder / "free_1.nii.gz"))
        done = project.lrls("review", "--corrected", str(folder))
        assert done.code == 1 and told in done.err and done.err.count("\n") == 1
    shutil.copy(folder / "free_1.nii.gz", folder / "free_1_0000.nii.gz")
    assert "case free_1: --corrected holds several" in project.lrls("review", "--corrected", str(folder)).err
    (folder / "free_1_0000.nii.gz").unlink()
    shutil.move(folder / "free_1.nii.gz", folder / "fre_1.nii.gz")
    done = project.lrls("review", "--corrected", str(folder))
    assert done.code == 1 and "fre_1.nii.gz is the label map of no case" in done.err and "free_1?" in done.err
    shutil.move(folder / "fre_1.nii.gz", folder / "free_1.txt")
    assert "holds no label map" in project.lrls("review", "--corrected", str(folder)).err
    assert not (project.folder / "review.yaml").exists()
    done = project.lrls("review", str(table(tmp_path, row("atlas_1", exclude="yes"))))
    assert done.code == 1 and "excludes every atlas" in done.err


def test_answers_that_nobody_changed_are_no_corrected_label_maps(project: Project, scans: Path, tmp_path: Path) -> None:
    folder = corrected(tmp_path, scans, "free_1", "free_2")
    record = {"files": {name: bytes_digest(folder / name) for name in ("free_1.nii.gz", "free_2.nii.gz")}}
    (folder / ".lrls").mkdir()
    (folder / ".lrls" / "damaged.json").write_text('{"files": 3}')
    (folder / ".lrls" / "key.json").write_text(json.dumps(record))
    label = sitk.ReadImage(str(folder / "free_2.nii.gz"))
    label[0, 0, 0] = label[0, 0, 0] + STRUCTURES["core"]
    sitk.WriteImage(label, str(folder / "free_2.nii.gz"))
    done = project.lrls("review", "--corrected", str(folder))
    assert done.code == 1 and done.err.count("\n") == 1
    assert "--corrected: free_1.nii.gz is an answer of lrls that nobody has changed; correct" in done.err
    assert not (project.folder / "review.yaml").exists()
    (folder / "free_1.nii.gz").unlink()
    assert "atlases added: 1 (free_2)" in project.made("review", "--corrected", str(folder)).out


def test_artifacts_that_a_review_does_not_change_stay(
    new_project: Callable[..., Project], tmp_path: Path, in_this_process: None, no_pictures: None
) -> None:
    project = new_project(tmp_path / "one")
    project.made("preprocess")
    project.made("review", str(table(tmp_path, row("free_1", "2", "blurred", label_next="yes"))))
    project.made("preprocess", "--set", "data.review=review.yaml")
    assert project.versions("cohort") == ["v0001"]
    project.made("review", str(table(tmp_path, row("free_1", exclude="yes"))))
    project.made("preprocess", "--set", "data.review=review.yaml")
    assert project.versions("cohort") == ["v0001", "v0002"]
    project.made("preprocess")
    assert project.versions("cohort") == ["v0001", "v0002"]
    settings = yaml.safe_load(project.config_file.read_text(encoding="utf-8"))
    settings["data"]["review"] = "gone.yaml"
    project.config_file.write_text(yaml.safe_dump(settings))
    assert "data.review: gone.yaml is not found" in project.lrls("preprocess").err


def test_a_review_of_a_configuration_without_atlases_makes_the_first(
    new_project: Callable[..., Project], scans: Path, tmp_path: Path
) -> None:
    project = new_project(tmp_path / "none", data={"atlases": [], "supervised": []})
    written = review(project.config_file, None, corrected(tmp_path, scans, "free_2"))
    assert written.lines[0] == "review.yaml: atlases added: 1 (free_2)"
    named = load_config(project.config_file, [f"data.{written.setting.replace(': ', '=')}"])
    assert (named.part("atlases"), named.part("unlabeled")) == (["free_2"], ["free_1"])
