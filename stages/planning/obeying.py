"""The configuration as a plan fills it in, and the newest plan that fits a configuration.

Whatever is set by hand wins, in each section: a plan fills in only what the file, its presets and `--set` leave open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.plan import Plan
from stages.artifacts.store import listed_versions
from stages.artifacts.weights import Registration, Segmentation
from stages.config import Config, PreprocessSettings, TrainSettings, load_config
from stages.data.subsets import Part, cohort_folder, cohort_settings
from stages.methods import aligned_for, find_method, settings_of
from stages.planning.choosing import Choices, Given

BEST = "best"
RIVALS = ("unet", "supervised")  # take the plan's network, resolution, batch and augmentation, too
TRAINING = ("batch_size", "augmentation")


class Settled(NamedTuple):
    """A configuration as a command reads it, and the time budget that its plan was made for, if any."""

    config: Config
    budget_s: float | None


def settled(path: Path, overrides: list[str], method_name: str | None = None) -> Settled:
    """The configuration file as the newest plan that fits it, and that a run has obeyed, fills it in.

    Args:
        method_name: whose artifacts are asked for; a plan by which it was trained comes first.

    Raises:
        LrlsError: see `load_config`; or the plan is damaged.
    """

    def aligned(config: Config) -> Config:
        return aligned_for(find_method(method_name), config) if method_name else config

    config = load_config(path, overrides)
    obeyed = [Settled(aligned(obey(config, plan)), plan.budget_s) for plan in fitting_plans(config)]
    if not obeyed:
        return Settled(aligned(config), None)
    newest = max(obeyed, key=lambda settled: _came_so_far(settled.config, method_name))  # the first of equals
    by_hand = any(override.partition("=")[0].strip().endswith(".steps") for override in overrides)
    return newest._replace(budget_s=None) if by_hand else newest


def _came_so_far(config: Config, method_name: str | None) -> int:
    """How far runs of these settings came: 0: no cohort, 1: a cohort, 2: something that the method made of it."""
    part: Part = find_method(method_name).cohort if method_name else "train"
    wanted = cohort_settings(config, part)
    cohorts = [
        version.manifest.digest
        for version in listed_versions(Cohort, cohort_folder(config, part))
        if version.manifest.identity.config == wanted
    ]
    if not cohorts or not method_name:
        return min(len(cohorts), 1)
    made = [
        version.manifest.identity.inputs.get("cohort")
        for kind in (Registration, Generated, Segmentation)
        for version in listed_versions(kind, config.workspace / method_name / kind.KIND)
    ]
    return 2 if set(made) & set(cohorts) else 1


def newest_plan(config: Config) -> Plan | None:
    """The newest plan that was made for these scans, structures and settings; None: there is none."""
    return next(fitting_plans(config), None)


def fitting_plans(config: Config) -> Iterator[Plan]:
    """The plans that were made for these scans, structures and settings, with whatever budget; the newest first."""
    versions = listed_versions(Plan, config.workspace / Plan.KIND)
    wanted = asked(config) if versions else {}
    for version in reversed(versions):
        if version.manifest.identity.config.get("asked") == wanted:
            yield Plan.open(version.folder)


def asked(config: Config) -> dict[str, Any]:
    """What a plan depends on besides the scans' files, the machine and the budget, JSON-able.

    Seeds, held-out scans and numbers of steps do not matter to it.
    """
    method = find_method(BEST)
    preprocess = config.preprocess
    return {
        "preprocess": preprocess.model_dump(mode="json", include=preprocess.model_fields_set - {"workers"}),
        "structures": [[name, values] for name, values in config.structure_values().items()],
        "others": config.others,
        "members": {part: config.part(part) for part in ("atlases", "unlabeled")},
        "device": config.device,
        "best": settings_of(method, config).read_by("train-seg"),
        "given": {name: value for name, value in _given_training(config, BEST).items() if name in TRAINING},
    }


def given(config: Config, steps: int) -> Given:
    """What is set by hand of the things that a plan chooses."""
    training, own = _given_training(config, BEST), settings_of(find_method(BEST), config)
    hand = own.model_fields_set
    return Given(
        steps=steps,
        network=own.segmentation_network if "segmentation_network" in hand else None,  # type: ignore[attr-defined]
        batch_size=training.get("batch_size"),
        augmentation=training.get("augmentation"),
        half_resolution=own.half_resolution if "half_resolution" in hand else None,  # type: ignore[attr-defined]
        couples=(own.most_paths or 10**9) if "most_paths" in hand else None,  # type: ignore[attr-defined]
    )


def as_settings(choices: Choices, num_scans: int) -> dict[str, Any]:
    """The choices as settings by their names for `--set`."""
    settings: dict[str, Any] = {}
    if not choices.is_derived:
        settings["preprocess.spacing_mm"] = list(choices.grid.spacing_mm)
    if choices.scans < num_scans:
        settings["preprocess.most_unlabeled"] = choices.scans
    settings[f"methods.{BEST}.most_paths"] = choices.couples
    for method in (BEST, *RIVALS):
        settings[f"methods.{method}.segmentation_network"] = choices.network
        settings[f"methods.{method}.half_resolution"] = choices.half_resolution
        settings[f"methods.{method}.train_seg.batch_size"] = choices.batch_size
        settings[f"methods.{method}.train_seg.augmentation"] = choices.augmentation
    return settings


def obey(config: Config, plan: Plan) -> Config:
    """The configuration with a plan's settings where it leaves them open.

    Raises:
        LrlsError: the plan names a setting that it may not choose, or a bad value.
    """
    try:
        return filled_in(config, plan.settings)
    except (ValidationError, ValueError, TypeError, KeyError):
        raise plan.damaged("plan.json") from None


def filled_in(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with settings where it leaves them open.

    Raises:
        ValueError: a setting is none that a plan chooses, or its value is bad.
    """
    hand = config  # `preprocess.shape` by hand leaves no spacing open, whatever was filled in before
    for name, value in settings.items():
        if name not in chosen_names():
            raise ValueError(name)
        section, *inner = name.split(".")
        if section == "preprocess":
            config = _fill_preprocess(config, hand, inner[0], value)
        else:
            config = _fill_method(config, inner[0], inner[1:], value)
    return config


