"""Runs of methods with several values of one setting, side by side.

sweep.csv        a row per method, value and output: means, intervals over runs and scans, time
structures.csv   method, value, output, structure, dsc, dsc_low, dsc_high, hd95_mm, assd_mm, missed
scans.csv        method, value, seed, output, case, dsc, hd95_mm, assd_mm: what the other two are computed from
curve.png        DSC against the setting
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stages.artifacts.manifest import Artifact
from stages.artifacts.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = (
    "runs", "scans", "dsc", "dsc_low", "dsc_high", "dsc_std", "dsc_std_runs", "dsc_worst", "dsc_best", "hd95_mm",
    "assd_mm", "missed", "wall_time_s",
)  # fmt: skip


@dataclass(frozen=True)
class Sweep(Artifact):
    """The artifact that `lrls sweep` writes."""

    KIND: ClassVar[str] = "sweep"
    FORMAT: ClassVar[int] = 1
    MADE_WITH: ClassVar[str] = "lrls sweep"

    @property
    def table(self) -> pd.DataFrame:
        """`sweep.csv`; raises LrlsError if the file is damaged."""
        return read_table(self, "sweep.csv", texts=("method", "value", "output"), numbers=NUMBERS)
