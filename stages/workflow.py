"""The order of the stages: which artifact goes into which, for single commands and for `lrls run`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.scores import Scores
from stages.artifacts.store import FORMAT_VERSIONS, MANIFEST, latest, read_manifest, versions, with_digest
from stages.artifacts.weights import Registration, Segmentation
from stages.config import Config
from stages.data.checks import scored_faults
from stages.data.faults import refuse
from stages.data.subsets import Part, cohort_folder, cohort_settings
from stages.device import choose_device
from stages.errors import LrlsError
from stages.evaluate import evaluate
from stages.generate import check_appearance, generate
from stages.methods import find_method, settings_of, training_of
from stages.methods.recipe import Method, Recipe, Task
from stages.preprocess import preprocess
from stages.train_reg import make_recipe, stage_config, train_registration
from stages.train_seg import train_segmentation
from stages.training.budget import Budget, TrainStage, trained_stages, with_steps

Artifact = TypeVar("Artifact", Cohort, Registration, Generated, Segmentation, Scores)
Stage = Literal["preprocess", "train-reg", "generate", "train-seg", "eval"]
MAKE: dict[Stage, Callable[..., Any]] = {
    "train-reg": train_registration,
    "generate": generate,
    "train-seg": train_segmentation,
}
OPENED: dict[Stage, type[Any]] = {"train-reg": Registration, "generate": Generated, "train-seg": Segmentation}
ROLES: dict[Stage, str] = {stage: kind.KIND for stage, kind in OPENED.items()}
TRAINS: dict[Stage, TrainStage] = {"train-reg": "train_reg", "train-seg": "train_seg"}


@dataclass(frozen=True)
class Made:
    """What a run made or found in a round, stage by stage."""

    cohort: Cohort
    registration: Registration | None = None
    generated: Generated | None = None
    segmentation: Segmentation | None = None
    scores: Scores | None = None
    round: int = 0


def planned(method: Method, config: Config) -> Recipe:
    """The recipe on a small grid: says what the method needs and has before there is a cohort."""
    return method.recipe(Task((16, 16, 16), 2, len(config.part("atlases"))), settings_of(method, config))


def needs_unlabeled(method: Method, config: Config) -> bool:
    """Whether the method learns from unlabelled scans."""
    return planned(method, config).looks_at_unlabeled


def run(
    config: Config,
    method_name: str,
    *,
    until: Stage = "eval",
    round: int | None = None,
    budget: Budget | None = None,
    appearance_from: Path | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> Made:
    """Every stage of a method in turn; what is up to date is not made again.

    Args:
        until: the last stage.
        round: the last round; none: as many as the method has.
        budget: how long training may take; none: the steps that the configuration says.
        appearance_from: workspace or registration artifact of another cohort, whose looks generated data take.
        force: make everything of the method again, but not the cohort.
        tell: receives a line per stage.
    """
    method = find_method(method_name)

    spent_on: list[Cohort | Registration | Generated | Segmentation | Scores] = []

    def told(artifact: Artifact) -> Artifact:
        tell(f"{artifact.KIND}: {artifact.folder.relative_to(config.workspace)}")
        spent_on.append(artifact)
        return artifact

    appearance = other_registration(appearance_from, method) if appearance_from else None
    if budget and not (method.train_reg or method.train_seg):
        tell(f"{method.name} trains nothing: --budget has no effect")
    if until == "eval" and config.part(config.eval.part):
        _check_labels(config)
    # What these refuse is refused before hours of alignment.
    if method.train_reg or method.train_seg:
        choose_device(config)
    plan = planned(method, config)
    check_appearance(appearance, plan, method.name)
    last = plan.last_round if round is None else checked_round(method, plan, round)
    cohort = told(preprocess(config, method.cohort, needs_unlabeled=plan.looks_at_unlabeled))
    recipe = make_recipe(method, cohort, config)

    def settled(stage: Stage, number: int, read: dict[str, Any]) -> Config:
        if not budget or not trains(make_recipe(method, cohort, config, number), stage):
            return config
        key = TRAINS[stage]
        found = with_steps(
            budget, key, config, method_name, cohort, round=number, read=read, spent_on=spent_on, force=force
        )
        tell(f"{stage}: {training_of(method, found, key).steps} steps")
        return found

    before, made = Made(cohort), Made(cohort)
    for number in range(last + 1 if until != "preprocess" else 0):
        recipe, order = recipe.at_round(number), order_of(number)
        before, made = made, Made(cohort, round=number)
        if recipe.last_round:
            tell(f"round {number} of {recipe.last_round}")
        for stage in order[: order.index(until) + 1] if number == last and until in order else order:
            if has(recipe, stage):
                read = reads(stage, made, before)
                settings = settled(stage, number, read)
                looks = {} if stage == "train-reg" else {"appearance": appearance}
                artifact = told(MAKE[stage](cohort, settings, method_name, round=number, force=force, **read, **looks))
                made = replace(made, **{ROLES[stage]: artifact})
    if until == "eval" and not config.part(config.eval.part):
        tell(f"nothing to score: data.{config.eval.part} lists no scan")
    elif until == "eval":
        held_out = told(preprocess(config, config.eval.part, base=base_of(cohort, config)))
        scores = told(_evaluated(made, held_out, config, method_name, force))
        made = replace(made, scores=scores)
    return made


def _evaluated(made: Made, held_out: Cohort, config: Config, method_name: str, force: bool) -> Scores:
    return evaluate(
        made.cohort,
        held_out,
        config,
        method_name,
        round=made.round,
        registration=made.registration,
        segmentation=made.segmentation,
        pseudo_labels=pseudo_labels_behind(made.segmentation),
        force=force,
    )


def order_of(round: int) -> tuple[Stage, ...]:
    """The stages between `preprocess` and `eval`; after the first round, the networks learn from what is generated."""
    return ("generate", "train-reg", "train-seg") if round else ("train-reg", "generate", "train-seg")


def has(recipe: Recipe, stage: Stage) -> bool:
    """Whether `run` takes a method through a stage."""
    if stage == "train-reg":
        return bool(recipe.train_registration)
    return bool(recipe.generate and recipe.train_segmentation) if stage == "generate" else bool(recipe.segmentation)


def trains(recipe: Recipe, stage: Stage) -> bool:
    """Whether a stage takes steps."""
    return stage in TRAINS and TRAINS[stage] in trained_stages(recipe)


def reads(stage: Stage, made: Made, before: Made) -> dict[str, Any]:
    """What a stage reads besides the cohort, by role.

    Args:
        made: by the stages before it in this round.
        before: by the round before.
    """
    roles: dict[Stage, dict[str, Any]] = {
        "train-reg": {"registration": before.registration, "generated": made.generated},
        "generate": {"registration": made.registration, "segmentation": before.segmentation},
        "train-seg": {
            "registration": made.registration, "generated": made.generated, "segmentation": before.segmentation,
        },
    }  # fmt: skip
    return roles[stage]


def checked_round(method: Method, recipe: Recipe, number: int) -> int:
    """A round that the user names.

    Raises:
        LrlsError: the method has none of that number.
    """
    if not recipe.last_round and number:
        raise LrlsError(f"--round: found {number}, but {method.name} has no rounds; leave --round out.")
    if not 0 <= number <= recipe.last_round:
        raise LrlsError(
            f"--round: found {number}, expected 0 to {recipe.last_round}; set methods.{method.name}.rounds for more."
        )
    return number


def pseudo_labels_behind(segmentation: Segmentation | None) -> list[Generated]:
    """The pseudo-labels of every round that led to a network, the first round first; what is gone is left out."""
    found: list[Generated] = []
    while segmentation and segmentation.manifest.identity.round:
        method, inputs = segmentation.folder.parent.parent, segmentation.manifest.identity.inputs
        generated = with_digest(method / "generated", inputs["generated"])
        found += [Generated.open(generated)] if generated else []
        before = with_digest(method / "segmentation", inputs["segmentation"])
        segmentation = Segmentation.open(before) if before else None
    return found[::-1]


def _check_labels(config: Config) -> None:
    """A label map that is not there, or does not lie on its image, is told before hours of training, not after."""
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
        identity = read_manifest(version).identity
        if identity.config == wanted and identity.format_version == FORMAT_VERSIONS[Cohort.KIND]:
            return Cohort.open(version)
    raise LrlsError(
        f"no version of {folder.name} was made with these preprocess, structures and data settings; "
        f"make one with `lrls preprocess{'' if part == 'train' else f' --part {part}'}`."
    )


def base_of(cohort: Cohort, config: Config) -> Cohort | None:
    """The cohort on whose grid a cohort lies: itself, or the one that it was brought to; None: that one is gone."""
    digest = cohort.manifest.identity.inputs.get("cohort")
    if digest is None:
        return cohort
    folder = with_digest(cohort_folder(config, "train"), digest)
    return Cohort.open(folder) if folder else None


def other_registration(place: Path, method: Method) -> Registration:
    """The registration artifact at a place, or the newest one of the method in the workspace that it is.

    Raises:
        LrlsError: there is none.
    """
    if (place / MANIFEST).exists():
        return Registration.open(place)
    found = versions(place / method.name / "registration")
    if not found:
        raise LrlsError(
            f"--appearance-from: found no {method.name}/registration in {place.name or place}, expected the workspace "
            f"of the other cohort, or a registration artifact; `lrls train-reg --method {method.name}` makes one."
        )
    return Registration.open(found[-1])


def run_stage(
    config: Config,
    method_name: str,
    stage: Stage,
    *,
    round: int | None = None,
    appearance_from: Path | None = None,
    force: bool = False,
) -> Registration | Generated | Segmentation | Scores:
    """One stage on the newest cohort of these settings and the newest artifacts that were made from it.

    Args:
        round: of a method that has some; none: the last one for `eval`, else the first one.
        appearance_from: as of `run`; what was generated with other looks, or trained on that, is not looked at.
    """
    method = find_method(method_name)
    before, made, appearance = newest(config, method, round, appearance_from, until=stage)
    if stage == "eval":
        held_out = preprocess(config, config.eval.part, base=base_of(made.cohort, config))
        return _evaluated(made, held_out, config, method_name, force)
    looks = {} if stage == "train-reg" else {"appearance": appearance}
    read = reads(stage, made, before)
    return MAKE[stage](made.cohort, config, method_name, round=made.round, force=force, **read, **looks)


def trained(config: Config, method_name: str, *, round: int | None = None, appearance_from: Path | None = None) -> Made:
    """The newest cohort of the file's settings, and the newest artifacts of a method that were made from it.

    Args:
        round, appearance_from: as of `run_stage`.

    Raises:
        LrlsError: something that the method's answers need is not made yet.
    """
    method = find_method(method_name)
    _, made, _ = newest(config, method, round, appearance_from, until="eval")
    if made.segmentation and (digest := made.segmentation.manifest.identity.inputs.get("generated")):
        found = with_digest(config.workspace / method.name / "generated", digest)
        made = replace(made, generated=Generated.open(found) if found else None)
    return made


def newest(
    config: Config, method: Method, round: int | None, appearance_from: Path | None, *, until: Stage
) -> tuple[Made, Made, Registration | None]:
    """What a stage reads: the newest artifacts of the round before, those of its own round, and another's looks.

    Args:
        round, appearance_from: as of `run_stage`.
        until: the stage.

    Raises:
        LrlsError: there is none.
    """
    cohort = opened_cohort(config, method.cohort)
    recipe = make_recipe(method, cohort, config)
    if round is None:
        round = recipe.last_round if until == "eval" else 0
    checked_round(method, recipe, round)
    appearance = other_registration(appearance_from, method) if appearance_from else None
    check_appearance(appearance, recipe, method.name)
    before = Made(cohort)
    for number in range(round):
        before = newest_of_round(config, method, recipe, before, number, appearance)
    return before, newest_of_round(config, method, recipe, before, round, appearance, until=until), appearance


def newest_of_round(
    config: Config,
    method: Method,
    recipe: Recipe,
    before: Made,
    round: int,
    appearance: Registration | None,
    *,
    until: Stage = "eval",
) -> Made:
    """The newest artifacts of a round that these settings made from the newest ones before them.

    Args:
        before: those of the round before.
        appearance: whose looks were generated, none: the cohort's own; versions with others do not count.
        until: the stage that is to read them; what comes after it is not looked for.

    Raises:
        LrlsError: there is none.
    """
    recipe, made = recipe.at_round(round), Made(before.cohort, round=round)
    order: tuple[Stage, ...] = (*order_of(round), "eval")
    for stage in order[: order.index(until)]:
        if not has(recipe, stage) or (stage == "generate" and until == "eval" and not round):
            continue  # weights do not say of which version of it they are made
        read = {"cohort": before.cohort} | reads(stage, made, before)
        kind, after = OPENED[stage], stage != "train-reg"
        settings = stage_config(method, config, generates=after, segments=stage == "train-seg", round=round)
        if after:
            settings["appearance_from"] = appearance.manifest.digest if appearance else None
        found = latest(
            config.workspace / method.name / kind.KIND,
            kind=kind.KIND,
            made_from={role: artifact.manifest for role, artifact in read.items() if artifact},
            settings=settings,
            round=round,
        )
        made = replace(made, **{ROLES[stage]: kind.open(found)})
    return made
