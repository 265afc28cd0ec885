"""Every kind of artifact, by the name in its `artifact.json`."""

from __future__ import annotations

from stages.artifacts.calibration import Calibrated
from stages.artifacts.cohort import Cohort
from stages.artifacts.comparison import Comparison
from stages.artifacts.generated import Generated
from stages.artifacts.manifest import Artifact
from stages.artifacts.next_scans import NextScans
from stages.artifacts.plan import Plan
from stages.artifacts.scores import Scores
from stages.artifacts.steps import Steps
from stages.artifacts.suggestion import Suggestion
from stages.artifacts.sweep import Sweep
from stages.artifacts.weights import Registration, Segmentation

_ALL: tuple[type[Artifact], ...] = (
    Cohort,
    Registration,
    Generated,
    Segmentation,
    Scores,
    Calibrated,
    Comparison,
    Sweep,
    Suggestion,
    NextScans,
    Plan,
    Steps,
)
KINDS: dict[str, type[Artifact]] = {kind.KIND: kind for kind in _ALL}
