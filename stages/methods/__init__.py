"""The methods. To add one: write its recipe in a file here and name it in this list."""

from __future__ import annotations

from stages.config import Config, MethodSettings, TrainSettings, unknown_setting, validate
from stages.errors import LrlsError
from stages.methods import (
    ants,
    best,
    brbs,
    clmorph,
    data_aug,
    deep_atlas,
    jrss,
    lt_net,
    os_medseg,
    rsegnet,
    sst,
    unet,
    voxelmorph,
)
from stages.methods.recipe import Method

METHODS = {
    method.name: method
    for method in (
        unet.UNET,
        unet.SUPERVISED,
        ants.AFFINE,
        ants.SYN,
        voxelmorph.METHOD,
        voxelmorph.LABEL_CONSTRAINED,
        clmorph.METHOD,
        lt_net.METHOD,
        data_aug.METHOD,
        deep_atlas.METHOD,
        rsegnet.METHOD,
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
        LrlsError: there is none.
    """
    if name not in METHODS:
        raise LrlsError(f"no method '{name}'; choose one of: {', '.join(METHODS)}.")
    return METHODS[name]


def settings_of(method: Method, config: Config) -> MethodSettings:
    """The method's section of the configuration, checked.

    Raises:
        LrlsError: something is wrong with it, or the configuration has a section for a method that there is not.
    """
    for name in config.methods:
        if name not in METHODS:
            raise LrlsError(unknown_setting(f"methods.{name}", METHODS))
    return validate(method.settings, config.method_settings(method.name), f"methods.{method.name}")


def training_of(method: Method, config: Config, stage: str) -> TrainSettings:
    """The recipe's training numbers with the configuration's on top; every field is set.

    Raises:
        LrlsError: the method has no such stage.
    """
    defaults = {"train_reg": method.train_reg, "train_seg": method.train_seg}[stage]
    if defaults is None:
        raise LrlsError(f"{method.name} has no {stage.replace('_', '-')} stage; see `lrls methods`.")
    ours = defaults(settings_of(method, config))
    given = config.training(stage, method.name).model_dump(exclude_none=True)  # type: ignore[arg-type]
    return ours.model_copy(update=given)
