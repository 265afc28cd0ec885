"""Ids become names of files: in their folder, each its own, on any disk; parts share them out exactly."""

from __future__ import annotations

import string
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from drawn import examples
from hypothesis import assume, example, given
from hypothesis import strategies as st

from stages import predict as predicting
from stages.answering.predictor import Failure
from stages.case_ids import MOST_BYTES, fault_among, id_fault, twins
from stages.data.bids_derivatives import names_in_bids
from stages.data.neutral import SUFFIXES, files_named
from stages.data.new_scans import find_scans
from stages.errors import UNPRINTABLE, LrlsError

WEIRD = [
    "CON", "nul.", "aux.nii", "con.nii.gz", "a.", "a ", " a", ".a", "..", ".", "", "-rf", "~", "%d", "%05d", "$HOME",
    "*", "a\\b", "a/b", "../a", "C:", "a:b", "a\tb", "a\u202eb", "\u0130", "stra\u00dfe", "strasse", "STRASSE",
    "\u03c3", "\u03c2", "\u212a", "k", "K", "\u017f", "s", "caf\u00e9", "cafe\u0301", "\ufb01", "fi", "a_rtstruct",
    "qc", "labels", "volumes", ".lrls", ".lrls-tmp-0", "a_0000", "a.seg", "x" * 235, "x" * 236, "\u809d" * 79,
]  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(WEIRD), st.text(st.characters(exclude_characters="\x00/"), min_size=1, max_size=12),
    st.text(string.ascii_letters + " ._-", min_size=1, max_size=4),
)  # fmt: skip
ENDINGS = [".nii.gz", ".nrrd", ".dcm", "_rtstruct.dcm", ".seg.nrrd", ".png", ".json", ""]


def on_disk(name: str) -> str:
    """A name as disks that ignore case compare it (APFS, ext4 with casefold): Unicode's canonical caseless match."""
    folded = unicodedata.normalize("NFD", name).casefold()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", folded).casefold())


@examples(150)
@given(case=NAMES)
def test_an_id_is_refused_in_one_line_or_names_files_in_its_folder(tmp_path, case):
    if fault := id_fault(case):
        assert not UNPRINTABLE.search(fault) and len(fault) < 300 and "; " in fault
        return
    for ending in ENDINGS:
        path = tmp_path / f"{case}{ending}"
        assert path.parent == tmp_path and path.resolve().parent == tmp_path.resolve()
        path.touch()  # this disk takes it
        assert path.name in {entry.name for entry in tmp_path.iterdir()}
        path.unlink()
    (tmp_path / f"{case}.nii.gz").touch()
    assert [path.name for path in files_named(tmp_path, case)] == [f"{case}.nii.gz"]
    (tmp_path / f"{case}.nii.gz").unlink()


@examples(150)
@given(cases=st.lists(NAMES, max_size=5))
@example(["stra\u00dfe", "STRASSE"]).via("lower case keeps the sharp s")
@example(["\u03c3", "\u03c2"]).via("two lower cases of one capital letter")
def test_ids_that_are_taken_together_are_apart_on_every_disk(cases):
    assume(all(id_fault(case) is None for case in cases))
    collide = len({on_disk(case) for case in cases}) < len(cases)
    assert (twins(cases) is not None) == collide == (fault_among(cases) is not None)


def scans_named(folder: Path, names: list[tuple[str, str]]) -> list[Path]:
    """Empty files of the names that this disk takes."""
    paths = []
    for stem, ending in names:
        if "/" in stem or len(f"{stem}{ending}".encode(errors="replace")) > 255:
            continue
        path = folder / f"{stem}{ending}"
        try:
            path.touch()
        except (OSError, ValueError):
            continue
        paths.append(path)
    return list(dict.fromkeys(paths))


@examples(100)
@given(names=st.lists(st.tuples(NAMES, st.sampled_from(SUFFIXES)), min_size=1, max_size=5))
@example([("P1", ".nii.gz"), ("p1", ".mha")]).via("one label map would replace the other")
@example([(".lrls-tmp-0", ".nii.gz")]).via("leftovers of killed commands are named so, and deleted")
def test_new_scans_get_answers_of_their_own_in_the_folder(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("n")
    paths = scans_named(folder, names)
    assume(paths)
    try:
        found, _ = find_scans(paths)
        in_bids = names_in_bids(found, 1)
    except LrlsError as error:
        assert not UNPRINTABLE.search(str(error)) and str(error)[-1] == "."
        return
    cases = [case for case, _ in found]
    assert sorted(scan for _, scan in found) == sorted(paths)
    for given_names in (cases, [Path(name).name for name in in_bids.values()]):
        assert len({on_disk(name) for name in given_names}) == len(paths)
    for case in cases:
        assert (
            (folder / f"{case}.nii.gz").parent == folder
            and not case.startswith(".")
            and len(case.encode()) <= MOST_BYTES
        )


def test_contours_of_one_series_are_not_the_segmentation_of_another(tmp_path):
    scans = [("a", tmp_path / "a"), ("a_rtstruct", tmp_path / "a_rtstruct")]
    with pytest.raises(LrlsError, match=r"--rtstruct: .*a_rtstruct\.dcm.*; rename"):
        predicting.refuse_shared_names(scans)
    predicting.refuse_shared_names(scans[1:])


@examples(40)
@given(cases=st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=3), min_size=1, max_size=12, unique=True),
    of=st.integers(1, 15))  # fmt: skip
def test_parts_share_out_every_scan_once(tmp_path_factory, cases, of):
    out, answered = tmp_path_factory.mktemp("o"), []
    scans = [(case, out.parent / f"{case}.nii.gz") for case in cases]
    model: Any = SimpleNamespace(
        channels=["x"], atlases=[], config=SimpleNamespace(compute=SimpleNamespace(cases="local"), colours={})
    )

    def here(_: Any, left: Any, *__: Any) -> Any:
        for case, _scan in left:
            answered.append(case)
            yield Failure(case, "not asked"), []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicting, "find_scans", lambda *_: (scans, []))
        patch.setattr(predicting, "model_digest", lambda _: "d")
        patch.setattr(predicting, "_here", here)
        for number in range(1, of + 1):
            predicting.predict(model, [], out / "answers", part=(number, of), tell=lambda _: None)
    assert sorted(answered) == sorted(cases)
