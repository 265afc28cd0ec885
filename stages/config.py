"""The configuration: one YAML file, checked by pydantic models; each stage reads its own section.

The papers' numbers are in the recipes (`stages/methods`), the numbers of a run are here.
Paths in the file are relative to the file.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from stages.errors import LrlsError

PARTS = ("atlases", "unlabeled", "supervised", "dev", "test")

Role = list[str] | str
StageName = Literal["preprocess", "train-reg", "generate", "train-seg", "eval"]
MethodStage = Literal["train-reg", "generate", "train-seg", "eval"]  # stages that a method takes part in
Augmentation = Literal["none", "rotate-scale", "affine", "half-affine", "mild", "strong"]


class Section(BaseModel):
    """A frozen section of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    BESIDE: ClassVar[tuple[str, ...]] = ()  # keys that stand beside the section's own in the file


class DataSettings(Section):
    """Where the scans are, and to which part of the split each belongs."""

    folder: Path = Field(description="Folder of the scans; relative to the configuration file.")
    images: str = Field(
        "images", description="Sub-folder of the images: <case id>.nii.gz, .nrrd, .mha or DICOM folders."
    )
    labels: str = Field("labels", description="Sub-folder of the label maps, named as the images are.")
    files: dict[str, list[Path]] = Field(
        default={},
        description="Files of cases that are not named after their id, relative to the folder: case id: [image, "
        "label map] or [image].",
    )
    split: str | None = Field(
        None, description="JSON file in the folder with named lists of case ids; parts may then name a list."
    )
    atlases: Role = Field(default=[], description="Labelled scans to learn from; the first one is the reference.")
    unlabeled: Role = Field(default=[], description="Scans without (used) labels to learn from.")
    supervised: Role = Field(default=[], description="Labelled scans of the `supervised` upper bound only.")
    dev: Role = Field(default=[], description="Labelled scans to choose settings on; never trained on.")
    test: Role = Field(default=[], description="Labelled scans to score once; never trained on.")


class IntensitySettings(Section):
    """How intensities are mapped to [0, 1]."""

    method: Literal["percentiles", "window"] = Field(
        "percentiles", description="MR: percentiles of the scan's foreground; CT: a fixed window."
    )
    percentiles: tuple[float, float] = Field((0.5, 99.5), description="Percentiles that become 0 and 1.")
    window: tuple[float, float] = Field((0.0, 2048.0), description="Values (HU) that become 0 and 1.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("percentiles", "window"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name} are {low} and {high}; the first must be the smaller one")
        if not (self.percentiles[0] >= 0 and self.percentiles[1] <= 100):
            raise ValueError(f"percentiles are {self.percentiles}; give numbers from 0 to 100")
        return self


Length = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class PreprocessSettings(Section):
    """Alignment, crop, resampling, intensities."""

    align: Literal["none", "centre", "rigid", "affine"] = Field(
        "affine", description="Alignment to the first atlas: by header, box centres, or ANTs."
    )
    align_contrast: Literal["same", "any"] = Field(
        "same",
        description="How a fit is judged: by correlation (same), or by correlation ratio (any), for scans whose "
        "contrast differs from the first atlas's.",
    )
    align_spacing_mm: float | None = Field(
        None,
        gt=0,
        description="Scans with over 2^21 voxels are aligned at this spacing (mm); default: 2, or as much of scans "
        "that are not of human size.",
    )
    crop: Literal["labels", "foreground", "none"] = Field(
        "labels", description="The grid covers the atlases' labels, the reference's foreground, or its whole image."
    )
    margin_mm: float | None = Field(
        None, ge=0, description="Margin round the cropped box (mm); default: 12 of the first atlas's finest voxels."
    )
    spacing_mm: Length | tuple[Length, Length, Length] | None = Field(
        None, description="Voxel size (mm), one number or (D, H, W); default: the atlases' finest, isotropic."
    )
    shape: tuple[Count, Count, Count] | None = Field(
        None, description="Voxels (D, H, W), centred on the box; default: derived."
    )
    max_voxels: int = Field(
        1_500_000, gt=0, description="A derived spacing is coarsened until the grid has no more voxels than this."
    )
    intensity: IntensitySettings = IntensitySettings()
    n4: bool = Field(False, description="N4 bias field correction before anything else (MR).")
    workers: int | None = Field(None, ge=1, description="Processes that align and register; default: one per core.")


