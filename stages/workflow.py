"""The order of the stages: which artifact goes into which, for single commands and for `lrls run`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from stages.answering.pairs import pairs_asked
from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.made import Made, Role
from stages.artifacts.manifest import Artifact, peek_manifest
from stages.artifacts.plan import Plan
from stages.artifacts.scores import Scores
from stages.artifacts.steps import Steps
from stages.artifacts.store import latest, versions, with_digest
from stages.artifacts.weights import Registration, Segmentation
from stages.config import Config, MethodStage, StageName
from stages.data.checks import scored_faults
from stages.data.faults import refuse
from stages.data.intake import first_channels
from stages.data.subsets import Part, cohort_folder, cohort_settings
from stages.device import choose_device
from stages.errors import LrlsError
from stages.evaluate import evaluate
from stages.generate import generate
from stages.methods import (
    aligned_for,
    check_channels,
    check_unlabeled,
    find_method,
    plan_of,
    settings_read,
    training_of,
)
from stages.methods.recipe import STAGE_OF, Generate, Method, Recipe, Step, Train
from stages.planning.obeying import BEST, RIVALS, newest_plan, obey
from stages.planning.plans import plan_of_run, seconds_of
from stages.planning.table import duration
from stages.preprocess import preprocess
from stages.train_reg import train_registration
from stages.train_seg import train_segmentation
from stages.training.budget import Budget, with_steps
from stages.training.runs import SECTION

ORDER: tuple[StageName, ...] = get_args(StageName)
KINDS: dict[Role, type[Artifact]] = {
    "registration": Registration,
    "generated": Generated,
    "segmentation": Segmentation,
}


def used_by(step: Step, made: Made) -> dict[str, Artifact]:
    """What a step reads; a training step goes on from what it made in the round before."""
    roles = {*step.uses, *([step.makes] if isinstance(step, Train) else [])}
    return {role: artifact for role, artifact in made.artifacts.items() if role in roles}


def makers(tell: Callable[[str], None]) -> dict[Role, Callable[..., Artifact]]:
    """The stage that makes each role."""
    return {
        "registration": partial(train_registration, tell=tell),
        "generated": partial(generate, tell=tell),
        "segmentation": partial(train_segmentation, tell=tell),
    }


def run(
    config: Config,
    method_name: str,
    *,
    until: StageName = "eval",
    round: int | None = None,
    budget: Budget | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
    show: Callable[[Plan], None] = lambda plan: None,
) -> Made:
    """Plan, then run every stage of a method in turn; artifacts that are up to date are not made again.

    Args:
        config: as the file has it; the plan fills in what it leaves open.
        until: the last stage.
        round: the last round; none: as many as the method has.
        budget: time to the last weights, or steps; none: the steps that the configuration says.
        force: make everything of the method again, but neither the plan nor the cohort.
        tell: receives a line per stage.
        show: receives the plan before anything else is made.
    """
    method, began = find_method(method_name), time.monotonic()
    spent_on: list[Artifact] = []

    def told(artifact: Artifact) -> Artifact:
        tell(f"{artifact.KIND}: {artifact.folder.relative_to(config.workspace)}")
        for note in artifact.notes if isinstance(artifact, Cohort) else ():
            tell(f"note: {note}")
        spent_on.append(artifact)
        return artifact

    if budget and not (method.train_reg or method.train_seg):
        tell(f"{method.name} trains nothing: --budget sets the grid and the scans alone")
    refuse_early(config, method)
    last = plan_of(method, config).last_round
    if round is not None:
        last = checked_round(method, plan_of(method, config), round)
    if until == "eval" and config.part(config.eval.part):
        check_scored(config)
    in_time = budget.seconds if budget else None
    if planned := _planned(config, method, in_time):
        config = obey(config, planned)
        if planned.budget_s == in_time:
            show(planned)
            spent_on.append(planned)
            if (seconds := seconds_of(planned, config, method)) is not None:
                tell(f"the run will take about {duration(seconds)} to the last weights")
    config = aligned_for(method, config)
    plan = plan_of(method, config)
    cohort = preprocess(config, method.cohort, needs_unlabeled=plan.looks_at_unlabeled)
    told(cohort)
    made, make = Made(cohort), makers(tell)
    for number in range(last + 1 if until != "preprocess" else 0):
        if plan.last_round:
            tell(f"round {number} of {plan.last_round}")
        for step in steps_until(plan, number, until if number == last else "eval"):
            inputs = used_by(step, made)
            if budget and isinstance(step, Train) and step.phases:
                settings, clock = with_steps(
                    budget, step, config, method_name, cohort, round=number, inputs=inputs, spent_on=spent_on,
                    force=force, began=began, refuses=not planned or method.name not in (BEST, *RIVALS),
                )  # fmt: skip
                steps = training_of(method, settings, SECTION[step.makes]).steps
                tell(f"{STAGE_OF[step.makes]}: {steps} steps")
                artifact = make[step.makes](
                    cohort, settings, method_name, round=number, inputs=inputs, force=force, clock=clock
                )
            else:
                artifact = make[step.makes](cohort, config, method_name, round=number, inputs=inputs, force=force)
            made = made.and_then(step.makes, told(artifact), number)
    if until == "eval" and not config.part(config.eval.part):
        tell(f"nothing to score: data.{config.eval.part} lists no scan")
    elif until == "eval":
        held_out = preprocess(config, config.eval.part, base=base_of(cohort, config))
        told(held_out)
        scores = evaluated(made, held_out, config, method_name, force=force, tell=tell)
        told(scores)
        made = replace(made, scores=scores)
    return made


def refuse_early(config: Config, method: Method) -> None:
    """Report faults of device, channels and scans before hours of alignment.

    Raises:
        LrlsError: the first one.
    """
    if method.train_reg or method.train_seg:
        choose_device(config)
    if first := first_channels(config):
        check_channels(method, first[1])
    if method.cohort == "train":
        check_unlabeled(method, config)


def _planned(config: Config, method: Method, budget_s: float | None) -> Plan | None:
    """The plan that a run obeys: its own, or, where it neither has a budget nor is planned for, the newest one."""
    if budget_s is None and method.name not in (BEST, *RIVALS):
        return newest_plan(config)
    return plan_of_run(config, budget_s)


def steps_until(plan: Recipe, round: int, until: StageName) -> list[Step]:
    """What `run` does in a round, up to and including a stage."""
    steps = plan.steps(round)
    stages = [STAGE_OF[step.makes] for step in steps]
    if until in stages:
        return steps[: stages.index(until) + 1]
    return [step for step, stage in zip(steps, stages, strict=True) if ORDER.index(stage) <= ORDER.index(until)]


def evaluated(
    made: Made, held_out: Cohort, config: Config, method_name: str, *, force: bool, tell: Callable[[str], None]
) -> Scores:
    return evaluate(
        made.cohort,
        held_out,
        config,
        method_name,
        round=made.round,
        inputs=made.artifacts,
        pseudo_labels=pseudo_labels_behind(made.segmentation),
        force=force,
        tell=tell,
    )


def checked_round(method: Method, plan: Recipe, number: int) -> int:
    """A round that the user names.

    Raises:
        LrlsError: the method has no such round.
    """
    if not plan.last_round and number:
        raise LrlsError(f"--round: found {number}, but {method.name} has no rounds; leave --round out.")
    if not 0 <= number <= plan.last_round:
        raise LrlsError(
            f"--round: found {number}, expected 0 to {plan.last_round}; set methods.{method.name}.rounds for more."
        )
    return number


def pseudo_labels_behind(segmentation: Segmentation | None) -> list[Generated]:
    """The pseudo-labels of every round that led to a network, the first round first; deleted ones are left out."""
    behind: list[Generated] = []
    while segmentation:
        method, inputs = segmentation.folder.parent.parent, segmentation.manifest.identity.inputs
        generated = with_digest(method / "generated", inputs["generated"]) if "generated" in inputs else None
        if generated and (opened := Generated.open(generated)).has_pseudo_labels:
            behind.append(opened)
        before = with_digest(method / "segmentation", inputs["segmentation"]) if "segmentation" in inputs else None
        segmentation = Segmentation.open(before) if before else None
    return behind[::-1]


def check_scored(config: Config) -> None:
    """Report label maps that cannot be scored with, and pairs that there are not, before hours of training."""
    pairs_asked(config, config.part(config.eval.part))
    if not config.data.folder.is_dir():
        return  # `preprocess` says so
    refuse(scored_faults(config, config.part(config.eval.part)))


def opened_cohort(config: Config, part: Part) -> Cohort:
    """The newest cohort of a part that was made with the configuration's settings.

    Raises:
        LrlsError: there is none.
    """
    folder = cohort_folder(config, part)
    if part != "train" and not versions(folder):
        raise LrlsError(f"{folder.name} holds no finished cohort; make it with `lrls preprocess --part {part}`.")
    latest(folder, kind=Cohort.KIND)
    wanted = cohort_settings(config, part)
    for version in reversed(versions(folder)):
        identity = peek_manifest(version).identity
        if identity.config == wanted and not identity.outdated:
            return Cohort.open(version)
    raise LrlsError(
        f"no version of {folder.name} was made with these preprocess, structures and data settings; "
        f"make one with `lrls preprocess{'' if part == 'train' else f' --part {part}'}`."
    )


def base_of(cohort: Cohort, config: Config) -> Cohort | None:
    """The cohort that set a cohort's grid: itself, or the one that it was brought to; None if that one is gone."""
    digest = cohort.manifest.identity.inputs.get("cohort")
    if digest is None:
        return cohort
    folder = with_digest(cohort_folder(config, "train"), digest)
    return Cohort.open(folder) if folder else None


