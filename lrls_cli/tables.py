"""Tables in the terminal, or as JSON documents for programs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from math import isfinite, isnan
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lrls_cli.echo import tell
from stages.errors import plural, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from stages.answering.answered import Answered
    from stages.answering.predictor import Failure
    from stages.artifacts.comparison import Comparison
    from stages.artifacts.found import Found
    from stages.artifacts.next_scans import NextScans
    from stages.artifacts.scores import Scores
    from stages.artifacts.suggestion import Suggestion
    from stages.artifacts.sweep import Sweep
    from stages.data.intake import Fault
    from stages.methods.recipe import Method
    from stages.reviewed import Review


MOST_OF_A_KIND = 20  # faults of one kind in a list


def _plain(value: object) -> str:
    """A cell or title as it stands: rich would read brackets in names as styles."""
    return escape(printable(str(value)))


def print_json(document: Mapping[str, Any]) -> None:
    """All of a command's standard output: one document. What is not a number becomes null."""
    print(json.dumps(_as_json(document), indent=1, allow_nan=False))


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, PurePath):
        return value.as_posix()
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    return None if isinstance(value, float) and not isfinite(value) else value


def plan_document(rows: Sequence[Mapping[str, str]], budget_s: float | None, total_s: float) -> dict:
    """What `print_plan` prints, and the seconds to the last weights."""
    choices = [{key: value for key, value in row.items() if key != "more"} for row in rows]
    for choice, row in zip(choices, rows, strict=True):
        choice |= {"with_twice_the_time": row["more"]} if row["more"] else {}
    return {"budget_s": budget_s, "choices": choices, "total_s": total_s}


def scores_document(method: str, scores: Scores) -> dict:
    """What `print_scores` prints."""
    manifest = scores.manifest
    return {
        "method": method, "round": manifest.identity.round, "seed": manifest.identity.seed, "folder": scores.folder,
        "device": manifest.device, "seconds_a_scan": manifest.scan_s, **scores.summary,
    }  # fmt: skip


def suggestion_document(suggestion: Suggestion) -> dict:
    """What `print_suggestion` prints, of all scans."""
    return {"folder": suggestion.folder, **suggestion.verdict, "scans": suggestion.table.to_dict("records")}


def next_scans_document(suggested: NextScans, review: Review | None) -> dict:
    """What `print_next_scans` prints, of all scans."""
    return {
        "folder": suggested.folder, **suggested.verdict, "asked_for": _asked_for(review),
        "scans": suggested.table.to_dict("records"),
    }  # fmt: skip


def comparison_document(comparison: Comparison, part: str) -> dict:
    """What `print_comparison` prints."""
    return {"folder": comparison.folder, "part": part, "rows": comparison.table.to_dict("records")}


def sweep_document(sweep: Sweep) -> dict:
    """What `print_sweep` prints."""
    about = sweep.manifest.identity.config
    return {
        "folder": sweep.folder, "setting": about["setting"], "part": about["part"],
        "rows": sweep.table.to_dict("records"),
    }  # fmt: skip


def methods_document(methods: Iterable[Method]) -> dict:
    """What `print_methods` prints."""
    return {"methods": [{"name": m.name, "summary": m.summary, "source": m.source} for m in methods]}


def history_document(found: Found, workspace: Path) -> dict:
    """What `print_history` prints; folders are in the workspace."""
    finished = [
        {
            "folder": folder.relative_to(workspace), "kind": manifest.identity.kind,
            "made_by": manifest.identity.made_by, "round": manifest.identity.round, "seed": manifest.identity.seed,
            "inputs": manifest.identity.inputs, "wall_time_s": manifest.wall_time_s, "digest": manifest.digest,
            "older_format": manifest.identity.outdated,
        }
        for folder, manifest in found.finished
    ]  # fmt: skip
    unfinished = [asdict(left) | {"folder": left.folder.relative_to(workspace)} for left in found.unfinished]
    return {"workspace": workspace, "finished": finished, "unfinished": unfinished, "unreadable": found.unreadable}