def chosen_names() -> list[str]:
    """The settings that a plan may choose."""
    of_methods = [f"methods.{method}." for method in (BEST, *RIVALS)]
    return [
        "preprocess.spacing_mm",
        "preprocess.most_unlabeled",
        f"methods.{BEST}.most_paths",
        *(f"{method}{name}" for method in of_methods for name in ("segmentation_network", "half_resolution")),
        *(f"{method}train_seg.{name}" for method in of_methods for name in TRAINING),
    ]


def _fill_preprocess(config: Config, hand: Config, name: str, value: Any) -> Config:
    by_hand = hand.preprocess.model_fields_set
    if name in by_hand or (name == "spacing_mm" and "shape" in by_hand):
        return config
    values = config.preprocess.model_dump(include=config.preprocess.model_fields_set) | {name: value}
    return config.model_copy(update={"preprocess": PreprocessSettings.model_validate(values)})


def _fill_method(config: Config, method_name: str, place: list[str], value: Any) -> Config:
    method, own = find_method(method_name), config.methods.get(method_name, {})
    *section, name = place
    if section:
        if name in _given_training(config, method_name):
            return config
        training = {**own.get("train_seg", {}), name: value}
        TrainSettings.model_validate(training)
        own = own | {"train_seg": training}
    else:
        if name in settings_of(method, config).model_fields_set:
            return config
        own = own | {name: value}
        method.settings.model_validate({key: v for key, v in own.items() if key not in ("train_reg", "train_seg")})
    return config.model_copy(update={"methods": config.methods | {method_name: own}})


def _given_training(config: Config, method_name: str) -> dict[str, Any]:
    """The training numbers of S that are set by hand or by a preset."""
    training = config.training("train_seg", method_name)
    by_hand = training.model_dump(include=training.model_fields_set)
    return settings_of(find_method(method_name), config).preset_training("train_seg") | by_hand
