"""Budgets: the number of steps that fit into a given time on this machine, measured before a stage trains.

Time counts from the start of `lrls run` to the last weights, with preprocessing and without `eval`. Earlier artifacts
count with the time that they took. The number is an artifact: the same command again, on the same device and with as
many threads, finds the same steps, and so the finished stages or the checkpoint to go on from. While the stage trains,
a clock corrects it (`stages.training.clock`).
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages import ranks
from stages.answering.jobs import job_of
from stages.artifacts.cohort import Cohort
from stages.artifacts.draft import Draft
from stages.artifacts.files import atomic_write_text
from stages.artifacts.manifest import Artifact
from stages.artifacts.steps import Steps
from stages.artifacts.store import Listed, listed_versions
from stages.config import Config
from stages.device import Device, choose_device
from stages.errors import LrlsError, shortened
from stages.methods import find_method, plan_of, recipe_of, settings_read, training_of
from stages.methods.recipe import STAGE_OF, Generate, Recipe, Train
from stages.training.clock import Clock
from stages.training.loop import step_seconds
from stages.training.runs import SECTION, Inputs, TrainSection, run_of
from stages.training.sharing import make_together

MARGIN = 0.04  # of the whole budget: for checkpoints, pictures and a machine that slows down
LEAST_STEPS = 20
MOST_S = 366 * 24 * 3600.0


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
        text = text.strip()
        if (steps := re.fullmatch(r"([0-9]{1,10}) ?steps", text)) and int(steps[1]):
            return cls(steps=int(steps[1]))
        number = r"(?:([0-9]+(?:\.[0-9]+)?) ?{} ?)?"
        given = re.fullmatch(number.format("h") + number.format("m(?:in)?") + number.format("s"), text)
        seconds = (
            sum(float(n or 0) * unit for n, unit in zip(given.groups(), (3600, 60, 1), strict=True)) if given else 0
        )
        if not 0 < seconds <= MOST_S:
            raise LrlsError(
                f"--budget {shortened(text)}: expected a time like 90s, 10m or 2h, or steps like 2000steps."
            )
        return cls(seconds=seconds)


def with_steps(
    budget: Budget,
    step: Train,
    config: Config,
    method_name: str,
    cohort: Cohort,
    *,
    round: int = 0,
    inputs: Inputs | None = None,
    spent_on: Sequence[Artifact] = (),
    force: bool = False,
    began: float | None = None,
    refuses: bool = True,
) -> tuple[Config, Clock | None]:
    """The configuration with the optimiser steps of a training step that the budget allows, and the clock of a time.

    Args:
        step: of the method's plan.
        cohort: the cohort that the step will read.
        round: of a method with rounds; the time is shared among all training that is left in all rounds.
        inputs: other artifacts that the step will read.
        spent_on: artifacts made so far; the time that they took is spent.
        force: measure again even if that was done.
        began: `time.monotonic` at the start of the command, which has spent the time since then, too.
        refuses: whether too short a time is an error; otherwise it is exceeded by `LEAST_STEPS`.

    Raises:
        LrlsError: the time left is too short for `LEAST_STEPS`.
    """
    method, section, stage = find_method(method_name), SECTION[step.makes], STAGE_OF[step.makes]
    plan_recipe = plan_of(method, config, cohort)
    shares = shares_of(plan_recipe)
    if budget.steps is not None:
        own = {name: training_of(method, config, name).steps or 1 for _, name in shares}
        all_steps = sum(own[name] * share for (_, name), share in shares.items())
        return _set_steps(
            config, method_name, section, max(1, int(budget.steps * own[section] / all_steps + 0.5))
        ), None
    seconds = budget.seconds
    assert seconds is not None and stage in ("train-reg", "train-seg")
    device = choose_device(config)
    settings = settings_read(method, config, stage, round=round, trains=True)
    settings[section] = {key: value for key, value in settings[section].items() if key != "steps"}
    target = config.workspace / method.name / Steps.KIND
    given: dict[str, Artifact] = {"cohort": cohort, **(inputs or {})}

    def write(draft: Draft) -> None:
        draft.device = str(device)
        place = list(shares).index((round, section))
        earlier = _earlier_counts(target, seconds, list(shares)[:place], cohort, config.seed)
        manifests = [made.manifest for made in (*given.values(), *spent_on)] + [plan.manifest for plan in earlier]
        unique = {manifest.digest: manifest for manifest in manifests}
        spent = sum(manifest.wall_time_s for manifest in unique.values())
        started = time.monotonic()
        if began is not None:  # what artifacts do not count: starting, verifying, finding them
            spent = max(spent, started - began)
        recipe = recipe_of(method, cohort, config)
        with tempfile.TemporaryDirectory() as folder:
            nowhere, own = Draft(Path(folder)), recipe.step(step.makes, round)
            assert isinstance(own, Train)
            run = run_of(own, recipe, cohort, config, method, device, nowhere, round=round, inputs=inputs)
            step_s = step_seconds(run)
            if ranks.rank():
                return  # the first process counts and writes
            generate_s = _generate_seconds(recipe, round, own, cohort, config, device, nowhere)
        measuring = time.monotonic() - started
        share = _share_of_time(shares, method.registration_share, (round, section))
        left = (seconds * (1 - MARGIN) - spent - generate_s) * share
        steps = int((left - measuring) / step_s)
        about = {"steps": max(steps, LEAST_STEPS), "step_s": step_s, "spent_s": spent, "generate_s": generate_s}
        about |= {"left_s": left, "allowed_s": max(left - measuring, LEAST_STEPS * step_s)}
        atomic_write_text(draft.folder / "steps.json", json.dumps(about, indent=1))
        if steps < LEAST_STEPS and refuses:
            enough = (spent + generate_s + (LEAST_STEPS * step_s + measuring) / share) / (1 - MARGIN)
            raise LrlsError(
                f"--budget: {max(left - measuring, 0):.0f} s are left for {stage}, "
                f"whose steps take {step_s:.1f} s: room for {max(steps, 0)}, expected at least {LEAST_STEPS}; "
                f"give it {-(-enough // 60):.0f}m or more."
            )

    counted = make_together(
        Steps,
        target,
        write,
        made_by="budget",
        settings=settings | {"stage": section, "budget_s": seconds, "device": str(device)},
        seed=config.seed,
        round=round,
        inputs=given,
        force=force,
    )
    return _set_steps(config, method_name, section, counted.steps), Clock(counted.allowed_s)


def _generate_seconds(
    recipe: Recipe, round: int, after: Train, cohort: Cohort, config: Config, device: Device, draft: Draft
) -> float:
    """Seconds that generating data takes after a step, in its round and later ones."""
    steps = [step for number in range(round, len(recipe.rounds)) for step in recipe.steps(number)]
    later = [step for step in steps[steps.index(after) + 1 :] if isinstance(step, Generate)]
    if not later:
        return 0.0
    job = job_of(recipe, cohort, config, device, draft)
    took: dict[int, float] = {}
    for step in later:
        if id(step) not in took:  # rounds share the step
            took[id(step)] = sum(writer.planned_seconds(job) for writer in step.writers)
    return sum(took[id(step)] for step in later)


def shares_of(recipe: Recipe) -> dict[tuple[int, TrainSection], float]:
    """Every training step's number of steps, round by round, as a multiple of the stage's."""
    return {(number, SECTION[step.makes]): step.share for number, step in recipe.training_steps()}


def _share_of_time(
    shares: dict[tuple[int, TrainSection], float], of_registration: float, now: tuple[int, TrainSection]
) -> float:
    """A step's share of the time that is left for it and all later steps."""
    weights = {"train_reg": of_registration, "train_seg": 1 - of_registration}
    if len({section for _, section in shares}) == 1:
        weights = {"train_reg": 1.0, "train_seg": 1.0}
    order = list(shares)
    left = [weights[section] * shares[number, section] for number, section in order[order.index(now) :]]
    return weights[now[1]] * shares[now] / sum(left)


def _earlier_counts(
    target: Path, seconds: float, before: Sequence[tuple[int, TrainSection]], cohort: Cohort, seed: int
) -> list[Listed]:
    """The newest count of every earlier step with the same budget: measuring took time."""
    newest: dict[tuple[int, str], Listed] = {}
    for plan in listed_versions(Steps, target):
        about = plan.manifest.identity
        key = (about.round, str(about.config.get("stage")))
        alike = about.inputs.get("cohort") == cohort.manifest.digest and about.seed == seed
        if key in before and alike and about.config.get("budget_s") == seconds:
            newest[key] = plan
    return list(newest.values())


def _set_steps(config: Config, method_name: str, section: TrainSection, steps: int) -> Config:
    own = config.methods.get(method_name, {})
    changed = own | {section: {**own.get(section, {}), "steps": steps}}
    return config.model_copy(update={"methods": config.methods | {method_name: changed}})
