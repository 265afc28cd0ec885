"""What a method's measures of quality say of DSC.

calibration.json   `stages.answering.quality.Calibration`
couples.csv        a row per couple it was learned from: kind and severity of damage, measures, DSC
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from stages.artifacts.store import Manifest, read_manifest
from stages.errors import LrlsError

if TYPE_CHECKING:
    from stages.answering.quality import Calibration


@dataclass(frozen=True)
class Calibrated:
    """What `lrls calibrate` wrote."""

    KIND: ClassVar[str] = "calibration"
    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises LrlsError if the folder holds no finished artifact of this kind."""
        return cls(folder, read_manifest(folder, kind=cls.KIND))

    def read(self) -> Calibration:
        """Raises LrlsError if it is damaged."""
        from stages.answering.quality import Calibration

        try:
            return Calibration.model_validate_json((self.folder / "calibration.json").read_text())
        except (OSError, ValueError):  # a ValidationError is one
            name = f"{self.folder.parent.name}/{self.folder.name}"
            raise LrlsError(f"{name}: calibration.json is not readable; `lrls calibrate --force` makes it.") from None
