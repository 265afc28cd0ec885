"""Budgets: as many steps as fit into the time that is given on this machine, measured before a stage trains.

Time counts from the start of `lrls run` to the last weights, preprocessing included, `eval` not; what was made before
counts with the time that it took. A plan is an artifact, so that the same command again, on the same device and with as
many threads, finds the same steps, and with them the finished stages or the checkpoint to go on from.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.store import (
    FORMAT_VERSIONS,
    Draft,
    Identity,
    Manifest,
    atomic_write_text,
    find_finished,
    new_artifact,
    read_manifest,
    verify,
    versions,
)
from stages.artifacts.weights import Registration
from stages.config import Config
from stages.device import Device, choose_device
from stages.errors import LrlsError
from stages.generate import couples
from stages.methods import find_method, training_of
from stages.methods.recipe import PathBankWriter, Recipe, SampledScans, WarpedAtlases
from stages.registering import as_image
from stages.train_reg import make_recipe, registration_run, stage_config
from stages.train_seg import segmentation_run
from stages.training import step_seconds

MARGIN = 0.04  # of the whole budget: for checkpoints, pictures and a machine that slows down
LEAST_STEPS = 20
TrainStage = Literal["train_reg", "train_seg"]


@dataclass(frozen=True)
class Budget:
    """Time in s, or optimiser steps; one of them."""

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a time like "90s", "10m" (or "10min"), "2h" or "1h30m", or a number of steps like "2000steps".

        Raises:
            LrlsError: it is none of these.
        """
        if (steps := re.fullmatch(r"(\d+) ?steps", text.strip())) and int(steps[1]):
            return cls(steps=int(steps[1]))
        number = r"(?:(\d+(?:\.\d+)?) ?{} ?)?"
        given = re.fullmatch(number.format("h") + number.format("m(?:in)?") + number.format("s"), text.strip())
        seconds = (
            sum(float(n or 0) * unit for n, unit in zip(given.groups(), (3600, 60, 1), strict=True)) if given else 0
        )
        if not seconds:
            raise LrlsError(f"--budget {text}: expected a time like 90s, 10m or 2h, or steps like 2000steps.")
        return cls(seconds=seconds)


def with_steps(
    budget: Budget,
    stage: TrainStage,
    config: Config,
    method_name: str,
    cohort: Cohort,
    *,
    registration: Registration | None = None,
    generated: Generated | None = None,
    force: bool = False,
) -> Config:
    """The configuration with the steps of a stage that the budget allows.

    Args:
        cohort, registration, generated: what the stage will read; the time that they took is spent.
        force: measure again though there is a plan.

    Raises:
        LrlsError: the time left is too short for `LEAST_STEPS`.
    """
    method = find_method(method_name)
    recipe = make_recipe(method, cohort, config)
    stages = trained_stages(recipe)
    if budget.steps is not None:
        own = {stage: training_of(method, config, stage).steps or 1 for stage in stages}
        return _set_steps(config, method_name, stage, max(1, round(budget.steps * own[stage] / sum(own.values()))))
    assert budget.seconds is not None
    inputs = {"cohort": cohort, "registration": registration, "generated": generated}
    made_from = {role: each.manifest for role, each in inputs.items() if each}
    device = choose_device(config)
    after = stage == "train_seg"
    settings = stage_config(method, config, stage, generates=after, segments=after)
    settings[stage] = {key: value for key, value in settings[stage].items() if key != "steps"}
    identity = Identity(
        kind="plan",
        format_version=FORMAT_VERSIONS["plan"],
        made_by="budget",
        config=settings | {"stage": stage, "budget_s": budget.seconds, "device": str(device)},
        seed=config.seed,
        inputs={role: manifest.digest for role, manifest in made_from.items()},
    )
    target = config.workspace / method.name / "plan"
    done = None if force else find_finished(target, identity)
    if done is None:
        spent = sum(manifest.wall_time_s for manifest in [*made_from.values(), *_earlier_plans(target, identity)])
        with new_artifact(target, identity, device=str(device)) as draft:
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                nowhere = Draft(Path(folder))
                run = (
                    registration_run(cohort, config, method, recipe, device, nowhere)
                    if stage == "train_reg"
                    else segmentation_run(cohort, config, method, recipe, device, nowhere, generated)
                )
                step_s = step_seconds(run)
            generate_s = _generate_seconds(recipe, cohort, device) if stage == "train_reg" and len(stages) > 1 else 0.0
            measuring = time.monotonic() - began
            share = method.registration_share if stage == "train_reg" and len(stages) > 1 else 1.0
            left = (budget.seconds * (1 - MARGIN) - spent - generate_s) * share
            steps = int((left - measuring) / step_s)
            plan = {
                "steps": steps, "step_s": step_s, "spent_s": spent, "generate_s": generate_s, "left_s": left,
            }  # fmt: skip
            atomic_write_text(draft.folder / "plan.json", json.dumps(plan, indent=1))
            if steps < LEAST_STEPS:
                enough = (spent + generate_s + (LEAST_STEPS * step_s + measuring) / share) / (1 - MARGIN)
                raise LrlsError(
                    f"--budget: {max(left - measuring, 0):.0f} s are left for {stage.replace('_', '-')}, "
                    f"whose steps take {step_s:.1f} s: room for {max(steps, 0)}, expected at least {LEAST_STEPS}; "
                    f"give it {-(-enough // 60):.0f}m or more."
                )
        done = draft.result
    verify(done)
    return _set_steps(config, method_name, stage, json.loads((done / "plan.json").read_text())["steps"])


