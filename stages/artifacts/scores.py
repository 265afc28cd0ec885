"""Scores of a method on held-out scans, in the scans' own space.

scores.csv          output, case, structure, dsc, hd95_mm, assd_mm, missed
registration.csv    case, atlas, folding_fraction, jacobian_std, sd_log_jacobian (on the cohort's grid)
summary.json        means, spreads, intervals, counts
rounds.csv          only of methods with rounds: what the screening of pseudo-labels accepted. round; shares
                    trusted_voxels, accepted_structures, predicted_structures, labelled_scans, changed_voxels (of the
                    structures' voxels, since the round before); volume_of_atlas; dsc if it was asked for
labels/             the method's label maps
labels-registration/  the label maps of its registration, if the method also has a segmentation network
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from stages.artifacts.manifest import Artifact


@dataclass(frozen=True)
class Scores(Artifact):
    """The artifact that `lrls eval` writes."""

    KIND: ClassVar[str] = "scores"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls eval"

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())
