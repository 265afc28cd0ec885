"""Scans to label or correct next.

next.csv   a row per unlabelled scan, the suggested batch first; see `stages.suggest_next.ranking`
next.json  "chosen": the batch, "labelled": the scans that were labelled, "calibrated": whether DSC was estimated
next.png   the batch with its answers, and all scans by distance and expected error
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stages.artifacts.manifest import UNREADABLE, Artifact
from stages.artifacts.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = (
    "rank", "gain", "expected_error", "estimated_dsc", "agreement", "shape_distance", "look_distance", "stands_for",
)  # fmt: skip


@dataclass(frozen=True)
class NextScans(Artifact):
    """The artifact that `lrls suggest-next` writes."""

    KIND: ClassVar[str] = "next"
    FORMAT: ClassVar[int] = 1
    MADE_WITH: ClassVar[str] = "lrls suggest-next"

    @property
    def table(self) -> pd.DataFrame:
        """`next.csv`; raises LrlsError if the file is damaged."""
        return read_table(self, "next.csv", texts=("case", "nearest", "reason"), numbers=NUMBERS)

    @property
    def verdict(self) -> dict[str, Any]:
        """`next.json`; raises LrlsError if the file is damaged."""
        verdict = self.read_json("next.json")
        try:
            texts = [*verdict["chosen"], *verdict["labelled"]]
            if not all(isinstance(t, str) and t.isprintable() for t in texts) or not isinstance(
                verdict["calibrated"], bool
            ):
                raise TypeError
        except UNREADABLE:
            raise self.damaged("next.json") from None
        return verdict
