"""Scores of a method on held-out scans, in the scans' own space.

scores.csv          output, case, structure, dsc, hd95_mm, assd_mm, missed
registration.csv    case, atlas, folding_fraction, jacobian_std, sd_log_jacobian (on the cohort's grid)
summary.json        means, spreads, intervals, counts
rounds.csv          of a method with rounds, what the screening of pseudo-labels left: round, trusted_voxels,
                    accepted_structures, predicted_structures, labelled_scans, changed_voxels (shares; the last of the
                    structures since the round before), volume_of_atlas, and dsc where asked for
labels/             the method's label maps; labels-registration/ those of its registration, where it has both
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from stages.artifacts.manifest import Artifact


@dataclass(frozen=True)
class Scores(Artifact):
    """What `lrls eval` wrote."""

    KIND: ClassVar[str] = "scores"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls eval"

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())
