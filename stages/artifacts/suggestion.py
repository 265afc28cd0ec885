"""Suggestion of the scan to label first.

suggestion.csv   a row per unlabelled scan, the most typical first; see `stages.suggest_atlas.COLUMNS`
suggestion.json  "best", "equals" (cases that these scans cannot distinguish from the best), "refused" (alignments)
suggestion.png   the average, the first, the median and the last scan, and all scores with their intervals
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stages.artifacts.manifest import Artifact

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Suggestion(Artifact):
    """The artifact that `lrls suggest-atlas` writes."""

    KIND: ClassVar[str] = "suggestion"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls suggest-atlas"

    @property
    def table(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.folder / "suggestion.csv", dtype={"case": str})

    @property
    def verdict(self) -> dict[str, Any]:
        return json.loads((self.folder / "suggestion.json").read_text())