def run_stage(
    config: Config,
    method_name: str,
    stage: MethodStage,
    *,
    round: int | None = None,
    force: bool = False,
    budget_s: float | None = None,
    tell: Callable[[str], None] = print,
) -> Artifact:
    """One stage on the newest cohort of these settings and the newest artifacts that were made from it.

    Args:
        config: settled, as of `stages.planning.obeying.settled`.
        round: of a method with rounds; none: the last one for `eval`, otherwise the first.
        budget_s: of the plan that the configuration obeys: training takes the steps that `run` takes.
    """
    method = find_method(method_name)
    made, number = newest(config, method, round, until=stage)
    if stage == "eval":
        held_out = preprocess(config, config.eval.part, base=base_of(made.cohort, config))
        return evaluated(made, held_out, config, method_name, force=force, tell=tell)
    role = next(role for role, name in STAGE_OF.items() if name == stage)
    step = plan_of(method, config).step(role, number)
    inputs = used_by(step, made) if step else {}  # without a step, the stage says what to do
    # Published methods train by a plan's time only where they were run by a budget.
    in_time = method.name in (BEST, *RIVALS) or versions(config.workspace / method.name / Steps.KIND)
    if budget_s and in_time and isinstance(step, Train) and step.phases:
        spent_on = [made.cohort, *made.artifacts.values()]
        config, clock = with_steps(
            Budget(seconds=budget_s), step, config, method_name, made.cohort, round=number, inputs=inputs,
            spent_on=spent_on, force=force,
        )  # fmt: skip
        return makers(tell)[role](
            made.cohort, config, method_name, round=number, inputs=inputs, force=force, clock=clock
        )
    return makers(tell)[role](made.cohort, config, method_name, round=number, inputs=inputs, force=force)


