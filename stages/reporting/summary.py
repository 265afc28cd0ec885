"""The main results in sentences; names of methods stand in backticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.errors import plural
from stages.parts.statistics import bootstrap_interval, paired_wilcoxon
from stages.reporting.runs import Gathered, Run
from stages.reporting.scans import Reported
from stages.reporting.words import learned_from

SURE = 0.05  # p below which a difference is called significant
MOST_MISSED = 8  # that are named


def in_short(
    gathered: Gathered, scans: Sequence[Reported], by_structure: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The main results, a sentence each: "text", and the place of the scan that it is about, if any, as "scan"."""
    told: list[dict[str, Any]] = [{"text": learned_from(gathered)}]
    chief = gathered.runs[gathered.chief]
    if len(chief.table):
        told += [{"text": text} for text in (best(gathered), against_second(gathered), other_output(chief)) if text]
        known = [(scan.numbers.dsc[gathered.chief], place) for place, scan in enumerate(scans)]
        value, place = min((v, p) for v, p in known if v is not None)
        scan = scans[place]
        told.append(
            {"text": f"Worst scan: {scan.case}, mean DSC {value:.3f} by `{chief.name}`. {scan.numbers.why}",
             "scan": place}
        )  # fmt: skip
    elif known := [(v, p) for p, scan in enumerate(scans) if (v := scan.numbers.estimate[gathered.chief]) is not None]:
        value, place = min(known)
        mean = float(np.mean([v for v, _ in known]))
        estimate = f"The estimated DSC of `{chief.name}` is {mean:.3f} on average."
        told.append({"text": f"There is no truth for these scans. {estimate}"})
        told.append({"text": f"Lowest estimate: {scans[place].case}, {value:.3f}.", "scan": place})
    else:
        told.append(
            {"text": "There is no truth for these scans, and no calibration: `lrls calibrate` makes estimates."}
        )
    if row := smallest(by_structure):
        told.append({"text": on_smallest(row, gathered.runs)})
    told.append({"text": on_flags(sum(bool(scan.numbers.flags) for scan in scans), len(scans), chief.name)})
    return told


def best(gathered: Gathered) -> str:
    """The method with the highest mean DSC, and the means of the others."""
    chief = gathered.runs[gathered.chief]
    values = list(chief.by_scan().values())
    low, high = bootstrap_interval(values)
    text = f"`{chief.name}`: mean DSC {np.mean(values):.3f}"
    if len(values) > 1:
        text += f" (95 % interval {low:.3f} to {high:.3f}); scans from {min(values):.3f} to {max(values):.3f}"
    others = [run for run in gathered.runs if run is not chief]
    if not others:
        return f"{text}."
    named = ", ".join(f"`{run.name}` {_mean(run):.3f}" for run in others)
    return f"Highest mean DSC: {text}. The others: {named}."


def against_second(gathered: Gathered) -> str:
    """How the best method compares with the second best one, paired over scans; empty with one method or one scan."""
    runs = [run for run in gathered.runs if len(run.table)]
    if len(runs) < 2:
        return ""
    chief = gathered.runs[gathered.chief]
    second = max((run for run in runs if run is not chief), key=_mean)
    ours, theirs = chief.by_scan(), second.by_scan()
    shared = [case for case in ours if case in theirs]
    if len(shared) < 2:
        return ""
    pair = [ours[case] for case in shared], [theirs[case] for case in shared]
    gain = np.subtract(*pair)
    low, high = bootstrap_interval(gain)
    p = paired_wilcoxon(*pair)
    text = (
        f"`{chief.name}` against the second best, `{second.name}`: {gain.mean():+.3f} DSC (95 % interval {low:+.3f} to "
        f"{high:+.3f}), paired over {plural(len(shared), 'scan')}; Wilcoxon p = {p:.2g} for this pair alone"
    )
    few = too_few(len(shared))
    text += f". {few}" if few else ": the difference may be chance." if p >= SURE else "."
    reference = gathered.runs[0].name
    return f"{text} The tables below compare every method with `{reference}`, the first one of this report."


def too_few(number: int) -> str:
    """That no test of so few scans can be significant; empty where one can."""
    least = 2.0 ** (1 - number)  # both-sided, every difference of one sign
    if number < 2 or least < SURE:
        return ""
    return f"With {number} scans no p below {least:.2g} is possible, so nothing can be significant."


def other_output(run: Run) -> str:
    """That another output of the method alone scores higher than its answer; empty where none does."""
    means = {output: float(np.mean(list(run.by_scan(output).values()))) for output in run.outputs}
    output = max(means, key=lambda name: means[name])
    if means[output] <= means[run.main]:
        return ""
    return (
        f"Another output of `{run.name}` scores higher: its {output} alone has a mean DSC of {means[output]:.3f}, its "
        f"answer ({run.main}) {means[run.main]:.3f}."
    )


def smallest(by_structure: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    known = [row for row in by_structure if row["ml"]]
    return min(known, key=lambda row: row["ml"]) if len(known) > 1 else None


def on_smallest(row: Mapping[str, Any], runs: Sequence[Run]) -> str:
    place = row["best"]
    about = f"{row['structure']} ({row['ml']:.2g} ml)"
    if place is None:
        return f"The smallest structure is {about}."
    value = f"mean DSC {row['runs'][place]['dsc']:.3f}"
    rest = [f"`{run.name}` {row['runs'][k]['dsc']:.3f}" for k, run in enumerate(runs)
            if k != place and row["runs"][k]["dsc"] is not None]  # fmt: skip
    if not rest:
        return f"On the smallest structure, {about}: {value}."
    return f"On the smallest structure, {about}, `{runs[place].name}` is highest: {value}; {', '.join(rest)}."


def on_flags(flagged: int, scans: int, chief: str) -> str:
    if not flagged:
        return "No scan has a flag."
    if flagged == scans:
        return f"Every scan has a flag, so flags do not tell which to look at first; they are about `{chief}`."
    number = plural(flagged, "scan has a flag", "scans have flags")
    return f"{number}, about the answer of `{chief}`: look at these first."


def missed(runs: Sequence[Run]) -> list[str]:
    """Which structures of the truth answers miss, a line per method."""
    lines = []
    for run in runs:
        table = run.table
        if not len(table) or "missed" not in table:
            continue
        own = table[(table["output"] == run.main) & (table["missed"].astype(float) > 0)]
        named = [f"{structure} in {case}" for case, structure in zip(own["case"], own["structure"], strict=True)]
        if named:
            more = f" and {len(named) - MOST_MISSED} more" if len(named) > MOST_MISSED else ""
            lines.append(f"`{run.name}` misses {', '.join(named[:MOST_MISSED])}{more}.")
    return lines


def _mean(run: Run) -> float:
    return float(np.mean(list(run.by_scan().values())))
