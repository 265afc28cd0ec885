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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from stages.answering.registering import as_image
from stages.artifacts.cohort import Cohort
from stages.artifacts.files import atomic_write_text
from stages.artifacts.generated import Generated
from stages.artifacts.manifest import Artifact
from stages.artifacts.plan import Plan
from stages.artifacts.store import Draft, make, opened_versions, verify
from stages.artifacts.weights import Registration
from stages.config import Config
from stages.device import Device, choose_device
from stages.errors import LrlsError
from stages.generate import couples
from stages.methods import find_method, training_of
from stages.methods.recipe import PathBankWriter, Phase, Recipe, SampledScans, WarpedAtlases
from stages.train_reg import make_recipe, registration_run, stage_config
from stages.train_seg import segmentation_run
from stages.training.loop import step_seconds

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
    round: int = 0,
    read: Mapping[str, Registration | Generated | None] | None = None,
    spent_on: Sequence[Artifact] = (),
    force: bool = False,
) -> Config:
    """The configuration with the steps of a stage that the budget allows.

    Args:
        cohort: what the stage will read.
        round: of a method with rounds; a time is shared among what is left to train in all of them.
        read: what else it will read, by role.
        spent_on: what was made so far; the time that it took is spent.
        force: measure again though there is a plan.

    Raises:
        LrlsError: the time left is too short for `LEAST_STEPS`.
    """
    method = find_method(method_name)
    recipe = make_recipe(method, cohort, config, round)
    stages = trained_stages(recipe)
    shares = shares_of(recipe)
    if budget.steps is not None:
        own = {stage: training_of(method, config, stage).steps or 1 for stage in stages}
        all_steps = sum(own[each] * share for (_, each), share in shares.items())
        return _set_steps(config, method_name, stage, max(1, int(budget.steps * own[stage] / all_steps + 0.5)))
    seconds = budget.seconds
    assert seconds is not None
    inputs: dict[str, Artifact | None] = {"cohort": cohort} | dict(read or {})
    device = choose_device(config)
    after = stage == "train_seg"
    settings = stage_config(method, config, stage, generates=after, segments=after, round=round)
    settings[stage] = {key: value for key, value in settings[stage].items() if key != "steps"}
    target = config.workspace / method.name / Plan.KIND

    def write(draft: Draft) -> None:
        draft.device = str(device)
        earlier = _earlier_plans(target, seconds, (round, stage), cohort, config.seed)
        unique = {each.manifest.digest: each.manifest for each in [*inputs.values(), *spent_on, *earlier] if each}
        spent = sum(manifest.wall_time_s for manifest in unique.values())
        began = time.monotonic()
        generated = inputs.get("generated")
        assert generated is None or isinstance(generated, Generated)
        with tempfile.TemporaryDirectory() as folder:
            nowhere = Draft(Path(folder))
            run_of = registration_run if stage == "train_reg" else segmentation_run
            step_s = step_seconds(run_of(cohort, config, method, recipe, device, nowhere, generated, round))
        generate_s = _generate_seconds(recipe, cohort, device) if stage == "train_reg" and len(stages) > 1 else 0.0
        measuring = time.monotonic() - began
        share = _share_of_time(shares, method.registration_share, round, stage)
        left = (seconds * (1 - MARGIN) - spent - generate_s) * share
        steps = int((left - measuring) / step_s)
        plan = {"steps": steps, "step_s": step_s, "spent_s": spent, "generate_s": generate_s, "left_s": left}
        atomic_write_text(draft.folder / "plan.json", json.dumps(plan, indent=1))
        if steps < LEAST_STEPS:
            enough = (spent + generate_s + (LEAST_STEPS * step_s + measuring) / share) / (1 - MARGIN)
            raise LrlsError(
                f"--budget: {max(left - measuring, 0):.0f} s are left for {stage.replace('_', '-')}, "
                f"whose steps take {step_s:.1f} s: room for {max(steps, 0)}, expected at least {LEAST_STEPS}; "
                f"give it {-(-enough // 60):.0f}m or more."
            )

    plan = make(
        Plan,
        target,
        write,
        made_by="budget",
        settings=settings | {"stage": stage, "budget_s": seconds, "device": str(device)},
        seed=config.seed,
        round=round,
        inputs=inputs,
        force=force,
    )
    verify(plan.folder)
    return _set_steps(config, method_name, stage, plan.steps)


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


def shares_of(recipe: Recipe) -> dict[tuple[int, TrainStage], float]:
    """What every stage of every round trains, in the order in which it does, in parts of the stage's steps."""
    phases: list[tuple[int, TrainStage, Sequence[Phase]]] = []
    for number in range(recipe.last_round + 1):
        of_round = recipe.at_round(number)
        phases.append((number, "train_reg", of_round.train_registration))
        phases.append((number, "train_seg", of_round.train_segmentation))
    return {(number, stage): sum(phase.share for phase in found) for number, stage, found in phases if found}


def _share_of_time(
    shares: dict[tuple[int, TrainStage], float], of_registration: float, round: int, stage: TrainStage
) -> float:
    """What a stage of a round gets of the time that is left for it and all that come after it."""
    weights = {"train_reg": of_registration, "train_seg": 1 - of_registration}
    if len({each for _, each in shares}) == 1:
        weights = {"train_reg": 1.0, "train_seg": 1.0}
    left = [weights[each] * share for key, share in shares.items() for each in key[1:] if key >= (round, stage)]
    return weights[stage] * shares[round, stage] / sum(left)


def _earlier_plans(target: Path, seconds: float, now: tuple[int, TrainStage], cohort: Cohort, seed: int) -> list[Plan]:
    """The newest plan within the same budget of every stage that comes before this one: measuring took time.

    Args:
        now: round and stage.
    """
    found: dict[tuple[int, str], Plan] = {}
    for plan in opened_versions(Plan, target):
        about = plan.manifest.identity
        key = (about.round, about.config["stage"])
        alike = about.inputs["cohort"] == cohort.manifest.digest and about.seed == seed
        if key < now and alike and about.config["budget_s"] == seconds:
            found[key] = plan
    return list(found.values())


def trained_stages(recipe: Recipe) -> list[TrainStage]:
    """The stages of a method that train."""
    phases: dict[TrainStage, Any] = {"train_reg": recipe.train_registration, "train_seg": recipe.train_segmentation}
    return [stage for stage, trained in phases.items() if trained]


def _set_steps(config: Config, method_name: str, stage: TrainStage, steps: int) -> Config:
    own = config.methods.get(method_name, {})
    changed = own | {stage: {**own.get(stage, {}), "steps": steps}}
    return config.model_copy(update={"methods": config.methods | {method_name: changed}})
