"""Suggestion of the scan to label first.

suggestion.csv   a row per unlabelled scan, the most typical first; see `stages.suggest_atlas.COLUMNS`
suggestion.json  "best", "equals" (cases that these scans cannot distinguish from the best), "refused" (alignments)
suggestion.png   the average, the first, the median and the last scan, and all scores with their intervals
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stages.artifacts.manifest import UNREADABLE, Artifact
from stages.artifacts.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = (
    "rank", "score", "score_low", "score_high", "to_average", "probability_first", "rank_low", "rank_high",
    "behind_first", "behind_first_low", "behind_first_high",
)  # fmt: skip


@dataclass(frozen=True)
class Suggestion(Artifact):
    """The artifact that `lrls suggest-atlas` writes."""

    KIND: ClassVar[str] = "suggestion"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls suggest-atlas"

    @property
    def table(self) -> pd.DataFrame:
        """`suggestion.csv`; raises LrlsError if the file is damaged."""
        return read_table(self, "suggestion.csv", texts=("case",), numbers=NUMBERS)

    @property
    def verdict(self) -> dict[str, Any]:
        """`suggestion.json`; raises LrlsError if the file is damaged."""
        verdict = self.read_json("suggestion.json")
        try:
            texts = [verdict["best"], *verdict["equals"], *verdict["refused"]]
            if not all(isinstance(text, str) and text.isprintable() for text in texts):
                raise TypeError
        except UNREADABLE:
            raise self.damaged("suggestion.json") from None
        return verdict