def predictions_document(out: Path, rows: Sequence[Answered], failures: Sequence[Failure]) -> dict:
    """What `predict` says of each scan; flagged scans first."""
    return {
        "folder": out,
        "scans": [
            {"case": row.case, "volumes_ml": row.volumes_ml, **asdict(row.quality)} for row in rows
        ],
        "failures": [{"case": failure.case, "reason": failure.reason} for failure in failures],
    }  # fmt: skip


def print_plan(rows: Sequence[Mapping[str, str]], budget_s: float | None) -> None:
    """A row per choice."""
    from stages.planning.table import duration

    more = any(row["more"] for row in rows)
    table = Table(title=f"plan for {duration(budget_s)}" if budget_s else "plan", title_justify="left")
    for heading in ("choice", "", "reason", "cost", *(["with twice the time"] if more else [])):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("choice", ""))
    for row in rows:
        cells = (row["choice"], row["value"], row["reason"], row["cost"], *([row["more"]] if more else []))
        table.add_row(*map(_plain, cells))
    Console(width=None if Console().is_terminal else 160).print(table)


def print_scores(method: str, scores: Scores) -> None:
    """A row per structure and output; the mean comes last."""
    summary = scores.summary
    if number := scores.manifest.identity.round:
        method = f"{method}, round {number}"
    for output, result in summary["outputs"].items():
        table = Table(
            title=f"{method}, {output}, {summary['part']}, {plural(summary['scans'], 'scan')}", title_justify="left"
        )
        for column in ("structure", "DSC", "HD95 mm", "ASSD mm", "missed"):
            table.add_column(column, justify="left" if column == "structure" else "right", no_wrap=True)
        for name, row in result["structures"].items():
            table.add_row(
                _plain(name),
                *(f"{row[k]:.4f}" if k == "dsc" else f"{row[k]:.2f}" for k in ("dsc", "hd95_mm", "assd_mm")),
                str(row["missed"]),
            )
        table.add_section()
        dsc = result["dsc"]
        table.add_row(
            "mean of scans", f"{dsc['mean']:.4f}", f"{result['hd95_mm']['mean']:.2f}",
            f"{result['assd_mm']['mean']:.2f}", str(result["missed"]), style="bold",
        )  # fmt: skip
        Console().print(table)
        if dsc["n"] > 1:
            tell(
                f"DSC {dsc['mean']:.4f} +- {dsc['std']:.4f}, 95 % interval {dsc['low']:.4f} to {dsc['high']:.4f}, "
                f"worst {dsc['min']:.4f} (case {result['worst_scan']})"
                + (f", best {dsc['max']:.4f}" if "max" in dsc else "")  # scores of earlier versions have none
            )
        if result["absent_in_both"]:
            tell(f"absent in truth and prediction, and not scored: {plural(result['absent_in_both'], 'structure')}")
    if (seconds := scores.manifest.scan_s) is not None:
        tell(f"{seconds:.3g} s a scan, from the grid to its own voxels, on {scores.manifest.device}")
    if "registration" in summary:
        field = summary["registration"]
        tell(
            f"displacements: {100 * field['folding_fraction']['mean']:.3f} % of voxels with |J| <= 0, "
            f"std(|J|) {field['jacobian_std']['mean']:.3f}, SDlogJ {field['sd_log_jacobian']['mean']:.3f}"
        )
    if "pairs" in summary:
        pairs = summary["pairs"]
        to = f"{summary['part']} scans to one another" if pairs["moving"] == "test" else "each atlas to each scan"
        dsc = pairs["dsc"]
        tell(
            f"{plural(pairs['pairs'], 'pair')}, {to}: DSC {dsc['mean']:.4f} +- {dsc['std']:.4f}, 95 % interval "
            f"{dsc['low']:.4f} to {dsc['high']:.4f}; HD95 {pairs['hd95_mm']['mean']:.2f} mm, "
            f"{100 * pairs['folding_fraction']['mean']:.3f} % of voxels with |J| <= 0, "
            f"std(|J|) {pairs['jacobian_std']['mean']:.3f}"
        )
    for case in summary["alignment_fell_back"]:
        tell(f"warning: case {case}: its alignment was refused, centres of mass were used")


