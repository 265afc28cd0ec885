"""A comparison of methods on the same scans.

compare.csv         a row per method and output: means, intervals, paired tests, time, memory
compare.md          the same, rounded, as Markdown
structures.csv      method, output, structure, dsc, hd95_mm, assd_mm, missed
structures.png      boxes of every structure's DSC by method
methods.png         every method's answer on one scan, beside the truth
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stages.artifacts.manifest import Artifact
from stages.artifacts.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = (
    "runs", "scans", "dsc", "dsc_low", "dsc_high", "dsc_std", "dsc_worst", "dsc_best", "hd95_mm", "assd_mm", "missed",
    "folded_percent", "jacobian_std", "sd_log_jacobian", "wall_time_s", "peak_memory_mb", "scan_s",
    "difference", "difference_low", "difference_high", "p_value",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison(Artifact):
    """The artifact that `lrls compare` writes."""

    KIND: ClassVar[str] = "comparison"
    FORMAT: ClassVar[int] = 4
    MADE_WITH: ClassVar[str] = "lrls compare"

    @property
    def table(self) -> pd.DataFrame:
        """`compare.csv`; raises LrlsError if the file is damaged."""
        return read_table(self, "compare.csv", texts=("method", "output"), numbers=NUMBERS)
