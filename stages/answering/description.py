"""What `model.json` of an exported model says, and the bounds within which it is believed.

A model may come from a stranger. What it says is checked before anything is built or allocated from it, so that a model
that can be opened can also answer.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stages.answering.quality import DECILES
from stages.artifacts.calibration import Calibration
from stages.artifacts.geometry import MOST_VOXELS, check_borders, check_geometry, check_grid
from stages.config import PreprocessSettings, Section

MOST_BYTES = 4 * 2**30  # of a file
MOST_CLASSES = 2**12
MOST_VALUES = 2**33  # voxels of the grid, times classes: the probabilities of an answer
MOST_REFERENCE_VOXELS = 2**27
MOST_WEIGHTS = 2**28  # numbers in all networks of a method
MOST_STEPS = 10_000  # of anything that is iterated for an answer
MOST_NUMBER = 10**6  # of any setting
LEAST_EDGE = 4  # voxels along an axis of the grid
LONGEST_TEXT, DEEPEST, MOST_ENTRIES = 200, 16, 100_000

Vector = tuple[float, float, float]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Value = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
Number = Annotated[int, Field(ge=0, le=2**12)]


def check_plain(values: Any) -> None:
    """Raises ValueError if JSON is deeper, longer or larger than any model's, or holds text that is not plain."""
    waiting, entries = [(values, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        entries += 1
        if depth > DEEPEST or entries > MOST_ENTRIES:
            raise ValueError("it holds more than any model")
        if isinstance(value, dict):
            waiting += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]
        elif isinstance(value, str):
            if len(value) > LONGEST_TEXT or not value.isprintable():
                raise ValueError(f"it holds a text with control characters, or of more than {LONGEST_TEXT}")
        elif isinstance(value, int | float) and not abs(value) < 2**63:
            raise ValueError("it holds a number that is too large")


class StoredGrid(Section):
    shape: tuple[int, int, int]
    spacing_mm: Vector
    origin: Vector
    direction: tuple[float, ...]

    @model_validator(mode="after")
    def _is_a_grid(self) -> StoredGrid:
        check_grid(self)
        if min(self.shape) < LEAST_EDGE:
            raise ValueError(f"the grid has fewer than {LEAST_EDGE} voxels along an axis")
        return self


class StoredBorder(Section):
    classes: tuple[int, int]
    normal: Vector


class StoredFile(Section):
    bytes: int = Field(ge=0, le=MOST_BYTES)
    sha256: str


class Description(Section):
    """The content of `model.json`."""

    kind: Literal["lrls-model"] = "lrls-model"
    format_version: Literal[1] = 1
    lrls: Text = Field(description="Version of lrls that wrote the model.")
    method: Text
    axes: Literal["alike", "own"] = Field(
        "alike", description="own: networks follow the grid's spacing per axis. Models of before do not say it."
    )
    settings: dict[str, Any] = Field(description="All settings of the method.")
    structures: list[tuple[Text, Annotated[list[Value], Field(min_length=1, max_length=MOST_CLASSES)]]] = Field(
        min_length=1, max_length=MOST_CLASSES - 1, description="Names and label values, in the order of classes."
    )
    colours: Annotated[dict[Text, Colour], Field(max_length=MOST_CLASSES)] = Field(
        default={}, description="Colours of structures; left out if none is chosen."
    )
    others: Literal["error", "background"]
    seed: int = Field(ge=0)
    precision: Literal["auto", "fp32", "bf16"]
    preprocess: PreprocessSettings
    num_atlases: Number = Field(description="Atlases that the method learned from.")
    stored_atlases: Number = Field(description="Atlases whose labels the method propagates: none or all.")
    grid: StoredGrid
    reference_spacing: Vector
    reference_origin: Vector
    reference_direction: tuple[float, ...]
    borders: Annotated[list[StoredBorder], Field(max_length=MOST_CLASSES)]
    calibration: Calibration | None
    channels: Annotated[list[Text], Field(min_length=1, max_length=64)] = Field(
        ["image"], description="Names of the images of a scan, in the order of their numbers; left out if it is one."
    )
    files: dict[Literal["weights.safetensors", "images.safetensors"], StoredFile]

    @property
    def num_classes(self) -> int:
        return len(self.structures) + 1

    @field_validator("structures")
    @classmethod
    def _tells_structures_apart(cls, structures: list[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
        names = [name for name, _ in structures]
        values = [value for _, own in structures for value in own]
        if len(set(names)) < len(names) or len(set(values)) < len(values) or 0 in values:
            raise ValueError("a name or label value is there twice, or is that of the background")
        return structures

    @field_validator("settings")
    @classmethod
    def _is_not_endless(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for name, value in settings.items():
            most = MOST_STEPS if name.endswith(("steps", "iterations", "rounds")) else MOST_NUMBER
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float) and abs(number) > most:
                    raise ValueError(f"{name} is {number:g}, at most {most} is possible in a model")
        return settings

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        check_geometry(self.reference_spacing, self.reference_origin, self.reference_direction)
        check_borders(self.borders, self.num_classes)
        if math.prod(self.grid.shape) * self.num_classes > MOST_VALUES:
            raise ValueError(f"the grid has more than {MOST_VALUES} voxels times classes")
        if self.stored_atlases not in (0, self.num_atlases):
            raise ValueError(f"{self.stored_atlases} of {self.num_atlases} atlases are stored, expected none or all")
        if self.calibration:
            _check_calibration(self.calibration, self.num_classes, len(self.channels))
        return self

    def most_image_bytes(self) -> int:
        """What images.safetensors can hold: the reference in float32, atlases and their labels in two bytes a voxel."""
        of_atlas = 2 * (len(self.channels) + 1) * math.prod(self.grid.shape)
        return 4 * MOST_REFERENCE_VOXELS + self.stored_atlases * of_atlas


def _check_calibration(calibration: Calibration, num_classes: int, channels: int) -> None:
    numbers = [
        *calibration.weights.values(), *calibration.medians.values(), *calibration.deviations.values(),
        *calibration.volumes, *(number for pair in calibration.deciles for number in pair),
        calibration.level, calibration.level_of_couples, calibration.error, calibration.most_shift,
        calibration.most_folding, calibration.volume_factor or 0.0, calibration.volume_coverage or 0.0,
    ]  # fmt: skip
    if not all(abs(number) <= MOST_VOXELS for number in numbers):
        raise ValueError("the calibration holds a number that is no measure")
    if len(calibration.volumes) != num_classes - 1 or min(calibration.volumes) < 0:
        raise ValueError("the calibration is of other structures")
    if (calibration.volume_factor or 0.0) < 0:
        raise ValueError("the calibration has a negative interval of volumes")
    if len(calibration.deciles) != channels * len(DECILES):
        found, expected = len(calibration.deciles), channels * len(DECILES)
        raise ValueError(f"the calibration has {found} deciles, expected {expected}")
    if min((*calibration.deviations.values(), *(spread for _, spread in calibration.deciles)), default=1.0) <= 0:
        raise ValueError("the calibration has a deviation that is not positive")


def check_measures(calibration: Calibration, *, network: bool, atlases: int) -> None:
    """Raises ValueError unless the calibration knows what `stages.answering.quality.measure` measures, and no more."""
    names = {"confidence", "similarity", "volume"}
    names |= {"stability"} if network else set()
    names |= {"agreement"} if atlases > (0 if network else 1) else set()
    for known in (calibration.weights, calibration.medians, calibration.deviations):
        if known.keys() != names:
            raise ValueError("the calibration is of a model with other measures")
