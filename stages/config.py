"""The configuration: one YAML file, checked by pydantic models; each stage reads its own section.

The papers' numbers are in the recipes (`stages/methods`), the numbers of a run are here.
Paths in the file are relative to the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from stages.case_ids import fault_among
from stages.errors import UNPRINTABLE, LrlsError, printable, shortened
from stages.sections import MOST_AT_ONCE, Section, first_fault, unknown_setting, validate
from stages.text_files import read_json, read_yaml, yaml_value

__all__ = ["Config", "Section", "TrainSettings", "first_fault", "load_config", "unknown_setting", "validate"]

PARTS = ("atlases", "unlabeled", "supervised", "dev", "test")

Role = list[str] | str
StageName = Literal["preprocess", "train-reg", "generate", "train-seg", "eval"]
MethodStage = Literal["train-reg", "generate", "train-seg", "eval"]  # stages that a method takes part in
Augmentation = Literal["none", "rotate-scale", "affine", "half-affine", "mild", "strong"]


ChannelName = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class DataSettings(Section):
    """Where the scans are, and to which part of the split each belongs."""

    folder: Path = Field(description="Folder of the scans; relative to the configuration file.")
    images: str = Field(
        "images", description="Sub-folder of the images: <case id>.nii.gz, .nrrd, .mha or DICOM folders."
    )
    labels: str = Field("labels", description="Sub-folder of the label maps, named as the images are.")
    files: dict[str, list[Path | list[Path]]] = Field(
        default={},
        description="Files of cases that are not named after their id, relative to the folder: case id: [image, "
        "label map] or [image]; the images of a scan that has several are a list: [[T1, T2], label map].",
    )
    channels: Annotated[list[ChannelName], Field(max_length=64)] = Field(
        default=[],
        description="Names of the images of a scan that has several, in the order _0000, _0001, ...: exported models "
        "and messages say them.",
    )
    split: str | None = Field(
        None, description="JSON file in the folder with named lists of case ids; parts may then name a list."
    )
    atlases: Role = Field(default=[], description="Labelled scans to learn from; the first one is the reference.")
    unlabeled: Role = Field(default=[], description="Scans without (used) labels to learn from.")
    supervised: Role = Field(default=[], description="Labelled scans of the `supervised` upper bound only.")
    dev: Role = Field(default=[], description="Labelled scans to choose settings on; never trained on.")
    test: Role = Field(default=[], description="Labelled scans to score once; never trained on.")

    @field_validator("files")
    @classmethod
    def _only_images_are_several(cls, files: dict[str, list[Path | list[Path]]]) -> dict[str, list[Path | list[Path]]]:
        for case, listed in files.items():
            if any(isinstance(given, list) for given in listed[1:]) or [] in listed:
                raise ValueError(f"{case} needs [image, label map], or [[image, image, ...], label map]")
        return files

    @field_validator(*PARTS)
    @classmethod
    def _ids_can_be_carried(cls, role: Role) -> Role:
        if isinstance(role, list) and (fault := fault_among(role)):
            raise ValueError(fault)
        return role


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


LEAST_EDGE = 16  # voxels of a derived grid, along each axis
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
    align_spacing_mm: Length | None = Field(
        None, description="Scans with over 2^21 voxels are aligned at this spacing (mm); default: 2, or as much of "
        "scans that are not of human size.",
    )  # fmt: skip
    crop: Literal["labels", "foreground", "none"] = Field(
        "labels", description="The grid covers the atlases' labels, the reference's foreground, or its whole image."
    )
    margin_mm: float | None = Field(
        None,
        ge=0,
        description="Margin round the cropped box (mm); default: 12 of the first atlas's finest voxels, or 15 % of an "
        "edge of the box where that is more and the first atlas shows so much, and at least 2 slices.",
    )
    spacing_mm: Length | tuple[Length, Length, Length] | None = Field(
        None,
        description="Voxel size (mm), one number or (D, H, W); default: the first atlas's finest on all axes but those "
        "of slices over 3 times as thick, which keep theirs.",
    )
    shape: tuple[Count, Count, Count] | None = Field(
        None,
        description="Voxels (D, H, W), centred on the box; without spacing_mm the box is resampled to them; default: "
        "derived, multiples of 8, along thick slices even.",
    )
    max_voxels: int = Field(
        1_500_000,
        ge=LEAST_EDGE**3,
        description="A derived spacing is coarsened, its finest axes first, until the grid has no more voxels than "
        "this.",
    )
    most_unlabeled: int | None = Field(
        None, ge=1, description="Only so many scans of data.unlabeled are used, the first ones; null: all."
    )
    intensity: IntensitySettings = IntensitySettings()
    n4: bool = Field(False, description="N4 bias field correction before anything else (MR).")
    workers: int | None = Field(
        None, ge=1, le=MOST_AT_ONCE, description="Processes that align and register; default: one per core."
    )


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
        "auto", description="auto: the faster one on this processor; measured once for a workspace."
    )
    threads: int | None = Field(
        None, ge=1, le=MOST_AT_ONCE, description="CPU threads; default: all cores, or fewer where that is faster."
    )
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
            if not name.strip() or UNPRINTABLE.search(name):
                raise ValueError(
                    f"the name '{printable(name)}' is empty or holds a control character; give another one"
                )
            for value in [values] if isinstance(values, int) else values:
                if not -(2**31) <= value < 2**32:
                    raise ValueError(f"{name} has value {value}, which no label map holds")
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

        Of "unlabeled", those that `preprocess.most_unlabeled` leaves.

        Raises:
            LrlsError: the part names a list that the split file does not hold.
        """
        role = getattr(self.data, name)
        if isinstance(role, str):
            if self.data.split is None:
                raise LrlsError(
                    f"data.{name} names the list '{shortened(role)}', but data.split is not set; "
                    "set data.split to the JSON file or list the case ids."
                )
            cases = self._listed(name, role)
        else:
            cases = list(role)
        return cases[: self.preprocess.most_unlabeled] if name == "unlabeled" else cases

    def _listed(self, part: str, name: str) -> list[str]:
        """The case ids that the split file lists under a name."""
        assert self.data.split is not None
        try:
            lists = read_json(self.data.folder / self.data.split)
        except FileNotFoundError:
            raise LrlsError(f"data.split: {self.data.split} is not found in data.folder; correct either.") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise LrlsError(f"data.split: {self.data.split} cannot be read ({reason}); correct it.") from None
        if not isinstance(lists, dict):
            raise LrlsError(f"data.split: {self.data.split} holds no named lists, {{...}}; correct it.")
        if not isinstance(lists.get(name), list):
            known = ", ".join(sorted(key for key, value in lists.items() if isinstance(value, list)))
            raise LrlsError(
                f"data.{part}: {self.data.split} holds no list '{shortened(name)}'; "
                f"choose one of: {shortened(known, 200)}."
            )
        for case in lists[name]:
            if not isinstance(case, str | int) or isinstance(case, bool):
                shown = shortened(str(case))
                raise LrlsError(f"data.{part}: the list '{name}' holds {shown}, which is no case id; correct it.")
        ids = [str(case) for case in lists[name]]
        if fault := fault_among(ids):
            raise LrlsError(f"data.{part}: {fault}.")
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
        values = read_yaml(path)
    except FileNotFoundError:
        raise LrlsError(f"{path}: no such configuration file; `lrls init FOLDER` writes one.") from None
    except IsADirectoryError:
        raise LrlsError(f"{path} is a folder; give the YAML file in it.") from None
    except OSError as error:
        raise LrlsError(f"{path} cannot be read ({error.strerror}); give another file, or correct this one.") from None
    except ValueError as error:
        raise LrlsError(f"{path}: not readable as YAML ({error}); correct the file.") from None
    if values is None:
        raise LrlsError(f"{path} is empty; `lrls init FOLDER` writes a configuration file.")
    if not isinstance(values, dict):
        raise LrlsError(f"{path}: expected sections like `data:`, found {type(values).__name__}; see `lrls init`.")
    for override in overrides or []:
        key, separator, value = override.partition("=")
        if not separator or not all(part.strip() for part in key.split(".")):
            raise LrlsError(f"--set {override}: expected section.key=value, for example train_seg.steps=500.")
        node = values
        *sections, last = key.strip().split(".")
        for section in sections:
            node = node.setdefault(section, {}) if isinstance(node, dict) else None
            if not isinstance(node, dict):
                raise LrlsError(f"--set {override}: {section} is not a section; expected section.key=value.")
        try:
            node[last] = yaml_value(value, key.strip())
        except ValueError as error:
            raise LrlsError(f"--set {override}: the value is not readable as YAML ({error}); correct it.") from None
        _outrank(values.get("methods"), [*sections, last], node[last])
    try:
        config = Config.model_validate(values)
        for method, settings in config.methods.items():
            for stage in ("train_reg", "train_seg"):
                validate(TrainSettings, settings.get(stage, {}), f"methods.{method}.{stage}")
    except ValidationError as error:
        raise LrlsError(f"{path.name}: {first_fault(error, Config)}") from None
    base = path.resolve().parent
    folder = _place(base, config.data.folder, "data.folder")
    config = config.model_copy(
        update={
            "workspace": _place(base, config.workspace, "workspace"),
            "data": config.data.model_copy(update={"folder": folder}),
        }
    )
    config._base = base
    return config


def _place(base: Path, given: Path, setting: str) -> Path:
    """A folder of the configuration, absolute; `~` is the user's home, as in a shell.

    Raises:
        LrlsError: there is no such user, or links lead in a circle.
    """
    expanded = os.path.expanduser(given)
    if expanded.startswith("~"):
        raise LrlsError(f"{setting}: {given} names the home of a user who is not known here; write the whole path.")
    try:
        return (base / expanded).resolve()
    except (OSError, RuntimeError):
        raise LrlsError(f"{setting}: {given} cannot be followed, its links lead in a circle; correct it.") from None


def _outrank(methods: Any, key: list[str], value: Any) -> None:
    """A training setting given by `--set` overrides the file's settings of single methods, too."""
    typed = key[1:] if len(key) == 2 else list(value) if len(key) == 1 and isinstance(value, dict) else []
    if key[0] not in ("train_reg", "train_seg") or not isinstance(methods, dict):
        return
    for method in methods.values():
        if isinstance(method, dict) and isinstance(method.get(key[0]), dict):
            for name in typed:
                method[key[0]].pop(name, None)
