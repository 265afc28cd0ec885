"""The number of steps that a stage takes within a time budget.

plan.json   "steps"; "step_s", the measured time of a step; "spent_s", the time spent before; "generate_s", the time
            that `generate` will take; "left_s", the time left for the stage
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stages.artifacts.manifest import UNREADABLE, Artifact


@dataclass(frozen=True)
class Plan(Artifact):
    """The artifact that `lrls run --budget` writes before a stage."""

    KIND: ClassVar[str] = "plan"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls run --budget"

    @property
    def steps(self) -> int:
        """Steps to train; raises LrlsError if the file is damaged."""
        try:
            return int(self.read_json("plan.json")["steps"])
        except UNREADABLE:
            raise self.damaged("plan.json") from None
