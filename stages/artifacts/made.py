"""What was made of a method so far: the artifacts that a stage reads, or that answers rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.manifest import Artifact
from stages.artifacts.scores import Scores
from stages.artifacts.weights import Registration, Segmentation

Role = Literal["registration", "generated", "segmentation"]


@dataclass(frozen=True)
class Made:
    """A cohort and what was made from it.

    Args:
        artifacts: the newest of each role, in the order in which they were made.
        round: of the last one.
    """

    cohort: Cohort
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    round: int = 0
    scores: Scores | None = None

    def and_then(self, role: Role, artifact: Artifact, round: int) -> Made:
        """With one artifact more; it takes the place of an older one of its role."""
        others = {other: each for other, each in self.artifacts.items() if other != role}
        return replace(self, artifacts={**others, role: artifact}, round=round)

    @property
    def registration(self) -> Registration | None:
        return self.artifacts.get("registration")  # type: ignore[return-value]

    @property
    def generated(self) -> Generated | None:
        return self.artifacts.get("generated")  # type: ignore[return-value]

    @property
    def segmentation(self) -> Segmentation | None:
        return self.artifacts.get("segmentation")  # type: ignore[return-value]

    @property
    def weights(self) -> list[Artifact]:
        """What answers rest on, in the order in which it was made."""
        return [artifact for role, artifact in self.artifacts.items() if role != "generated"]
