"""The methods. To add one: write its recipe in a file here and name it in this list."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from stages.artifacts.cohort import Cohort
from stages.config import Config, MethodStage, TrainSettings, unknown_setting, validate
from stages.errors import LrlsError
from stages.methods import (
    ants,
    best,
    brbs,
    bspline,
    clmorph,
    cps,
    data_aug,
    deep_atlas,
    deep_rs,
    greedy,
    ist,
    jrss,
    lt_net,
    mabmis,
    massl,
    os_medseg,
    pc_reg_rt,
    pdd_net,
    rigid,
    rsegnet,
    sst,
    transmorph,
    ua_mt,
    unet,
    vae_aug,
    voxelmorph,
)
from stages.methods.recipe import Method, Recipe, Task
from stages.methods.settings import MethodSettings
from stages.scan_settings import PreprocessSettings

METHODS = {
    method.name: method
    for method in (
        unet.UNET,
        unet.SUPERVISED,
        rigid.METHOD,
        ants.AFFINE,
        bspline.METHOD,
        ants.SYN,
        greedy.METHOD,
        mabmis.METHOD,
        voxelmorph.METHOD,
        voxelmorph.LABEL_CONSTRAINED,
        clmorph.METHOD,
        transmorph.METHOD,
        pdd_net.METHOD,
        lt_net.METHOD,
        data_aug.METHOD,
        vae_aug.METHOD,
        deep_atlas.METHOD,
        deep_rs.METHOD,
        pc_reg_rt.METHOD,
        rsegnet.METHOD,
        ist.METHOD,
        ua_mt.METHOD,
        cps.METHOD,
        massl.METHOD,
        brbs.METHOD,
        jrss.METHOD,
        os_medseg.METHOD,
        sst.METHOD,
        best.METHOD,
    )
}


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        LrlsError: there is no such method.
    """
    if name not in METHODS:
        raise LrlsError(f"no method '{name}'; choose one of: {', '.join(METHODS)}.")
    return METHODS[name]


def check_channels(method: Method, channels: int) -> None:
    """Refuse scans with several images for a method that learns from one.

    Raises:
        LrlsError: names the methods that take them.
    """
    if channels > 1 and not method.channels:
        able = ", ".join(name for name, other in METHODS.items() if other.channels)
        raise LrlsError(
            f"{method.name} learns from one image per scan, and the scans have {channels} channels (_0000, ...); "
            f"choose one of: {able}; or keep one channel in data.images."
        )


def check_unlabeled(method: Method, config: Config) -> None:
    """Refuse a method that learns from unlabelled scans where there are none.

    Raises:
        LrlsError: names the methods that do without.
    """
    if config.part("unlabeled") or not plan_of(method, config).looks_at_unlabeled:
        return
    able = []
    for name, other in METHODS.items():
        with suppress(LrlsError):  # settings of another method that do not fit
            able += [] if plan_of(other, config).looks_at_unlabeled else [name]
    none = "preprocess.most_unlabeled leaves none" if config.listed("unlabeled") else "data.unlabeled lists none"
    raise LrlsError(
        f"{method.name} learns from unlabelled scans, and {none}; list some, or choose one of: {', '.join(able)}."
    )


def aligned_for(method: Method, config: Config) -> Config:
    """The configuration with the alignment that a method has scans by."""
    preprocess = config.preprocess
    if method.align is None or preprocess.align != "affine":
        return config
    values = preprocess.model_dump(include=preprocess.model_fields_set) | {"align": method.align}
    return config.model_copy(update={"preprocess": PreprocessSettings.model_validate(values)})


def settings_of(method: Method, config: Config) -> MethodSettings:
    """The method's section of the configuration, checked; paths are absolute.

    Raises:
        LrlsError: a setting is wrong, or the configuration has a section for an unknown method.
    """
    for name in config.methods:
        if name not in METHODS:
            raise LrlsError(unknown_setting(f"methods.{name}", METHODS))
    settings = validate(method.settings, config.method_settings(method.name), f"methods.{method.name}")
    paths = {name: config.base / value for name, value in settings if isinstance(value, Path)}
    return settings.model_copy(update=paths)


def training_of(method: Method, config: Config, stage: Literal["train_reg", "train_seg"]) -> TrainSettings:
    """The recipe's training numbers with the preset's and the configuration's on top.

    Every field is set but `epochs`, which only some exponential schedules have, and `start_from`.

    Raises:
        LrlsError: the method has no such stage.
    """
    defaults = {"train_reg": method.train_reg, "train_seg": method.train_seg}[stage]
    if defaults is None:
        raise LrlsError(f"{method.name} has no {stage.replace('_', '-')} stage; see `lrls methods`.")
    settings = settings_of(method, config)
    training = config.training(stage, method.name)
    given = training.model_dump(exclude_none=True, include=training.model_fields_set)
    return defaults(settings).model_copy(update=settings.preset_training(stage) | given)


def task_of(cohort: Cohort, seed: int = 0) -> Task:
    """The task that a cohort sets."""
    atlases = len(cohort.parts.get("atlases", ()))
    return Task(
        cohort.grid.shape, cohort.num_classes, atlases, seed, cohort.channels, spacing_mm=cohort.grid.spacing_mm,
        num_unlabeled=len(cohort.parts.get("unlabeled", ())),
    )  # fmt: skip


def recipe_of(method: Method, cohort: Cohort, config: Config) -> Recipe:
    """The recipe for a cohort, with freshly initialised networks."""
    check_channels(method, cohort.channels)
    return method.recipe(task_of(cohort, config.seed), settings_of(method, config))


def plan_of(method: Method, config: Config, cohort: Cohort | None = None) -> Recipe:
    """The recipe with networks that hold no weights; cheap.

    Args:
        cohort: None if there is none yet; the grid is then taken to be large.
    """
    if cohort is None:
        counts = {f"num_{part}": len(config.part(part)) for part in ("atlases", "unlabeled")}
        return method.plan(settings_of(method, config), **counts)
    check_channels(method, cohort.channels)
    return method.planned(task_of(cohort), settings_of(method, config))


def settings_read(
    method: Method,
    config: Config,
    stage: MethodStage,
    *,
    round: int = 0,
    trains: bool = False,
) -> dict[str, Any]:
    """What a stage's result depends on, besides its inputs and seed, JSON-able.

    Args:
        trains: include the stage's training numbers.
    """
    own = settings_of(method, config).read_by(stage, round)
    read = {"method": method.name, "settings": own, "precision": config.precision}
    if trains:
        section: Literal["train_reg", "train_seg"] = "train_reg" if stage == "train-reg" else "train_seg"
        # What training starts from is an input: its digest, not the word, says what came of it.
        read[section] = training_of(method, config, section).model_dump(mode="json", exclude={"start_from"})
    return read
