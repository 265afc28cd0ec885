"""Scores of a method on held-out scans, in the scans' own space.

scores.csv          output, case, structure, dsc, hd95_mm, assd_mm, missed
registration.csv    case, atlas, folding_fraction, jacobian_std, sd_log_jacobian (on the cohort's grid)
pairs.csv, pair-structures.csv   only with eval.registration_pairs; see `stages.answering.pairs`
summary.json        means, spreads, intervals, counts
rounds.csv          only of methods with rounds: what the screening of pseudo-labels accepted. round; shares
                    trusted_voxels, accepted_structures, predicted_structures, labelled_scans, changed_voxels (of the
                    structures' voxels, since the round before); volume_of_atlas; dsc if it was asked for
labels/             the method's label maps
labels-registration/  the label maps of its registration, if the method also has a segmentation network
warped/, volume-change/   the first atlas warped to every scan, and the Jacobian of that; `stages.artifacts.sheets`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stages.artifacts.manifest import UNREADABLE, Artifact
from stages.artifacts.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

DISTANCES = ("dsc", "hd95_mm", "assd_mm")
NUMBERS = {"dsc": ("mean", "std", "low", "high", "min", "n"), "hd95_mm": ("mean",), "assd_mm": ("mean",)}
FIELDS = ("folding_fraction", "jacobian_std", "sd_log_jacobian")


@dataclass(frozen=True)
class Scores(Artifact):
    """The artifact that `lrls eval` writes."""

    KIND: ClassVar[str] = "scores"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls eval"

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`, with everything that is printed; raises LrlsError if the file is damaged."""
        summary = self.read_json("summary.json")
        try:
            _check(summary)
        except UNREADABLE:
            raise self.damaged("summary.json") from None
        return summary

    @property
    def fields(self) -> dict[str, float]:
        """Means of the measures of displacements; empty for methods without. Raises LrlsError as `summary` does."""
        try:
            measures = self.read_json("summary.json").get("registration", {})
            return {name: float(measures[name]["mean"]) for name in measures}
        except UNREADABLE:
            raise self.damaged("summary.json") from None

    @property
    def table(self) -> pd.DataFrame:
        """`scores.csv`; raises LrlsError if the file is damaged."""
        return read_table(self, "scores.csv", texts=("output", "case", "structure"), numbers=(*DISTANCES, "missed"))


def _check(summary: dict[str, Any]) -> None:
    """Raises one of `UNREADABLE` unless everything that is printed is there, with its type."""
    texts, numbers = [summary["part"], *summary["alignment_fell_back"]], [summary["scans"]]
    for output, result in summary["outputs"].items():
        texts += [output, result["worst_scan"], *result["structures"]]
        numbers += [result[name][value] for name, values in NUMBERS.items() for value in values]
        numbers += [result["missed"], result["absent_in_both"]]
        for row in result["structures"].values():
            numbers += [row[name] for name in (*DISTANCES, "missed")]
    numbers += (
        [value["mean"] for value in (summary["registration"][name] for name in FIELDS)]
        if ("registration" in summary)
        else []
    )
    if "pairs" in summary:
        pairs = summary["pairs"]
        texts.append(pairs["moving"])
        numbers += [pairs["pairs"], *(pairs["dsc"][value] for value in NUMBERS["dsc"])]
        numbers += [pairs[name]["mean"] for name in (*DISTANCES, *FIELDS)]
    if not all(isinstance(text, str) and text.isprintable() for text in texts):
        raise TypeError
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError
