"""How many steps a stage takes within a budget of time.

plan.json   "steps"; "step_s", what one took when it was measured; "spent_s" before; "generate_s", what `generate` will
            take; "left_s" for the stage
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

from stages.artifacts.manifest import Artifact


@dataclass(frozen=True)
class Plan(Artifact):
    """What `lrls run --budget` measured before a stage."""

    KIND: ClassVar[str] = "plan"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls run --budget"

    @property
    def steps(self) -> int:
        """Raises LrlsError if it is damaged."""
        try:
            return int(json.loads((self.folder / "plan.json").read_text())["steps"])
        except (OSError, ValueError, TypeError, KeyError):
            raise self.damaged("plan.json") from None
