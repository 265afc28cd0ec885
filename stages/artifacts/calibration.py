"""What a method's measures of quality say of DSC.

calibration.json   `stages.answering.quality.Calibration`
couples.csv        a row per couple it was learned from: kind and severity of damage, measures, DSC
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stages.artifacts.manifest import Artifact

if TYPE_CHECKING:
    from stages.answering.quality import Calibration


@dataclass(frozen=True)
class Calibrated(Artifact):
    """What `lrls calibrate` wrote."""

    KIND: ClassVar[str] = "calibration"
    FORMAT: ClassVar[int] = 3
    MADE_WITH: ClassVar[str] = "lrls calibrate"

    def read(self) -> Calibration:
        """Raises LrlsError if it is damaged."""
        from stages.answering.quality import Calibration

        try:
            return Calibration.model_validate_json((self.folder / "calibration.json").read_text())
        except (OSError, ValueError):  # a ValidationError is one
            raise self.damaged("calibration.json") from None
