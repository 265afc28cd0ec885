"""The plan of a run: measured, chosen and stored, or found again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from stages.artifacts.digests import digest_of
from stages.artifacts.draft import Draft
from stages.artifacts.files import atomic_write_text
from stages.artifacts.plan import Plan
from stages.artifacts.store import make
from stages.config import Config
from stages.data.checks import cases_of, cheap_faults, folder_fault
from stages.data.facts import Known, Looked
from stages.data.kept import keep, kept_folder, read_kept
from stages.data.subsets import roles_of
from stages.device import choose_device
from stages.errors import LrlsError, plural
from stages.methods import find_method, settings_of, training_of
from stages.methods.recipe import Method
from stages.planning.choosing import Choices, Cost, Given, GridOption, Measured, TooShort, choose, least_budget_s
from stages.planning.measuring import CannotMeasure, measure
from stages.planning.obeying import BEST, RIVALS, as_settings, asked, given
from stages.planning.table import duration, rows
from stages.processes import number_of_workers
from stages.progress import say

VERSION = 3  # of the rules and measurements; after a change everything is planned anew
MOST_OF_SMALL = 8  # structures that the small network's 16 channels can tell apart


class Planning:
    """The making of a configuration's plans.

    Args:
        config: as the file has it.
        looked: its atlases and unlabelled scans.
    """

    def __init__(self, config: Config, looked: Mapping[str, Looked], roles: Sequence[str]) -> None:
        self.config, self.looked, self.device = config, looked, choose_device(config)
        self.hand = given(config, training_of(find_method(BEST), config, "train_seg").steps or 1)
        self.contents = digest_of([[case, list(looked[case].digests)] for r in roles for case in config.part(r)])

    def costs(self, *, force: bool) -> Measured:
        """Measure, or find what was measured for an earlier plan, so that plans of all budgets agree.

        Raises:
            CannotMeasure: a scan has a fault.
        """
        key: list[object] = [
            VERSION,
            asked(self.config),
            str(self.device),
            self.config.preprocess.workers,
            self.contents,
        ]
        if self.config.compute.cases == "dask":
            key.append(number_of_workers(self.config))
        file = kept_folder(self.config.workspace) / "costs" / f"{digest_of(key)}.json"
        if not force and (stored := read_kept(file)):
            with suppress(KeyError, TypeError, ValueError):
                return replace(read_measured(stored), took_s=0.0)  # what took time then takes none now
        say("planning: timing an alignment, a registration, and steps of networks")
        few = len(self.config.structures) <= MOST_OF_SMALL
        networks = [self.hand.network] if self.hand.network else ["light", *(["small"] if few else []), "full"]
        measured = measure(self.config, self.looked, self.device, networks=networks)
        keep(file, asdict(measured))
        return measured

    def proposed(self, budget_s: float | None, *, force: bool = False) -> dict[str, Any]:
        """The content of `plan.json`.

        Raises:
            CannotMeasure: a scan has a fault.
            LrlsError: no plan fits into the budget.
        """
        measured = self.costs(force=force)
        choices = _chosen(measured, budget_s, self.hand)
        doubled = choose(measured, 2 * budget_s, self.hand) if budget_s else None
        return {
            "settings": as_settings(choices, measured.scans) if budget_s else {},
            "steps": choices.steps,
            "seconds": dict(choices.seconds),
            "table": rows(measured, choices, doubled, self.hand),
            "measured": asdict(measured),
        }

    def made(self, budget_s: float | None, *, force: bool = False) -> Plan:
        """The plan as an artifact, or the one that was made before; raises as `proposed` does."""
        proposed: dict[str, Any] = {}

        def write(draft: Draft) -> None:
            draft.device = str(self.device)
            draft.add_elapsed(proposed["measured"]["took_s"])
            atomic_write_text(draft.folder / "plan.json", json.dumps(proposed, indent=1))

        settings = {"asked": asked(self.config), "device": str(self.device), "version": VERSION, "budget_s": budget_s}
        return make(
            Plan,
            self.config.workspace / Plan.KIND,
            write,
            made_by="plan",
            settings=settings | ({} if budget_s else {"steps": self.hand.steps}),
            seed=0,  # nothing is drawn, and runs with several seeds share a plan
            inputs={"scans": self.contents},
            force=force,
            ready=lambda: proposed.update(self.proposed(budget_s, force=force)),
        )


def planning_of(config: Config) -> Planning | None:
    """The planning of a configuration; None: scans have faults, which `preprocess` reports."""
    if folder_fault(config) or not config.part("atlases") or not config.part("unlabeled"):
        return None
    roles, beside = roles_of(config, "train")
    looked = Known(config).look(cases_of(config, roles, beside))
    return None if cheap_faults(config, looked, roles, beside) else Planning(config, looked, roles)


def plan_of_run(config: Config, budget_s: float | None, *, force: bool = False) -> Plan | None:
    """The plan for a budget, or without one; None: scans have faults, which `preprocess` reports.

    Args:
        config: as the file has it.
        force: measure again.

    Raises:
        LrlsError: no plan fits into the budget.
    """
    planning = planning_of(config)
    try:
        return planning.made(budget_s, force=force) if planning else None
    except CannotMeasure:
        return None


def proposed_plan(config: Config, budget_s: float | None) -> dict[str, Any] | None:
    """As `plan_of_run`, but nothing is stored that later commands obey: the content of `plan.json`."""
    planning = planning_of(config)
    try:
        return planning.proposed(budget_s) if planning else None
    except CannotMeasure:
        return None


def seconds_of(plan: Plan, config: Config, method: Method) -> float | None:
    """Seconds that a run of a method takes to its last weights; None: unknown.

    Args:
        config: as the plan fills it in.
    """
    if method.name == BEST or (plan.budget_s and method.train_seg):
        return plan.total_s
    if method.name not in RIVALS:
        return None
    try:
        measured = read_measured(plan.measured)
    except (KeyError, TypeError, ValueError):
        raise plan.damaged("plan.json") from None
    training = training_of(method, config, "train_seg")
    own: Any = settings_of(method, config)
    network, half_resolution = own.segmentation_network, own.half_resolution
    if network not in measured.step:
        return None
    assert training.steps is not None and training.batch_size is not None
    scans = measured.scans + (len(config.part("supervised")) if method.cohort == "supervised" else 0)
    step_s = measured.step_of(measured.grids[0], network, training.batch_size, half_resolution)
    return measured.took_s + measured.overhead_s + measured.align_all_s(scans) + training.steps * step_s


def read_measured(stored: dict) -> Measured:
    grids = [
        GridOption(tuple(grid["spacing_mm"]), tuple(grid["shape"]), grid["ceiling"], tuple(grid["lost"]))
        for grid in stored["grids"]
    ]
    step = {network: Cost(**cost) for network, cost in stored["step"].items()}
    return Measured(**{**stored, "grids": tuple(grids), "couple": Cost(**stored["couple"]), "step": step})


def _chosen(measured: Measured, budget_s: float | None, hand: Given) -> Choices:
    """As `choose`; a budget that is too short is refused in a line that says what the smallest one is spent on."""
    try:
        return choose(measured, budget_s, hand)
    except TooShort:
        pass
    assert budget_s is not None
    try:
        enough_s = least_budget_s(measured, hand)
    except TooShort:
        raise LrlsError(
            "no grid that keeps the structures fits into the memory of this machine; set a coarser "
            "preprocess.spacing_mm, or take structures out."
        ) from None
    least = choose(measured, enough_s, hand)
    spent = {what: duration(seconds) for what, seconds in least.seconds.items()}
    raise LrlsError(
        f"--budget: {duration(budget_s)} are too short here: the least is {plural(least.scans, 'alignment')} "
        f"({spent['alignment']}), {plural(least.couples, 'couple')} ({spent['couples']}) and {least.steps} steps on "
        f"{least.grid} ({spent['training']}); give it {enough_s / 60:.0f}m or more."
    )