def trained(config: Config, method_name: str, *, round: int | None = None) -> Made:
    """The newest cohort of the file's settings, and the newest artifacts of a method that were made from it.

    Args:
        round: as of `run_stage`.

    Raises:
        LrlsError: an artifact that the method's answers need is missing.
    """
    method = find_method(method_name)
    made, _ = newest(config, method, round, until="eval")
    others: dict[str, Artifact] = {role: artifact for role, artifact in made.artifacts.items() if role != "generated"}
    if made.segmentation and (digest := made.segmentation.manifest.identity.inputs.get("generated")):
        generated = with_digest(config.workspace / method.name / "generated", digest)
        others |= {"generated": Generated.open(generated)} if generated else {}
    return replace(made, artifacts=others)


def newest(config: Config, method: Method, round: int | None, *, until: MethodStage) -> tuple[Made, int]:
    """What a stage reads: of all steps before it, the newest artifacts made by these settings from one another.

    Args:
        round: as of `run_stage`.
        until: the stage; its own artifact and later ones are not looked for.

    Returns:
        The artifacts, and the round of the stage.

    Raises:
        LrlsError: there is none.
    """
    made = Made(opened_cohort(config, method.cohort))
    plan = plan_of(method, config)
    if round is None:
        round = plan.last_round if until == "eval" else 0
    checked_round(method, plan, round)
    for number in range(round + 1):
        for step in plan.steps(number) if number < round else _steps_before(plan, round, until):
            if isinstance(step, Generate) and until == "eval" and not number:
                continue  # answers need the weights alone; generated data may have been deleted
            folder = newest_of(step, config, method, made, number)
            made = made.and_then(step.makes, KINDS[step.makes].open(folder), number)
    return replace(made, round=round), round


def _steps_before(plan: Recipe, round: int, stage: MethodStage) -> list[Step]:
    """The steps of a round before a stage."""
    steps = plan.rounds[round]
    stages = [STAGE_OF[step.makes] for step in steps]
    if stage in stages:
        before = list(steps)[: stages.index(stage)]
    else:
        before = [s for s, name in zip(steps, stages, strict=True) if ORDER.index(name) < ORDER.index(stage)]
    return [step for step in before if step in plan.steps(round)]


def newest_of(step: Step, config: Config, method: Method, made: Made, round: int) -> Any:
    """The newest version of what a step makes with these settings, from what was made before it; of the seed, if any.

    Raises:
        LrlsError: there is none.
    """
    inputs: dict[str, Artifact] = {"cohort": made.cohort, **used_by(step, made)}
    stage = STAGE_OF[step.makes]
    assert stage in ("train-reg", "generate", "train-seg")
    if isinstance(step, Generate) and step.borrowed:
        inputs["borrowed"] = step.borrowed.artifact
    return latest(
        config.workspace / method.name / step.makes,
        kind=KINDS[step.makes].KIND,
        made_from={role: artifact.manifest for role, artifact in inputs.items()},
        settings=settings_read(method, config, stage, round=round),
        seed=config.seed,
        round=round,
    )
