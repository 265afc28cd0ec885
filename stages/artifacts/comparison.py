"""A comparison of methods on the same scans.

compare.csv         a row per method and output: means, intervals, paired tests, time, memory
compare.md          the same, rounded, as Markdown
structures.csv      method, output, structure, dsc, hd95_mm, assd_mm, missed
structures.png      DSC of every structure by method
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from stages.artifacts.store import Manifest, read_manifest

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison:
    """What `lrls compare` wrote."""

    KIND: ClassVar[str] = "comparison"
    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises LrlsError if the folder holds no finished artifact of this kind."""
        return cls(folder, read_manifest(folder, kind=cls.KIND))

    @property
    def table(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.folder / "compare.csv")
