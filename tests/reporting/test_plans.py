"""Which plan a report shows: one that what is shown obeyed, and what became of its steps."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from stages.report_plans import _steps_told, obeys, steps_taken

TABLE = [{"choice": "network", "value": "light"}, {"choice": "couples a step", "value": "2"},
         {"choice": "augmentation", "value": "strong"}, {"choice": "steps", "value": "60"}]  # fmt: skip


def manifest(kind: str, config: dict[str, Any], digest: str = "s", **inputs: str) -> Any:
    return SimpleNamespace(digest=digest, identity=SimpleNamespace(kind=kind, config=config, inputs=inputs))


def network(**changed: Any) -> Any:
    training = {"steps": 60, "batch_size": 2, "augmentation": "strong"}
    training |= {name: value for name, value in changed.items() if name in training}
    settings = {"segmentation_network": changed.get("segmentation_network", "light")}
    return manifest("segmentation", {"method": "unet", "settings": settings, "train_seg": training}, cohort="c")


@pytest.mark.parametrize(
    ("changed", "spacing", "expected"),
    [
        ({}, None, True),
        ({"steps": 59}, None, False),
        ({"segmentation_network": "full"}, None, False),
        ({}, [2.0], False),
    ],
)
def test_a_plan_is_obeyed_where_network_steps_and_grid_agree(changed, spacing, expected):
    hand = SimpleNamespace(preprocess=SimpleNamespace(model_dump=lambda mode: {"spacing_mm": None}))
    found = {"c": (None, manifest("cohort", {"preprocess": {"spacing_mm": spacing}}))}
    plan = SimpleNamespace(table=TABLE, settings={}, budget_s=None)
    assert obeys(network(**changed), plan, hand, found) is expected


def test_a_plan_for_a_budget_is_obeyed_only_by_what_was_counted_within_it():
    hand = SimpleNamespace(preprocess=SimpleNamespace(model_dump=lambda mode: {"spacing_mm": None}))
    found = {"c": (None, manifest("cohort", {"preprocess": {"spacing_mm": None}}))}
    plan = SimpleNamespace(table=TABLE, settings={}, budget_s=60.0)
    assert obeys(network(), plan, hand, found) is False


def test_planned_counted_and_taken_steps_are_told_apart(tmp_path):
    records = [{"phase": "half", "step": 10}, {"phase": "half", "step": 52}, {"phase": "full", "step": 9}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    assert steps_taken(tmp_path) == 61
    assert steps_taken(tmp_path / "none") is None
    plan = SimpleNamespace(table=[{"choice": "steps", "value": "950"}], budget_s=60.0)
    told = _steps_told("unet", network(), plan, {"s": (tmp_path, None)})
    assert told == (
        "`unet`: planned 950 steps; when training began, the time left was counted as 60; by the clock it took 61."
    )
