"""A comparison of methods on the same scans.

compare.csv         a row per method and output: means, intervals, paired tests, time, memory
compare.md          the same, rounded, as Markdown
structures.csv      method, output, structure, dsc, hd95_mm, assd_mm, missed
structures.png      DSC of every structure by method
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stages.artifacts.manifest import Artifact

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison(Artifact):
    """The artifact that `lrls compare` writes."""

    KIND: ClassVar[str] = "comparison"
    FORMAT: ClassVar[int] = 3
    MADE_WITH: ClassVar[str] = "lrls compare"

    @property
    def table(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.folder / "compare.csv")
