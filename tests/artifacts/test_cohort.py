"""Cohorts of strangers: whatever their files say, they are refused in one line or read as cohorts."""

import json

import h5py
import numpy as np
import pytest

from stages.artifacts.cohort import Cohort
from stages.artifacts.manifest import Identity
from stages.artifacts.store import new_artifact
from stages.errors import LrlsError

SHAPE = (3, 4, 5)
GRID = {"shape": SHAPE, "spacing_mm": [1, 1, 2], "origin": [0, 0, 0], "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1]}
RECORD = {
    "matrix": np.eye(4).tolist(), "correlation": 0.9, "fell_back": False, "intensity": [0, 1], "size": [5, 4, 3],
    "spacing": [1, 1, 1], "origin": [0, 0, 0], "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1],
}  # fmt: skip


def write(target, *, label=None, image=None, spacing=(1.0, 1.0, 1.0), record=RECORD, **about):
    """A cohort of one atlas, and the error or what is read."""
    values = {"grid": GRID, "structures": ["a"], "parts": {"atlases": ["x"]}, "flat_borders": []} | about
    with new_artifact(target, Identity("cohort", Cohort.FORMAT, "preprocess", {}, seed=0)) as draft:
        (draft.folder / "transforms").mkdir()
        (draft.folder / "cohort.json").write_text(json.dumps(values), encoding="utf-8")
        (draft.folder / "transforms" / "x.json").write_text(json.dumps(record), encoding="utf-8")
        with h5py.File(draft.folder / "cohort.h5", "w") as file:
            file["images/x"] = np.zeros(SHAPE, np.float16) if image is None else image
            file["labels/x"] = np.ones(SHAPE, np.uint8) if label is None else label
            reference = file.create_dataset("reference", data=np.zeros(SHAPE, np.float32))
            reference.attrs["spacing"], reference.attrs["origin"] = spacing, (0.0, 0.0, 0.0)
            reference.attrs["direction"] = np.eye(3).ravel()
    return draft.result


def read(folder):
    cohort = Cohort.open(folder)
    return cohort, cohort.image("x"), cohort.label("x"), cohort.reference(), cohort.transform("x")


def test_a_sound_cohort_is_read(tmp_path):
    cohort, image, label, reference, record = read(write(tmp_path))
    assert cohort.grid.shape == image.shape == label.shape == SHAPE
    assert reference.GetSize() == SHAPE[::-1] and record == RECORD


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": {}}, {"grid": None}, {"grid": GRID | {"shape": [3, 4]}}, {"grid": GRID | {"shape": [3, 4, 2**40]}},
        {"grid": GRID | {"spacing_mm": [0, 1, 1]}}, {"grid": GRID | {"direction": [0] * 9}},
        {"grid": GRID | {"origin": [float("nan"), 0, 0]}}, {"grid": GRID | {"more": 1}}, {"structures": 3},
        {"structures": [3]}, {"parts": []}, {"parts": {"atlases": [1]}}, {"parts": {"atlases": 1}},
        {"flat_borders": [{"classes": [1, 9], "normal": [0, 0, 1]}]}, {"flat_borders": [{"classes": [1, 1]}]},
        {"record": {}}, {"record": RECORD | {"matrix": [[0] * 4] * 4}}, {"record": RECORD | {"size": [5, 4]}},
        {"record": RECORD | {"spacing": [1, 1, float("inf")]}}, {"record": [1]}, {"record": "x"},
        {"label": np.full(SHAPE, 7, np.uint8)}, {"label": np.ones((9, 9, 9), np.uint8)},
        {"label": np.ones(SHAPE, np.float32)}, {"image": np.zeros(SHAPE, np.int64)},
        {"image": np.zeros((1,), np.float16)},
        {"spacing": (0.0, 1.0, 1.0)}, {"spacing": "wide"}, {"spacing": (1.0, 1.0)},
    ],
)  # fmt: skip
def test_values_that_no_cohort_has_are_refused_in_one_line(changes, tmp_path):
    with pytest.raises(
        LrlsError, match=r"is damaged or truncated; make it again with `lrls preprocess --force`"
    ) as told:
        read(write(tmp_path, **changes))
    assert "\n" not in str(told.value)


def test_no_other_file_of_the_machine_is_read(tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(RECORD), encoding="utf-8")
    cohort = Cohort.open(write(tmp_path / "cohort"))
    with pytest.raises(LrlsError, match="damaged"):
        cohort.transform("../../../secret")
