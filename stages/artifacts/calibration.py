"""How a method's measures of quality predict DSC.

calibration.json   `Calibration`
couples.csv        a row per couple that it was fitted to: kind and severity of damage, measures, DSC
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from stages.artifacts.manifest import Artifact
from stages.config import Section


class Calibration(Section):
    """The result of `calibrate`: all numbers that the estimate and the flags need."""

    weights: dict[str, float] = Field(description="Loss of DSC per unit that a measure falls below its usual range.")
    level: float = Field(description="DSC of a scan whose measures are the medians.")
    level_of_couples: float = Field(description="DSC of undamaged couples.")
    medians: dict[str, float] = Field(description="Median of each measure over unlabelled scans.")
    deviations: dict[str, float] = Field(description="Deviation of each measure between unlabelled scans.")
    volumes: list[float] = Field(description="Median voxels of each structure on the grid.")
    deciles: list[tuple[float, float]] = Field(
        description="Deciles of intensity on the grid, channel by channel: median and spread."
    )
    most_shift: float = Field(description="A decile more than this many spreads from its median is flagged.")
    most_folding: float = Field(description="Share of folded voxels above which an answer is flagged.")
    error: float = Field(description="Mean absolute error of the estimate, each couple left out in turn.")
    couples: int
    scans: int
    # Calibrations of earlier versions have none of these.
    annotation: float = Field(0.0, ge=0, le=1, description="Error 1 - DSC that annotations may differ by.")
    volume_factor: float | None = Field(None, description="Half of a volume's 90 % interval, in spreads of volumes.")
    volume_coverage: float | None = Field(
        None, description="Share of couples' volumes inside their intervals, each couple left out in turn."
    )


@dataclass(frozen=True)
class Calibrated(Artifact):
    """The artifact that `lrls calibrate` writes."""

    KIND: ClassVar[str] = "calibration"
    FORMAT: ClassVar[int] = 4
    MADE_WITH: ClassVar[str] = "lrls calibrate"

    def read(self) -> Calibration:
        """The calibration; raises LrlsError if the file is damaged."""
        try:
            return Calibration.model_validate(self.read_json("calibration.json"))
        except ValueError:  # a ValidationError is one
            raise self.damaged("calibration.json") from None