def print_suggestion(suggestion: Suggestion, top: int) -> None:
    """The first rows, the last row, and a sentence on which scan to label."""
    rows = suggestion.table.to_dict("records")
    table = Table(title=f"{plural(len(rows), 'scan')}, the most typical first; 95 % intervals", title_justify="left")
    verdict = suggestion.verdict
    score = "NCC to mean" if verdict.get("by") == "average" else "NCC to others"
    headings = ("rank", "scan", score, "interval", "NCC to average", "P(first)", "ranks", "behind first")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "scan" else "right", no_wrap=True)
    for row in rows[:top] + rows[max(top, len(rows) - 1) :]:
        if row["rank"] == len(rows) > top:
            table.add_section()
        table.add_row(
            str(row["rank"]), _plain(row["case"]), f"{row['score']:.4f}",
            f"{row['score_low']:.3f} to {row['score_high']:.3f}", f"{row['to_average']:.4f}",
            f"{row['probability_first']:.2f}", f"{row['rank_low']} to {row['rank_high']}",
            "" if row["rank"] == 1
            else f"{row['behind_first']:.4f} ({row['behind_first_low']:.4f} to {row['behind_first_high']:.4f})",
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 160).print(table)
    alike = verdict["equals"]
    if not alike:
        tell(f"Label case {verdict['best']} first: it is more typical than every other scan.")
    else:
        shown = ", ".join(alike[:8]) + (f" and {len(alike) - 8} more" if len(alike) > 8 else "")
        tell(
            f"Label case {verdict['best']} first, or, as good by these scans, the best image among: {shown}. "
            "Look at the picture."
        )
    for case in verdict["refused"]:
        tell(f"warning: case {case}: its alignment was refused, centres of mass were used; look at the scan")


def print_next_scans(suggested: NextScans, top: int, review: Review | None) -> None:
    """The first rows with their reasons, and a sentence on what to do."""
    rows, verdict = suggested.table.to_dict("records"), suggested.verdict
    labelled = plural(len(verdict["labelled"]), "labelled scan")
    title = f"{plural(len(rows), 'unlabelled scan')} beside {labelled}, the most useful to label first"
    table = Table(title=title, title_justify="left")
    estimated = ["est. DSC"] if verdict["calibrated"] else []
    for heading in ("rank", "scan", "gain", *estimated, "why"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "why")
    for row in rows[:top]:
        if row["rank"] == len(verdict["chosen"]) + 1:
            table.add_section()
        estimate = [f"{row['estimated_dsc']:.2f}"] if verdict["calibrated"] else []
        table.add_row(f"{row['rank']:g}", _plain(row["case"]), f"{row['gain']:.3f}", *estimate, _plain(row["reason"]))
    Console(width=None if Console().is_terminal else 160).print(table)
    tell(f"Label next, or correct the answers of: {', '.join(verdict['chosen'])}.")
    if asked := _asked_for(review):
        tell(f"People asked in their review for: {', '.join(asked)}.")
    if not verdict["calibrated"]:
        tell("note: not calibrated, so doubtful answers are told by agreement alone; `lrls calibrate` estimates DSC")


def _asked_for(review: Review | None) -> list[str]:
    """The scans whose label people asked for."""
    return [case for case, said in review.overlay.cases.items() if said.label_next] if review else []


def print_faults(faults: Sequence[Fault]) -> None:
    """A table in a terminal, plain lines elsewhere; of each kind at most `MOST_OF_A_KIND`, then their number."""
    console, more = Console(), Counter(fault.code for fault in faults)
    table = Table("", "scan", "found", "remedy")
    shown: Counter[str] = Counter()
    for fault in faults:
        shown[fault.code] += 1
        if shown[fault.code] > MOST_OF_A_KIND:
            continue
        if console.is_terminal:
            cells = (fault.severity, fault.case or "(all)", fault.found, fault.remedy)
            table.add_row(*(_plain(text) for text in cells))
        else:
            tell(fault if fault.stops else f"note: {fault}")
    if console.is_terminal:
        console.print(table)
    for code, number in more.items():
        if number > MOST_OF_A_KIND:
            tell(f"{number - MOST_OF_A_KIND} more of the kind {code}: `lrls check --json` lists them all")


