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
from stages.compute_settings import ComputeSettings
from stages.errors import UNPRINTABLE, LrlsError, printable, shortened
from stages.reviewed import Review, read_review
from stages.scan_settings import LEAST_EDGE, PARTS, DataSettings, IntensitySettings, PreprocessSettings
from stages.sections import MOST_AT_ONCE, Section, first_fault, unknown_setting, validate
from stages.text_files import read_json, read_yaml, yaml_value

__all__ = [
    "LEAST_EDGE", "PARTS", "Config", "IntensitySettings", "PreprocessSettings", "Section", "TrainSettings",
    "first_fault", "load_config", "unknown_setting", "validate",
]  # fmt: skip

StageName = Literal["preprocess", "train-reg", "generate", "train-seg", "eval"]
MethodStage = Literal["train-reg", "generate", "train-seg", "eval"]  # stages that a method takes part in
Augmentation = Literal["none", "rotate-scale", "affine", "half-affine", "mild", "strong"]


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
    start_from: Literal["scratch", "latest"] | None = Field(
        None,
        description="latest: from the newest weights of the same method, seed, network, structures and voxel size that "
        "another cohort gave, such as the one before an atlas was added; default: scratch.",
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
    registration_pairs: Literal["none", "atlases", "test"] = Field(
        "none",
        description="Registration is also scored pair by pair: every atlas to every scan (atlases), or the scored "
        "scans to one another (test).",
    )
    fixed_scans: int | None = Field(
        None, ge=1, description="Only the first so many scored scans stand still in pairs; null: all."
    )
    report_as: dict[str, list[str]] = Field(
        default={},
        description="Structures that are scored as one, by its name: hippocampus: [left_hippocampus, "
        "right_hippocampus]; the others stay. Nothing is trained anew.",
    )


class Config(Section):
    """The whole configuration file."""

    workspace: Path = Field(description="Folder for everything that is made; relative to the configuration file.")
    data: DataSettings
    structures: dict[str, int | list[int]] = Field(description="Label values of each structure, as in the label maps.")
    colours: dict[str, Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]] = Field(
        default={}, description="Colours of structures as '#rrggbb'; those that are left out are chosen."
    )
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
    compute: ComputeSettings = ComputeSettings()
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
    _review: Review | None = PrivateAttr(None)

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

    @model_validator(mode="after")
    def _colours_are_of_structures(self) -> Self:
        for name in self.colours:
            if name not in self.structures:
                known = shortened(", ".join(self.structures), 200)
                raise ValueError(
                    f"colours names '{printable(shortened(name))}', which is no structure; name some of {known}"
                )
        return self

    @model_validator(mode="after")
    def _groups_hold_structures(self) -> Self:
        owner: dict[str, str] = {}
        for group, members in self.eval.report_as.items():
            if not group.strip() or UNPRINTABLE.search(group):
                raise ValueError(f"eval.report_as: the name '{printable(group)}' is empty or holds a control character")
            if not members:
                raise ValueError(f"eval.report_as.{group} names no structure; give at least one")
            for member in members:
                if member not in self.structures:
                    named = f"eval.report_as.{group} names '{printable(shortened(member))}', which is no structure"
                    raise ValueError(f"{named}; name some of {shortened(', '.join(self.structures), 200)}")
                if member in owner:
                    raise ValueError(f"eval.report_as: {member} is in {owner[member]} and {group}; name it once")
                owner[member] = group
            if group in self.structures and group not in members:
                raise ValueError(f"eval.report_as.{group}: a structure has that name, too; give another one")
        return self

    def reported(self) -> dict[str, list[int]]:
        """Class indices of what tables report: `eval.report_as` at the place of its first structure, and the others."""
        group_of = {member: group for group, members in self.eval.report_as.items() for member in members}
        reported: dict[str, list[int]] = {}
        for index, structure in enumerate(self.structures, start=1):
            reported.setdefault(group_of.get(structure, structure), []).append(index)
        return reported

    def part(self, name: str) -> list[str]:
        """Case ids of a part of the split ("atlases", "unlabeled", "supervised", "dev" or "test").

        Of "atlases" and "unlabeled", those that `preprocess.most_atlases` and `preprocess.most_unlabeled` leave.

        Raises:
            LrlsError: the part names a list that the split file does not hold.
        """
        most = {"atlases": self.preprocess.most_atlases, "unlabeled": self.preprocess.most_unlabeled}.get(name)
        return self.listed(name)[:most]

    def listed(self, name: str) -> list[str]:
        """All case ids of a part of the split, with what a review says of them; raises as `part` does."""
        if self._review is None or name not in PARTS:
            return self.said(name)
        return self._review.part(name, {part: self.said(part) for part in {name, "atlases", "unlabeled"}})

    def said(self, name: str) -> list[str]:
        """All case ids of a part of the split as the file has them, without a review; raises as `part` does."""
        role = getattr(self.data, name)
        if isinstance(role, str):
            if self.data.split is None:
                raise LrlsError(
                    f"data.{name} names the list '{shortened(role)}', but data.split is not set; "
                    "set data.split to the JSON file or list the case ids."
                )
            return self._in_split(name, role)
        return list(role)

    @property
    def review(self) -> Review | None:
        """What `data.review` says of the scans."""
        return self._review

    def added_atlases(self) -> list[str]:
        """Atlases that are listed as unlabelled scans, and that a review has given label maps."""
        if self._review is None:
            return []
        added = self._review.added({part: self.said(part) for part in ("atlases", "unlabeled")})
        return [case for case in added if case in self.part("atlases")]

    def reviewed(self, review: Review | None) -> Config:
        """This configuration with another review.

        Raises:
            LrlsError: the review has a corrected label map of a scan that is scored.
        """
        config = self.model_copy()
        config._review = review
        for case in review.labels if review else ():
            for part in ("dev", "test"):
                if case in config.said(part):
                    raise LrlsError(
                        f"case {case}: has a corrected label map, and data.{part} scores it: nothing may learn from "
                        f"it; take its label map out of the review, or list it in data.unlabeled instead."
                    )
        return config

    def _in_split(self, part: str, name: str) -> list[str]:
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
    """Read and check a configuration file, and the review that it names; arguments and errors as of `unreviewed`."""
    config = unreviewed(path, overrides)
    if config.data.review is None:
        return config
    return config.reviewed(read_review(_place(config.base, config.data.review, "data.review")))


def unreviewed(path: Path, overrides: list[str] | None = None) -> Config:
    """Read and check a configuration file; the review that it names is not read.

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
    update = {
        "workspace": _place(base, config.workspace, "workspace"),
        "data": config.data.model_copy(update={"folder": folder}),
    }
    if config.compute.scheduler:
        update["compute"] = config.compute.at(base)
    config = config.model_copy(update=update)
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
