"""Settings of methods: presets, and which stage reads what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from pydantic import Field, model_validator

from stages.config import MethodStage, Section


@dataclass(frozen=True)
class ReadBy:
    """Which stages read a method's setting; a change of it makes no other stage run again.

    Args:
        first: the first stage that reads it; later stages depend on that one.
        round: the first round in which a stage reads it.
    """

    first: MethodStage = "train-reg"
    round: int = 0


GENERATE, SEGMENT, ANSWER = ReadBy("generate"), ReadBy("train-seg"), ReadBy("eval")
LATER_ROUNDS = ReadBy(round=1)
SEGMENT_IN_LATER_ROUNDS = ReadBy("train-seg", round=1)
HalfResolution = Annotated[
    float,
    SEGMENT,
    Field(ge=0, lt=1, description="Share of S's steps, the first ones, at half of the grid's resolution."),
]
ORDER: tuple[MethodStage, ...] = get_args(MethodStage)


class MethodSettings(Section):
    """Base of a method's own settings. A field says by `Annotated[..., SEGMENT]` which stages read it; default: all.

    A preset fills in the method's settings, `train_reg` and `train_seg`, as far as they are not given.
    """

    BESIDE: ClassVar[tuple[str, ...]] = ("train_reg", "train_seg")
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"light": {}}

    preset: Annotated[str, ANSWER] = Field("default", description="Fills in the settings that are not given.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("preset"), str):
            return values
        known = {cls.model_fields["preset"].default, *cls.PRESETS}
        if values["preset"] not in known:
            raise ValueError(f"preset is {values['preset']}; choose one of {', '.join(sorted(known))}")
        return {**cls._preset(values["preset"]), **values}

    @classmethod
    def _preset(cls, name: str) -> dict[str, Any]:
        return {key: value for key, value in cls.PRESETS.get(name, {}).items() if key not in ("train_reg", "train_seg")}

    def preset_training(self, section: str) -> dict[str, Any]:
        """The preset's values of `train_reg` or `train_seg`."""
        return self.PRESETS.get(self.preset, {}).get(section, {})

    @classmethod
    def of_later_rounds(cls) -> set[str]:
        """Names of the settings that no stage reads in round 0."""
        return {name for name in cls.model_fields if cls._mark(name).round}

    @classmethod
    def _mark(cls, name: str) -> ReadBy:
        return next((mark for mark in cls.model_fields[name].metadata if isinstance(mark, ReadBy)), ReadBy())

    def portable(self) -> dict[str, Any]:
        """The settings without paths of this machine, JSON-able."""
        paths = {name for name, value in self if isinstance(value, Path)}
        return self.model_dump(mode="json", exclude=paths)

    def read_by(self, stage: MethodStage, round: int = 0) -> dict[str, Any]:
        """The settings that the result of a stage depends on, JSON-able."""
        left_out = set()
        for name in type(self).model_fields:
            mark = self._mark(name)
            if ORDER.index(stage) < ORDER.index(mark.first) or (round < mark.round and stage != "eval"):
                left_out.add(name)
        return self.model_dump(mode="json", exclude=left_out)


class AnswerSettings(MethodSettings):
    """Settings of methods whose segmentation network answers."""

    flat_borders: Annotated[bool, ANSWER] = Field(
        False,
        description="Where the atlases draw a border as one plane of voxels, the answer does, too; "
        "network and registration together choose the plane.",
    )