def _generate_seconds(recipe: Recipe, cohort: Cohort, device: Device) -> float:
    """What `generate` will take: every couple is registered, for style maps twice; a network for them counts, too.

    Where scans are drawn, every one of them.
    """
    if isinstance(recipe.generate, SampledScans):
        data, synthesis = cohort.scans(device.torch), recipe.generate.synthesis
        for network in recipe.registration_networks.values():
            network.to(device.torch)
        return recipe.generate.count * _seconds(
            lambda: synthesis(data, data.atlases[0], torch.Generator()).image, device
        )
    if recipe.registration is None or not isinstance(recipe.generate, PathBankWriter | WarpedAtlases):
        return 0.0
    atlases, scans = cohort.parts["atlases"], cohort.parts["unlabeled"]
    ways = 1
    if isinstance(recipe.generate, PathBankWriter) and recipe.generate.style:
        ways = 3 if recipe.generate.style_map else 2
    pair = [as_image(cohort.image(case), device) for case in (atlases[0], scans[0])]
    registration = recipe.registration.to(device.torch)
    return ways * len(couples(cohort, recipe.generate)) * _seconds(lambda: registration(*pair), device)


def _seconds(pass_through: Callable[[], torch.Tensor], device: Device) -> float:
    """What a pass through networks takes without gradients; the first of two warms up."""
    for _ in range(2):
        began = time.monotonic()
        with torch.inference_mode(), device.autocast():
            float(pass_through().sum())
        taken = time.monotonic() - began
    return taken


def _earlier_plans(target: Path, identity: Identity) -> list[Manifest]:
    """The newest plan for train-reg within the same budget, where this is one for train-seg: measuring took time."""
    if identity.config["stage"] == "train_reg":
        return []
    plans = [read_manifest(folder) for folder in versions(target)]
    return [
        plan
        for plan in plans
        if plan.identity.inputs == {"cohort": identity.inputs["cohort"]}
        and plan.identity.config["stage"] == "train_reg"
        and plan.identity.config["budget_s"] == identity.config["budget_s"]
    ][-1:]


def trained_stages(recipe: Recipe) -> list[TrainStage]:
    """The stages of a method that train."""
    phases: dict[TrainStage, Any] = {"train_reg": recipe.train_registration, "train_seg": recipe.train_segmentation}
    return [stage for stage, trained in phases.items() if trained]


def _set_steps(config: Config, method_name: str, stage: TrainStage, steps: int) -> Config:
    own = config.methods.get(method_name, {})
    changed = own | {stage: {**own.get(stage, {}), "steps": steps}}
    return config.model_copy(update={"methods": config.methods | {method_name: changed}})
