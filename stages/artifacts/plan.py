"""What a run does with its time.

plan.json   "settings": those that the plan fills in where the file leaves them open, by their names for `--set`;
            "steps"; "seconds", by what they are spent on; "table": rows of "choice", "value", "reason", "cost", "more"
            (what twice the time would choose); "measured": what it was chosen from
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stages.artifacts.manifest import UNREADABLE, Artifact

COLUMNS = ("choice", "value", "reason", "cost", "more")


@dataclass(frozen=True)
class Plan(Artifact):
    """The artifact that `lrls run` writes before anything long runs, and obeys."""

    KIND: ClassVar[str] = "plan"
    FORMAT: ClassVar[int] = 3  # 1 and 2 were numbers of steps
    MADE_WITH: ClassVar[str] = "lrls plan"

    @property
    def settings(self) -> dict[str, Any]:
        """Values by setting; raises LrlsError if the file is damaged."""
        settings = self._read()["settings"]
        if not isinstance(settings, dict):
            raise self.damaged("plan.json")
        return settings

    @property
    def table(self) -> list[dict[str, str]]:
        """Rows of `COLUMNS`; raises LrlsError if the file is damaged."""
        try:
            return [{column: str(row[column]) for column in COLUMNS} for row in self._read()["table"]]
        except UNREADABLE:
            raise self.damaged("plan.json") from None

    @property
    def total_s(self) -> float:
        """Seconds that the run will take; raises LrlsError if the file is damaged."""
        try:
            return float(sum(self._read()["seconds"].values()))
        except UNREADABLE:
            raise self.damaged("plan.json") from None

    @property
    def budget_s(self) -> float | None:
        """The budget that it was made for; None: none."""
        budget = self.manifest.identity.config.get("budget_s")
        return float(budget) if isinstance(budget, int | float) else None

    @property
    def measured(self) -> dict[str, Any]:
        """What it was chosen from; raises LrlsError if the file is damaged."""
        return self._read()["measured"]

    def _read(self) -> dict[str, Any]:
        values = self.read_json("plan.json")
        if not isinstance(values, dict) or not {"settings", "table", "seconds", "measured"} <= values.keys():
            raise self.damaged("plan.json")
        return values
