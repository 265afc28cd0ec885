"""The plans that reported runs obeyed: a plan that was made for these scans, but that no run followed, says nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.artifacts.costs import way_to
from stages.artifacts.manifest import Manifest
from stages.artifacts.plan import Plan
from stages.artifacts.steps import Steps
from stages.artifacts.weights import Segmentation
from stages.config import Config
from stages.planning.obeying import BEST, RIVALS, fitting_plans
from stages.reporting.runs import Obeyed, Run

Found = Mapping[str, tuple[Path, Manifest]]
# Rows of a plan's table, and where artifacts say it.
ROWS = {"network": ("settings", "segmentation_network"), "couples a step": ("train_seg", "batch_size"),
        "augmentation": ("train_seg", "augmentation")}  # fmt: skip


def obeyed_plans(config: Config, runs: Sequence[Run], found: Found) -> tuple[list[Obeyed], list[Plan]]:
    """What runs obeyed, the newest plan first, and the plans themselves.

    Raises:
        LrlsError: a plan is damaged.
    """
    trained = {run.name: _segmentation(run, found) for run in runs if run.method in (BEST, *RIVALS)}
    left = {name: manifest for name, manifest in trained.items() if manifest}
    obeyed, plans = [], []
    for plan in fitting_plans(config):
        names = [name for name, manifest in left.items() if obeys(manifest, plan, config, found)]
        if names:
            told = [text for name in names if (text := _steps_told(name, left.pop(name), plan, found))]
            obeyed.append(Obeyed(plan.table, names, told))
            plans.append(plan)
    return obeyed, plans


def obeys(segmentation: Manifest, plan: Plan, config: Config, found: Found) -> bool:
    """Whether a network was trained as a plan says: its settings, grid and steps, and nothing that says otherwise."""
    own, cohort = segmentation.identity.config, found.get(segmentation.identity.inputs.get("cohort", ""))
    table = {row["choice"]: row["value"] for row in plan.table}
    for choice, (section, name) in ROWS.items():
        if choice in table and str(own.get(section, {}).get(name)) != table[choice]:
            return False
    prefix, settings = f"methods.{own.get('method')}.", plan.settings
    for name, value in settings.items():
        section, _, inner = name.removeprefix(prefix).rpartition(".")
        if name.startswith(prefix) and own.get(section or "settings", {}).get(inner) != value:
            return False
    if cohort is None:
        return False
    spacing = cohort[1].identity.config.get("preprocess", {}).get("spacing_mm")
    wanted = settings.get("preprocess.spacing_mm", config.preprocess.model_dump(mode="json")["spacing_mm"])
    if spacing != wanted:
        return False
    if plan.budget_s is None:
        return str(own.get("train_seg", {}).get("steps")) == table.get("steps")
    return _counted(segmentation, plan.budget_s, found) is not None


def _segmentation(run: Run, found: Found) -> Manifest | None:
    """The network that answers, or None."""
    made = {digest: manifest for digest, (_, manifest) in found.items()}
    for manifest in run.manifests:
        way = [manifest, *filter(None, way_to(manifest, made).values())]
        own = [each for each in way if each.identity.kind == Segmentation.KIND]
        if own:
            return max(own, key=lambda each: each.created)
    return None


def _counted(segmentation: Manifest, budget_s: float, found: Found) -> int | None:
    """The steps that were counted for a network within a budget; None: it was not trained within this budget."""
    training = dict(segmentation.identity.config.get("train_seg", {}))
    steps = training.pop("steps", None)
    for folder, manifest in found.values():
        about = manifest.identity.config
        if (
            manifest.identity.kind == Steps.KIND
            and about.get("budget_s") == budget_s
            and about.get("method") == segmentation.identity.config.get("method")
            and about.get("train_seg") == training
            and manifest.identity.inputs.get("cohort") == segmentation.identity.inputs.get("cohort")
            and Steps.open(folder).steps == steps
        ):
            return steps
    return None


def _steps_told(name: str, segmentation: Manifest, plan: Plan, found: Found) -> str:
    """How many steps were planned, counted when training began, and taken; empty where these are the same."""
    planned = next((row["value"] for row in plan.table if row["choice"] == "steps"), "")
    counted = segmentation.identity.config.get("train_seg", {}).get("steps")
    taken = steps_taken(found[segmentation.digest][0])
    if plan.budget_s is None or (planned == str(counted) and taken in (None, counted)):
        return ""
    text = f"`{name}`: planned {planned} steps; when training began, the time left was counted as {counted}"
    return f"{text}; by the clock it took {taken}." if taken not in (None, counted) else f"{text}."


def steps_taken(folder: Path) -> int | None:
    """The steps that a training's log ends with, summed over its phases; None: there is no log."""
    last: dict[str, Any] = {}
    try:
        for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            last[record["phase"]] = int(record["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sum(last.values()) or None
