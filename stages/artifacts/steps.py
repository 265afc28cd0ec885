"""The number of steps that a stage takes within a time budget.

steps.json   "steps"; "step_s", the measured time of a step; "spent_s", the time spent before; "generate_s", the time
             that `generate` will take; "left_s", the time left for the stage, of which measuring took some, and
             "allowed_s" is the rest
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stages.artifacts.manifest import UNREADABLE, Artifact


@dataclass(frozen=True)
class Steps(Artifact):
    """The artifact that `lrls run --budget` writes before a stage that trains."""

    KIND: ClassVar[str] = "steps"
    FORMAT: ClassVar[int] = 1
    MADE_WITH: ClassVar[str] = "lrls run --budget"

    @property
    def steps(self) -> int:
        """Steps to train; raises LrlsError if the file is damaged."""
        return int(self._number("steps"))

    @property
    def allowed_s(self) -> float:
        """Seconds that the training may take; raises LrlsError if the file is damaged."""
        return self._number("allowed_s")

    def _number(self, key: str) -> float:
        try:
            return float(self.read_json("steps.json")[key])
        except UNREADABLE:
            raise self.damaged("steps.json") from None