def print_comparison(comparison: Comparison, subset: str) -> None:
    """A row per method and output."""
    from stages.compare import HEADINGS, cells, title

    table = Table(title=_plain(title(subset, comparison.table)), title_justify="left")
    for heading in HEADINGS:
        named = heading == "method"  # may be long, with its settings: this column wraps
        table.add_column(
            heading, no_wrap=not named, overflow="fold", justify="left" if heading in ("method", "output") else "right"
        )
    for row in comparison.table.to_dict("records"):
        table.add_row(*map(_plain, cells(row | {"output": row["output"][:3]})))
    Console(width=None if Console().is_terminal else 180).print(table)


def print_sweep(sweep: Sweep) -> None:
    """A row per method, value and output."""
    about, rows = sweep.manifest.identity.config, sweep.table.to_dict("records")
    scans, runs = plural(int(rows[0]["scans"]), "scan"), plural(int(rows[0]["runs"]), "run")
    table = Table(
        title=_plain(f"{about['setting']}, {about['part']}, {scans}, {runs} each; intervals over runs and scans"),
        title_justify="left",
    )
    for heading in ("method", "value", "output", "DSC", "95 %", "range", "HD95 mm", "ASSD mm", "missed", "time min"):
        left = heading in ("method", "value", "output")
        table.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in rows:
        interval = "" if isnan(row["dsc_low"]) else f"{row['dsc_low']:.3f}-{row['dsc_high']:.3f}"
        cells = (
            row["method"], row["value"], row["output"], f"{row['dsc']:.4f}", interval,
            f"{row['dsc_worst']:.3f}-{row['dsc_best']:.3f}", f"{row['hd95_mm']:.2f}", f"{row['assd_mm']:.2f}",
            f"{row['missed']:g}", "" if isnan(row["wall_time_s"]) else f"{row['wall_time_s'] / 60:.1f}",
        )  # fmt: skip
        table.add_row(*map(_plain, cells))
    Console(width=None if Console().is_terminal else 160).print(table)


def print_methods(methods: Iterable[Method]) -> None:
    table = Table("method", "what it does", "source")
    for method in methods:
        table.add_row(method.name, method.summary, method.source)
    Console().print(table)


def print_info(about: Mapping[str, Mapping[str, object]]) -> None:
    """Plain lines, to be pasted."""
    for section, values in about.items():
        tell(section)
        for name, value in values.items():
            tell(f"  {name}: {value}")


def print_history(found: Found, workspace: Path) -> None:
    """A row per artifact, oldest first; then what stopped runs left, and what cannot be read."""
    entries = found.finished
    # Newest first, so that of equal digests (made again with --force) the oldest folder stays.
    places = {manifest.digest: str(folder.relative_to(workspace)) for folder, manifest in reversed(entries)}
    table = Table()
    for column in ("artifact", "made by", "from", "seed", "took", "digest"):
        table.add_column(column, overflow="fold")
    for folder, manifest in entries:
        identity = manifest.identity
        scans = [role for role in identity.inputs if role.startswith(("scan/", "truth/"))]
        made_from = [
            places.get(digest, f"{role} {digest[:8]} (not in this workspace)")
            for role, digest in identity.inputs.items()
            if role not in scans
        ]
        made_from += [plural(len(scans), "scan")] if scans else []
        made_by = f"{identity.made_by}, round {identity.round}" if identity.round else identity.made_by
        table.add_row(
            _plain(folder.relative_to(workspace)),
            _plain(f"{made_by} (older format: not read)" if identity.outdated else made_by),
            "\n".join(map(_plain, made_from)), str(identity.seed), f"{manifest.wall_time_s:.0f} s", manifest.digest[:8],
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:
        console.width = 160
    if entries or not (found.unfinished or found.unreadable):
        console.print(table if entries else _plain(f"nothing in {workspace.name} yet; start with `lrls preprocess`."))
    for left in found.unfinished:
        age = f"{left.age_s / 3600:.1f} hours" if left.age_s < 48 * 3600 else f"{left.age_s / 86400:.0f} days"
        tell(
            f"unfinished: {left.folder.relative_to(workspace)}, {left.num_bytes / 1e6:.1f} MB, {age} old; "
            "the command that was stopped resumes from it, or delete it."
        )
    for line in found.unreadable:
        tell(line)
