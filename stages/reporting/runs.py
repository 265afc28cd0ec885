"""What is reported: scored runs, their scans, and the numbers of each scan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.artifacts.cohort import Cohort
from stages.artifacts.manifest import Artifact, Manifest
from stages.artifacts.scores import Scores

FOLDED = 0.01  # share of voxels with |J| <= 0 above which a scan is flagged
OFF = 0.3  # a structure whose volume is off by this share of the truth is flagged
SMALL = 0.1  # a volume that is off by less is right
BETTER = 0.05  # DSC by which another method must be better to be named


@dataclass(frozen=True)
class Run:
    """A method's answers for the scans of the report.

    Args:
        name: as it is shown, the row of `lrls compare`.
        table: rows as of `Scores.table`; empty where there is no truth.
        artifact: what the answers are read from; None: they were made for the report.
        held_out: scans on the grid of this run.
        outputs: the method's answer first, then what it is made of.
        quality: case -> "estimate" and "flags", without truth.
        folds: case -> share of folded voxels, where the method registers.
    """

    name: str
    method: str
    table: pd.DataFrame
    artifact: Scores | None
    manifests: Sequence[Manifest]
    held_out: Cohort
    outputs: Sequence[str]
    quality: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folds: Mapping[str, float] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    @property
    def main(self) -> str:
        return self.outputs[0]

    def by_scan(self, output: str | None = None) -> dict[str, float]:
        """Mean DSC of each scan."""
        rows = self.table[self.table["output"] == (output or self.main)]
        return {str(case): float(value) for case, value in rows.groupby("case", sort=False)["dsc"].mean().items()}

    def of_structure(self, structure: str) -> dict[str, float]:
        """DSC of a structure by scan."""
        rows = self.table[(self.table["output"] == self.main) & (self.table["structure"] == structure)]
        return dict(zip(rows["case"].astype(str), rows["dsc"].astype(float), strict=True))

    def label(self, output: str) -> str:
        """The name of an output in lists."""
        return self.name if output == self.main else f"{self.name}, {output} alone"

    def labels_of(self, output: str, case: str) -> Path:
        """Where a label map lies."""
        assert self.artifact is not None
        folder = "labels" if output == self.main else f"labels-{output}"
        return self.artifact.path(f"{folder}/{case}.nii.gz")


@dataclass(frozen=True)
class Numbers:
    """What is known of a scan: a row per structure, flags and words.

    Args:
        dsc: mean DSC by run, None where a run has no truth to compare with.
        rows: "structure", "truth_ml", and "runs": for each run "dsc", "hd95_mm", "ml".
        flags: short.
        why: one or two sentences on what is wrong, by the run that is best on average.
    """

    dsc: list[float | None]
    estimate: list[float | None]
    rows: list[dict[str, Any]]
    flags: list[str]
    why: str


@dataclass(frozen=True)
class Obeyed:
    """A plan that runs obeyed.

    Args:
        table: its rows, as of `stages.artifacts.plan`.
        names: of the runs.
        told: where what was done differs from what was planned, a sentence each.
    """

    table: Sequence[Mapping[str, str]]
    names: Sequence[str]
    told: Sequence[str]


@dataclass(frozen=True)
class Gathered:
    """Everything that a report is made of.

    Args:
        runs: in the order that the user gave; the first one is the reference of comparisons.
        cases: of the part.
        structures: as they are reported, and the class indices of each.
        plans: those that runs obeyed.
        is_planned: the workspace has a plan for these settings, obeyed or not.
        found: the workspace's finished artifacts by digest.
        pictures: title, description, and file of pictures to show.
        others: sweeps and rounds as tables; see `stages.reporting.methods`.
    """

    part: str
    runs: Sequence[Run]
    cases: Sequence[str]
    structures: Mapping[str, Sequence[int]]
    names: Sequence[str]
    cohort: Cohort
    comparison: pd.DataFrame | None
    plans: Sequence[Obeyed]
    is_planned: bool
    found: Mapping[str, tuple[Path, Manifest]]
    artifacts: Sequence[Artifact] = ()

    @property
    def chief(self) -> int:
        """The run by which scans are ordered: the highest mean DSC, or the first one."""
        means = [float(np.mean(list(run.by_scan().values()))) if len(run.table) else -math.inf for run in self.runs]
        return means.index(max(means))


def numbers_of(
    case: str,
    gathered: Gathered,
    volumes: Sequence[Mapping[str, float]],
    truth_ml: Mapping[str, float] | None,
    usual: Mapping[str, float],
    low: float | None,
) -> Numbers:
    """The numbers of a scan.

    Args:
        volumes: for each run, ml of each structure in its answer.
        truth_ml: ml of each structure in the truth, if there is one.
        usual: the chief run's median DSC of each structure.
        low: mean DSC below which a scan is far worse than the others.
    """
    runs, chief = gathered.runs, gathered.chief
    tables = [
        run.table[(run.table["output"] == run.main) & (run.table["case"] == case)].set_index("structure")
        for run in runs
    ]
    rows = []
    for name in gathered.structures:
        of_runs = []
        for table, ml in zip(tables, volumes, strict=True):
            row = table.loc[name] if name in table.index else None
            of_runs.append(
                {
                    "dsc": None if row is None else _number(row["dsc"]),
                    "hd95_mm": None if row is None else _number(row["hd95_mm"]),
                    "ml": _number(ml.get(name)),
                }
            )
        rows.append({"structure": name, "truth_ml": _number((truth_ml or {}).get(name)), "runs": of_runs})
    dsc = [_number(run.by_scan().get(case)) if len(run.table) else None for run in runs]
    estimate = [_number(run.quality.get(case, {}).get("estimate")) for run in runs]
    return Numbers(dsc, estimate, rows, _flags(case, gathered, rows, dsc, low), _why(rows, chief, usual))


def _flags(
    case: str, gathered: Gathered, rows: Sequence[Mapping[str, Any]], dsc: Sequence[float | None], low: float | None
) -> list[str]:
    run = gathered.runs[gathered.chief]
    flags = []
    own = dsc[gathered.chief]
    if own is not None and low is not None and own < low:
        flags.append("far below the others")
    for row in rows:
        of_run, truth = row["runs"][gathered.chief], row["truth_ml"]
        if truth and not of_run["ml"]:
            flags.append(f"missed: {row['structure']}")
        elif truth == 0 and of_run["ml"]:
            flags.append(f"not in truth: {row['structure']}")
    off = [
        row
        for row in rows
        if row["truth_ml"] and (ml := row["runs"][gathered.chief]["ml"]) and abs(ml / row["truth_ml"] - 1) > OFF
    ]
    if off:
        flags.append("volume off: " + ", ".join(row["structure"] for row in off))
    if own is not None:
        known = [(value, each.name) for value, each in zip(dsc, gathered.runs, strict=True) if value is not None]
        better, name = max(known)
        if better > own + BETTER:
            flags.append(f"another method is better: {name}")
    if any(each.folds.get(case, 0) > FOLDED for each in gathered.runs):
        flags.append("folding")
    if run.held_out.transform(case)["fell_back"]:
        flags.append("alignment refused")
    return flags + [flag for flag in run.quality.get(case, {}).get("flags", ()) if flag not in flags]


def _why(rows: Sequence[Mapping[str, Any]], chief: int, usual: Mapping[str, float]) -> str:
    """The structure that is furthest below its median over the scans, how far and in which way; and the lowest one."""
    scored = [row for row in rows if row["runs"][chief]["dsc"] is not None and row["structure"] in usual]
    if not scored:
        return ""
    row = min(scored, key=lambda row: row["runs"][chief]["dsc"] - usual[row["structure"]])
    lowest = min(scored, key=lambda row: row["runs"][chief]["dsc"])
    how = _how(row, chief)
    text = f"Furthest below its usual: {_dsc_of(row, chief, usual)} (the median of the scans). {how}".strip()
    if lowest is row:
        return text
    of_run, truth = lowest["runs"][chief], lowest["truth_ml"]
    has_both = truth is not None and of_run["ml"] is not None
    volume = f"; {of_run['ml']:.2g} ml, in truth {truth:.2g} ml" if has_both else ""
    return f"{text} Lowest: {_dsc_of(lowest, chief, usual)}{volume}."


def _dsc_of(row: Mapping[str, Any], chief: int, usual: Mapping[str, float]) -> str:
    return f"{row['structure']}, DSC {row['runs'][chief]['dsc']:.3f}, usually {usual[row['structure']]:.3f}"


def _how(row: Mapping[str, Any], chief: int) -> str:
    """In which way an answer differs from the truth in a structure; empty: unknown."""
    of_run, truth = row["runs"][chief], row["truth_ml"]
    if truth and not of_run["ml"]:
        return f"The answer does not have it; the truth has {truth:.2g} ml."
    if not truth or not of_run["ml"]:
        return "" if truth or truth is None else f"The answer has {of_run['ml']:.2g} ml of it, the truth has none."
    share = of_run["ml"] / truth - 1
    if abs(share) < SMALL:
        size = "Its volume is right, so it lies elsewhere or has another shape"
    else:
        size = f"The answer is {100 * abs(share):.0f} % {'larger' if share > 0 else 'smaller'} than the truth"
    hd95 = of_run["hd95_mm"]
    distance = f"; 95 % of the surfaces are within {hd95:.1f} mm of one another (HD95)" if hd95 is not None else ""
    return f"{size}{distance}."


def low_mark(values: Sequence[float]) -> float | None:
    """Mean DSC below which a scan is far below the others: 1.5 interquartile ranges below the first quartile."""
    if len(values) < 5:
        return None
    first, third = np.percentile(values, [25, 75])
    return float(first - 1.5 * (third - first))


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
