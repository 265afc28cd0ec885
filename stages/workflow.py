"""The order of the stages: which artifact goes into which, for single commands and for `lrls run`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from stages import intake
from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.scores import Scores
from stages.artifacts.store import latest, versions
from stages.artifacts.weights import Registration, Segmentation
from stages.budget import Budget, with_steps
from stages.config import Config
from stages.device import choose_device
from stages.errors import LrlsError
from stages.evaluate import evaluate
from stages.generate import generate
from stages.methods import find_method, settings_of, training_of
from stages.methods.recipe import Method, Task
from stages.preprocess import Part, cohort_folder, cohort_settings, preprocess
from stages.train_reg import make_recipe, stage_config, train_registration
from stages.train_seg import train_segmentation

Artifact = TypeVar("Artifact", Cohort, Registration, Generated, Segmentation, Scores)
Stage = Literal["preprocess", "train-reg", "generate", "train-seg", "eval"]
STAGES: tuple[Stage, ...] = ("preprocess", "train-reg", "generate", "train-seg", "eval")


@dataclass(frozen=True)
class Made:
    """What a run made or found, stage by stage."""

    cohort: Cohort
    registration: Registration | None = None
    generated: Generated | None = None
    segmentation: Segmentation | None = None
    scores: Scores | None = None


def needs_unlabeled(method: Method, config: Config) -> bool:
    """Whether the method learns from unlabelled scans."""
    task = Task((16, 16, 16), 2, len(config.part("atlases")))
    return method.recipe(task, settings_of(method, config)).looks_at_unlabeled


def run(
    config: Config,
    method_name: str,
    *,
    until: Stage = "eval",
    budget: Budget | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> Made:
    """Every stage of a method in turn; what is up to date is not made again.

    Args:
        until: the last stage.
        budget: how long training may take; none: the steps that the configuration says.
        force: make everything of the method again, but not the cohort.
        tell: receives a line per stage.
    """
    method = find_method(method_name)

    def told(artifact: Artifact) -> Artifact:
        tell(f"{artifact.KIND}: {artifact.folder.relative_to(config.workspace)}")
        return artifact

    if budget and not (method.train_reg or method.train_seg):
        tell(f"{method.name} trains nothing: --budget has no effect")
    if until == "eval" and config.part(config.eval.part):
        _check_labels(config)
    if method.train_reg or method.train_seg:
        choose_device(config)  # what it refuses is refused before hours of alignment
    cohort = told(preprocess(config, method.cohort, needs_unlabeled=needs_unlabeled(method, config)))
    recipe = make_recipe(method, cohort, config)
    wanted = STAGES[: STAGES.index(until) + 1]
    registration, generated, segmentation, scores = None, None, None, None
    if "train-reg" in wanted and recipe.train_registration:
        settled = config
        if budget:
            settled = with_steps(budget, "train_reg", config, method_name, cohort, force=force)
            tell(f"train-reg: {training_of(method, settled, 'train_reg').steps} steps")
        registration = told(train_registration(cohort, settled, method_name, force=force))
    if "generate" in wanted and recipe.generate and recipe.train_segmentation:
        generated = told(generate(cohort, config, method_name, registration=registration, force=force))
    if "train-seg" in wanted and recipe.segmentation:
        settled = config
        if budget and recipe.train_segmentation:
            settled = with_steps(
                budget, "train_seg", config, method_name, cohort,
                registration=registration, generated=generated, force=force,
            )  # fmt: skip
            tell(f"train-seg: {training_of(method, settled, 'train_seg').steps} steps")
        segmentation = told(
            train_segmentation(
                cohort, settled, method_name, registration=registration, generated=generated, force=force
            )
        )
    if "eval" in wanted and not config.part(config.eval.part):
        tell(f"nothing to score: data.{config.eval.part} lists no scan")
    elif "eval" in wanted:
        held_out = told(preprocess(config, config.eval.part, base=cohort if method.cohort == "train" else None))
        scores = told(
            evaluate(
                cohort,
                held_out,
                config,
                method_name,
                registration=registration,
                segmentation=segmentation,
                force=force,
            )
        )
    return Made(cohort, registration, generated, segmentation, scores)


def _check_labels(config: Config) -> None:
    """A label map that cannot be found is told before hours of training, not after."""
    if not config.data.folder.is_dir():
        return  # `preprocess` says so
    folders = intake.sub_folders(config, config.data.labels)
    for case in config.part(config.eval.part):
        intake.find_file(folders, case, "label map")


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
        cohort = Cohort.open(version)
        if cohort.manifest.identity.config == wanted and cohort.manifest.identity.seed == config.seed:
            return cohort
    raise LrlsError(
        f"no version of {folder.name} was made with these preprocess, structures, data and seed settings; "
        f"make one with `lrls preprocess{'' if part == 'train' else f' --part {part}'}`."
    )


def run_stage(
    config: Config, method_name: str, stage: Stage, *, force: bool = False
) -> Registration | Generated | Segmentation | Scores:
    """One stage on the newest cohort of these settings and the newest artifacts that were made from it."""
    method = find_method(method_name)
    cohort = opened_cohort(config, method.cohort)
    recipe = make_recipe(method, cohort, config)
    folder = config.workspace / method.name
    if stage == "train-reg":
        return train_registration(cohort, config, method_name, force=force)
    made_from = {"cohort": cohort.manifest}
    settings = stage_config(method, config, segments=False)
    registration = None
    if recipe.train_registration:
        found = latest(folder / "registration", kind=Registration.KIND, made_from=made_from, settings=settings)
        registration = Registration.open(found)
        made_from["registration"] = registration.manifest
    if stage == "generate":
        return generate(cohort, config, method_name, registration=registration, force=force)
    if stage == "train-seg":
        generated = None
        if recipe.generate and recipe.train_segmentation:
            generated = Generated.open(
                latest(folder / "generated", kind=Generated.KIND, made_from=made_from, settings=settings)
            )
        return train_segmentation(
            cohort, config, method_name, registration=registration, generated=generated, force=force
        )
    segmentation = None
    if recipe.segmentation:
        settings = stage_config(method, config)
        found = latest(folder / "segmentation", kind=Segmentation.KIND, made_from=made_from, settings=settings)
        segmentation = Segmentation.open(found)
    held_out = preprocess(config, config.eval.part, base=cohort if method.cohort == "train" else None)
    return evaluate(
        cohort, held_out, config, method_name, registration=registration, segmentation=segmentation, force=force
    )


def trained(config: Config, method_name: str) -> Made:
    """The newest cohort of the file's settings, and the newest artifacts of a method that were made from it.

    Raises:
        LrlsError: something that the method's answers need is not made yet.
    """
    method = find_method(method_name)
    cohort = opened_cohort(config, method.cohort)
    recipe = make_recipe(method, cohort, config)
    folder, made_from = config.workspace / method.name, {"cohort": cohort.manifest}
    settings = stage_config(method, config, segments=False)
    registration, generated, segmentation = None, None, None
    if recipe.train_registration:
        found = latest(folder / "registration", kind=Registration.KIND, made_from=made_from, settings=settings)
        registration = Registration.open(found)
        made_from["registration"] = registration.manifest
    if recipe.generate and recipe.train_segmentation:
        found = latest(folder / "generated", kind=Generated.KIND, made_from=made_from, settings=settings)
        generated = Generated.open(found)
    if recipe.segmentation:
        found = latest(
            folder / "segmentation", kind=Segmentation.KIND, made_from=made_from, settings=stage_config(method, config)
        )
        segmentation = Segmentation.open(found)
    return Made(cohort, registration, generated, segmentation)