class TrainSettings(Section):
    """Numbers of a training run; the recipe chooses those that are left out."""

    steps: int | None = Field(None, ge=0, description="Optimiser steps of every player.")
    batch_size: int | None = Field(None, ge=1, description="Couples in a step.")
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "one-cycle", "exponential"] | None = Field(
        None, description="Learning-rate schedule; exponential: falls to a twentieth."
    )
    epochs: int | None = Field(
        None, ge=1, description="With exponential: the run counts as this many epochs; the rate falls by 1 % with each."
    )
    optimizer: Literal["adam", "adamw"] | None = Field(None, description="Optimiser.")
    ema: float | None = Field(
        None, ge=0, lt=1, description="Decay of averaged weights, which replace the trained ones at the end; 0: off."
    )
    augmentation: Augmentation | None = Field(
        None,
        description="rotate-scale: rotation and scaling (BRBS); affine: random affine maps, half-affine: half as far; "
        "strong: also elastic, gamma, contrast, noise, blur; mild: as strong, with a third to a half of its rotation, "
        "scaling and bending.",
    )
    checkpoint_steps: int = Field(200, ge=1, description="A stopped run resumes from the last multiple of this.")


class GenerateSettings(Section):
    """What `lrls generate` writes."""

    samples: int = Field(0, ge=0, description="Finished couples (image, label) to write besides the path bank.")
    max_folding: float | None = Field(
        None, ge=0, le=1, description="Screening: couples with a higher share of voxels with |J| <= 0 are not sampled."
    )
    min_similarity: float | None = Field(
        None, ge=0, le=1, description="Screening: couples with a lower LNCC of warped atlas and scan are not sampled."
    )


class EvalSettings(Section):
    """What `lrls eval` scores."""

    part: Literal["dev", "test"] = Field("test", description="Which scans are scored.")
    pseudo_labels: bool = Field(
        False, description="Also score the pseudo-labels of every round, where unlabelled scans have label maps."
    )


