"""Answers side by side, of scores that are written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import Project

from stages.answering.side_by_side import draw_side_by_side, median_scan
from stages.artifacts.manifest import Identity
from stages.artifacts.scores import Scores
from stages.artifacts.store import new_artifact
from stages.data.checks import examine_all
from stages.data.facts import Known
from stages.data.phantoms import STRUCTURES

CASES = ["test_1", "test_2"]


def scored(
    project: Project, name: str, dsc: float, outputs: tuple[str, ...] = ("segmentation",), truth: str | None = None
) -> Scores:
    """Scores whose main answer is the truth itself, and whose further ones are empty."""
    facts = dict(examine_all(project.config, Known(project.config).look(dict.fromkeys(CASES, True))))
    inputs = {f"truth/{case}": truth or facts[case].digest for case in CASES}
    identity = Identity("scores", Scores.FORMAT, "eval", {"part": "test"}, seed=0, inputs=inputs)
    with new_artifact(project.workspace / name / "scores", identity) as draft:
        rows = []
        for number, output in enumerate(outputs):
            folder = draft.folder / ("labels" if number == 0 else f"labels-{output}")
            folder.mkdir()
            for place, case in enumerate(CASES):
                label = sitk.ReadImage(str(project.config.data.folder / "labels" / f"{case}.nii.gz"))
                sitk.WriteImage(label if number == 0 else label * 0, str(folder / f"{case}.nii.gz"))
                rows += [
                    {"output": output, "case": case, "structure": structure, "dsc": dsc - 0.1 * place, "hd95_mm": 1.0,
                     "assd_mm": 1.0, "missed": 0}
                    for structure in STRUCTURES
                ]  # fmt: skip
        pd.DataFrame(rows).to_csv(draft.folder / "scores.csv", index=False)
    return Scores.open(draft.result)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Rows that would be drawn."""
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr("stages.pictures.side_by_side_page", lambda row, path, **_: rows.append(row))
    return rows


def test_answers_lie_on_the_scan_as_the_truth_does(project, drawn, tmp_path):
    runs = {
        "unet": [scored(project, "unet", 0.9)],
        "brbs mmr=false": [scored(project, "brbs", 0.8, ("segmentation", "registration"))],
    }
    draw_side_by_side(runs, project.config, tmp_path / "page.png")
    (row,) = drawn
    assert row["case"] == "test_2"  # of two scans, the one below the middle
    assert list(row["answers"]) == ["unet", "brbs mmr=false, segmentation", "brbs mmr=false, registration"]
    assert [dice for _, dice in row["answers"].values()] == pytest.approx([0.8, 0.7, 0.7])
    assert row["image"].shape == row["truth"].shape and set(np.unique(row["truth"])) == {0, 1, 2, 3, 4}
    labels = [label for label, _ in row["answers"].values()]
    assert (labels[0] == row["truth"]).all() and (labels[1] == row["truth"]).all() and not labels[2].any()
    # The head at the last slices: the file of this scan is stored otherwise.
    stored = sitk.ReadImage(str(project.config.data.folder / "labels" / "test_2.nii.gz"))
    assert row["truth"].shape == sitk.GetArrayFromImage(sitk.DICOMOrient(stored, "LPS")).shape


def test_a_scan_that_has_changed_or_is_gone_is_not_drawn(project, drawn, tmp_path):
    config = project.config
    gone = config.model_copy(update={"data": config.data.model_copy(update={"folder": tmp_path})})
    for name, here, truth in (("changed", config, "another digest"), ("gone", gone, None)):
        draw_side_by_side({"unet": [scored(project, name, 0.9, truth=truth)]}, here, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == []


def test_the_scan_in_the_middle_of_all_methods_is_shown():
    def table(**dice: float) -> pd.DataFrame:
        return pd.DataFrame([{"output": "segmentation", "case": case, "dsc": value} for case, value in dice.items()])

    assert median_scan([table(a=0.9, b=0.5, c=0.7)]) == "c"
    assert median_scan([table(a=0.9, b=0.5, c=0.7), table(a=0.1, b=0.9, c=0.9)]) == "b"  # 0.5, 0.7, 0.8


def test_the_page_of_a_real_comparison_is_drawn(project, tmp_path):
    path = Path(tmp_path / "page.png")
    draw_side_by_side({"unet": [scored(project, "unet", 0.9)]}, project.config, path)
    assert path.stat().st_size > 20_000
