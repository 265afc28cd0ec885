"""Scores of label maps and displacements, and their summary. A scan's score is the mean of its structures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from stages.config import Config
from stages.parts.metrics import (
    folding_fraction,
    jacobian_determinant,
    jacobian_std,
    score_structures,
    sd_log_jacobian,
)
from stages.parts.statistics import summarize

MEASURES = ("folding_fraction", "jacobian_std", "sd_log_jacobian")


def reported_as(config: Config) -> dict[str, Any]:
    """What scores depend on where structures are scored together; scores by structure do not say it."""
    return {"report_as": config.eval.report_as} if config.eval.report_as else {}


def score(
    output: str, case: str, truth: np.ndarray, classes: np.ndarray, spacing_mm: Sequence[float], config: Config
) -> list[dict[str, Any]]:
    """A row per structure that truth or answer has, both of them class indices at the scan's own voxels."""
    names = list(config.reported())
    truth, classes = (as_reported(each, config) for each in (truth, classes))
    scores = score_structures(truth, classes, num_classes=len(names) + 1, spacing_mm=spacing_mm)
    return [
        {"output": output, "case": case, "structure": names[s.class_index - 1], "dsc": s.dice, "hd95_mm": s.hd95_mm,
         "assd_mm": s.assd_mm, "missed": int(s.missed)}
        for s in scores
    ]  # fmt: skip


def as_reported(classes: np.ndarray, config: Config) -> np.ndarray:
    """Class indices (D, H, W) as indices of `Config.reported`, background 0."""
    if not config.eval.report_as:
        return classes
    of_class = np.zeros(len(config.structures) + 1, classes.dtype)
    for number, members in enumerate(config.reported().values(), start=1):
        of_class[members] = number
    return of_class[classes]


def summarize_scores(
    table: pd.DataFrame, fields: pd.DataFrame, outputs: list[str], config: Config, num_scans: int
) -> dict[str, Any]:
    """A scan's score is the mean of its structures, a method's the mean of its scans."""
    summary: dict[str, Any] = {"part": config.eval.part, "scans": num_scans, "outputs": {}}
    for output in outputs:
        rows = table[table["output"] == output]
        by_scan = rows.groupby("case", sort=False)[["dsc", "hd95_mm", "assd_mm"]].mean()
        per_structure = {
            name: {"dsc": float(own["dsc"].mean()), "hd95_mm": float(own["hd95_mm"].mean()),
                   "assd_mm": float(own["assd_mm"].mean()), "missed": int(own["missed"].sum()), "scored": len(own)}
            for name in config.reported()
            if len(own := rows[rows["structure"] == name])
        }  # fmt: skip
        summary["outputs"][output] = {
            **{column: summarize(by_scan[column].tolist()) for column in by_scan},
            "worst_scan": str(by_scan["dsc"].idxmin()),
            "missed": int(rows["missed"].sum()),
            "absent_in_both": len(config.reported()) * num_scans - len(rows),
            "structures": per_structure,
        }
    if len(fields):
        summary["registration"] = {name: summarize(fields[name].tolist()) for name in MEASURES}
    return summary


def measures_of(field: np.ndarray) -> dict[str, float]:
    """`MEASURES` of a displacement, (3, D, H, W) in voxels."""
    jacobian = jacobian_determinant(torch.from_numpy(field)[None])
    values = (folding_fraction(jacobian), jacobian_std(jacobian), sd_log_jacobian(jacobian))
    return {name: float(value[0]) for name, value in zip(MEASURES, values, strict=True)}
