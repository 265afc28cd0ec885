"""One table over methods: their newest scores on the same scans, with intervals and paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from stages.artifacts.scores import Scores
from stages.artifacts.store import versions
from stages.config import Config
from stages.errors import LrlsError
from stages.methods import find_method
from stages.statistics import bootstrap_interval, holm, paired_wilcoxon, summarize


@dataclass(frozen=True)
class Row:
    """A method's output; differences are of DSC to the first row, paired over scans."""

    method: str
    output: str
    dsc: dict[str, float]
    hd95_mm: float
    assd_mm: float
    missed: int
    folding_percent: float | None
    jacobian_std: float | None
    difference: float | None
    difference_interval: tuple[float, float] | None
    p_value: float | None  # Wilcoxon, Holm-corrected over the rows


def newest_scores(config: Config, method_name: str) -> Scores:
    """The newest scores of a method on the part that `eval.part` names.

    Raises:
        LrlsError: there are none.
    """
    method = find_method(method_name)
    for folder in reversed(versions(config.workspace / method.name / "scores")):
        scores = Scores.open(folder)
        if scores.manifest.identity.config["part"] == config.eval.part:
            return scores
    raise LrlsError(f"{method.name} has no scores on {config.eval.part}; run `lrls run --method {method.name}` first.")


def compare(config: Config, methods: Sequence[str]) -> list[Row]:
    """Rows for every output of every method, in the order given.

    Raises:
        LrlsError: a method has no scores, or two were scored on different scans.
    """
    by_scan: dict[tuple[str, str], pd.DataFrame] = {}
    missed: dict[tuple[str, str], int] = {}
    fields: dict[str, dict[str, float]] = {}
    for method in methods:
        scores = newest_scores(config, method)
        table = pd.read_csv(scores.folder / "scores.csv", dtype={"case": str})
        fields[method] = {k: v["mean"] for k, v in scores.summary.get("registration", {}).items()}
        for output, rows in table.groupby("output", sort=False):
            by_scan[method, str(output)] = rows.groupby("case")[["dsc", "hd95_mm", "assd_mm"]].mean()
            missed[method, str(output)] = int(rows["missed"].sum())
    first = next(iter(by_scan))
    others = [key for key in by_scan if key != first]
    for method, output in others:
        if list(by_scan[method, output].index) != list(by_scan[first].index):
            raise LrlsError(f"{first[0]} and {method} were scored on different scans; run `lrls eval` for both again.")
    tests = dict(
        zip(
            others,
            holm([paired_wilcoxon(by_scan[key]["dsc"].tolist(), by_scan[first]["dsc"].tolist()) for key in others]),
            strict=True,
        )
    )
    rows = []
    for key, scans in by_scan.items():
        method, output = key
        field = fields[method] if output == "registration" else {}
        gain = (scans["dsc"] - by_scan[first]["dsc"]).tolist()
        rows.append(
            Row(
                method=method,
                output=output,
                dsc=summarize(scans["dsc"].tolist()),
                hd95_mm=float(scans["hd95_mm"].mean()),
                assd_mm=float(scans["assd_mm"].mean()),
                missed=missed[key],
                folding_percent=100 * field["folding_fraction"] if field else None,
                jacobian_std=field["jacobian_std"] if field else None,
                difference=sum(gain) / len(gain) if key != first else None,
                difference_interval=bootstrap_interval(gain) if key != first else None,
                p_value=tests.get(key),
            )
        )
    return rows
