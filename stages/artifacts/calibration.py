"""What a method's measures of quality say of DSC.

calibration.json   `Calibration`
couples.csv        a row per couple it was learned from: kind and severity of damage, measures, DSC
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from stages.artifacts.manifest import Artifact
from stages.config import Section


class Calibration(Section):
    """What `calibrate` found; all that `estimate` and `flags` need."""

    weights: dict[str, float] = Field(description="DSC that a measure costs by how far it falls out of the usual.")
    level: float = Field(description="DSC of a scan whose measures are the medians.")
    level_of_couples: float = Field(description="The same of undamaged couples.")
    medians: dict[str, float] = Field(description="Of each measure over unlabelled scans.")
    deviations: dict[str, float] = Field(description="Of each measure between unlabelled scans.")
    volumes: list[float] = Field(description="Median voxels of each structure on the grid.")
    deciles: list[tuple[float, float]] = Field(description="Deciles of intensity on the grid: median and spread.")
    most_shift: float = Field(description="Deciles further than this many spreads from their medians are flagged.")
    most_folding: float = Field(description="Share of folded voxels above which an answer is flagged.")
    error: float = Field(description="Mean absolute error of the estimate, each couple left out in turn.")
    couples: int
    scans: int


@dataclass(frozen=True)
class Calibrated(Artifact):
    """What `lrls calibrate` wrote."""

    KIND: ClassVar[str] = "calibration"
    FORMAT: ClassVar[int] = 3
    MADE_WITH: ClassVar[str] = "lrls calibrate"

    def read(self) -> Calibration:
        """Raises LrlsError if it is damaged."""
        try:
            return Calibration.model_validate_json((self.folder / "calibration.json").read_text())
        except (OSError, ValueError):  # a ValidationError is one
            raise self.damaged("calibration.json") from None
