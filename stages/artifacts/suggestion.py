"""Which scan to label first.

suggestion.csv   a row per unlabelled scan, the most typical first; see `stages.suggest_atlas.COLUMNS`
suggestion.json  "best", "equals" (cases that the scans at hand cannot tell from the best), "refused" (alignments)
suggestion.png   the average, the first, the median and the last scan, and all scores with their intervals
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from stages.artifacts.store import Manifest, read_manifest

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Suggestion:
    """What `lrls suggest-atlas` wrote."""

    KIND: ClassVar[str] = "suggestion"
    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises LrlsError if the folder holds no finished artifact of this kind."""
        return cls(folder, read_manifest(folder, kind=cls.KIND))

    @property
    def table(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.folder / "suggestion.csv", dtype={"case": str})

    @property
    def verdict(self) -> dict[str, Any]:
        return json.loads((self.folder / "suggestion.json").read_text())
