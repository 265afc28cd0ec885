"""The artifacts made for a method so far: those that a stage reads, or that answers are computed with."""

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
    """A cohort and the artifacts that were made from it.

    Args:
        artifacts: the newest artifact of each role, in the order in which they were made.
        round: of the last artifact.
    """

    cohort: Cohort
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    round: int = 0
    scores: Scores | None = None

    def and_then(self, role: Role, artifact: Artifact, round: int) -> Made:
        """A copy with one more artifact, which replaces an older one of the same role."""
        kept = {key: value for key, value in self.artifacts.items() if key != role}
        return replace(self, artifacts={**kept, role: artifact}, round=round)

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
        """The artifacts that answers are computed with, in the order in which they were made."""
        return [artifact for role, artifact in self.artifacts.items() if role != "generated"]