class Config(Section):
    """The whole configuration file."""

    workspace: Path = Field(description="Folder for everything that is made; relative to the configuration file.")
    data: DataSettings
    structures: dict[str, int | list[int]] = Field(description="Label values of each structure, as in the label maps.")
    others: Literal["error", "background"] = Field(
        "error", description="Label values that `structures` does not name: an error, or background."
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is a GPU.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the hardware is made for it, otherwise fp32."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores.")
    preprocess: PreprocessSettings = PreprocessSettings()
    train_reg: TrainSettings = TrainSettings()
    generate: GenerateSettings = GenerateSettings()
    train_seg: TrainSettings = TrainSettings()
    eval: EvalSettings = EvalSettings()
    methods: dict[str, dict[str, Any]] = Field(
        default={},
        description="Settings of single methods; their `train_reg` and `train_seg` override the common sections.",
    )
    _base: Path = PrivateAttr(default_factory=Path)

    @property
    def base(self) -> Path:
        """Folder of the configuration file, which paths in it are relative to."""
        return self._base

    @field_validator("structures")
    @classmethod
    def _values_are_used_once(cls, structures: dict[str, int | list[int]]) -> dict[str, int | list[int]]:
        if not structures:
            raise ValueError("no structure is named; give at least one as `name: value`")
        owner: dict[int, str] = {}
        for name, values in structures.items():
            for value in [values] if isinstance(values, int) else values:
                if value == 0:
                    raise ValueError(f"{name} has value 0, which is the background; give its value in the label maps")
                if value in owner:
                    raise ValueError(f"value {value} belongs to {owner[value]} and {name}; name it once")
                owner[value] = name
            if isinstance(values, list) and not values:
                raise ValueError(f"{name} has no value; give at least one")
        return structures

    def part(self, name: str) -> list[str]:
        """Case ids of a part of the split ("atlases", "unlabeled", "supervised", "dev" or "test").

        Raises:
            LrlsError: the part names a list that the split file does not hold.
        """
        role = getattr(self.data, name)
        if isinstance(role, str):
            if self.data.split is None:
                raise LrlsError(
                    f"data.{name} names the list '{role}', but data.split is not set; "
                    "set data.split to the JSON file or list the case ids."
                )
            path = self.data.folder / self.data.split
            try:
                lists = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                reason = "not found" if isinstance(error, FileNotFoundError) else "not readable as JSON"
                raise LrlsError(f"data.split: {self.data.split} is {reason} in data.folder; correct either.") from None
            if not isinstance(lists.get(role), list):
                known = ", ".join(sorted(key for key, value in lists.items() if isinstance(value, list)))
                raise LrlsError(f"data.{name}: {self.data.split} holds no list '{role}'; choose one of: {known}.")
            role = lists[role]
        ids = [str(case) for case in role]
        doubled = sorted({case for case in ids if ids.count(case) > 1})
        if doubled:
            raise LrlsError(f"data.{name}: case {doubled[0]} is listed more than once; list it once.")
        return ids

    def structure_values(self) -> dict[str, list[int]]:
        """Label values of each structure; the class index of a structure is its place in this order, from 1."""
        return {name: [v] if isinstance(v, int) else list(v) for name, v in self.structures.items()}

    def training(self, stage: Literal["train_reg", "train_seg"], method: str) -> TrainSettings:
        """Training settings of a stage, with those of the method on top."""
        return getattr(self, stage).model_copy(
            update=TrainSettings.model_validate(self.methods.get(method, {}).get(stage, {})).model_dump(
                exclude_unset=True
            )
        )

    def method_settings(self, method: str) -> dict[str, Any]:
        """What the file says about a method itself."""
        return {
            key: value for key, value in self.methods.get(method, {}).items() if key not in ("train_reg", "train_seg")
        }


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read and check a configuration file.

    Args:
        path: YAML file.
        overrides: `section.key=value` strings, values in YAML.

    Raises:
        LrlsError: file missing, not YAML, unknown key (the nearest known one is named) or bad value.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LrlsError(f"{path}: no such configuration file; `lrls init FOLDER` writes one.") from None
    except IsADirectoryError:
        raise LrlsError(f"{path} is a folder; give the YAML file in it.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise LrlsError(f"{path}: not readable as YAML{where}; correct the file.") from None
    if not isinstance(values, dict):
        raise LrlsError(f"{path}: expected sections like `data:`, found {type(values).__name__}; see `lrls init`.")
    for override in overrides or []:
        key, separator, value = override.partition("=")
        if not separator:
            raise LrlsError(f"--set {override}: expected section.key=value, for example train_seg.steps=500.")
        node = values
        *sections, last = key.strip().split(".")
        for section in sections:
            node = node.setdefault(section, {}) if isinstance(node, dict) else None
            if not isinstance(node, dict):
                raise LrlsError(f"--set {override}: {section} is not a section; expected section.key=value.")
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise LrlsError(f"--set {override}: the value is not readable as YAML.") from None
        _outrank(values.get("methods"), [*sections, last], node[last])
    try:
        config = Config.model_validate(values)
        for method, settings in config.methods.items():
            for stage in ("train_reg", "train_seg"):
                validate(TrainSettings, settings.get(stage, {}), f"methods.{method}.{stage}")
    except ValidationError as error:
        raise LrlsError(f"{path.name}: {first_fault(error, Config)}") from None
    base = path.resolve().parent
    config = config.model_copy(
        update={
            "workspace": (base / config.workspace).resolve(),
            "data": config.data.model_copy(update={"folder": (base / config.data.folder).resolve()}),
        }
    )
    config._base = base
    return config


def _outrank(methods: Any, key: list[str], value: Any) -> None:
    """A training setting given by `--set` overrides the file's settings of single methods, too."""
    typed = key[1:] if len(key) == 2 else list(value) if len(key) == 1 and isinstance(value, dict) else []
    if key[0] not in ("train_reg", "train_seg") or not isinstance(methods, dict):
        return
    for method in methods.values():
        if isinstance(method, dict) and isinstance(method.get(key[0]), dict):
            for name in typed:
                method[key[0]].pop(name, None)


SectionType = TypeVar("SectionType", bound=Section)


def validate(model: type[SectionType], values: Any, where: str) -> SectionType:
    """Check one section; faults end as one `LrlsError` line that names the setting."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise LrlsError(f"{where}: {first_fault(error, model)}") from None


def first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault of a failed check, in one line; a misspelt key is answered with the nearest known one."""
    fault = error.errors()[0]
    if fault["type"] == "extra_forbidden":
        section: Any = model
        for part in fault["loc"][:-1]:
            section = section.model_fields[part].annotation
        known = {*section.model_fields, *section.BESIDE}
        return unknown_setting(".".join(str(part) for part in fault["loc"]), known)
    # Where a setting takes several types, the type that was tried last stands behind its name.
    a_type = re.compile(r"int|float|str|constrained-.*|list\[.*|tuple\[.*")
    where = ".".join(str(part) for part in fault["loc"] if not a_type.fullmatch(str(part)))
    if fault["type"] == "missing":
        return f"setting {where} is missing; add it."
    message = fault["msg"].removeprefix("Value error, ")
    found_value = f" (found {fault['input']!r})" if isinstance(fault["input"], str | int | float | bool) else ""
    place = f"setting {where}: " if where else ""  # a fault of several settings together has no place
    return f"{place}{message[0].lower()}{message[1:]}{found_value}; correct it."


def unknown_setting(where: str, known: Iterable[str]) -> str:
    """The message for an unknown setting ("section.key"); it names the nearest known one."""
    known = sorted(known)
    nearest = difflib.get_close_matches(where.rpartition(".")[2], known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(known)}."
    return f"unknown setting {where}; {hint}"
