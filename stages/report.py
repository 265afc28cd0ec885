"""The report: everything that a group needs to look at and judge answers, as one folder that opens offline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.artifacts.cohort import Cohort
from stages.artifacts.costs import way_to
from stages.artifacts.manifest import Manifest
from stages.artifacts.placing import check_place, placed
from stages.artifacts.scores import Scores
from stages.artifacts.store import history, listed_versions
from stages.artifacts.sweep import Sweep
from stages.artifacts.tables import read_table
from stages.artifacts.weights import Registration, Segmentation
from stages.compare import HEADINGS, cells, compare, newest_scores
from stages.config import Config
from stages.errors import LrlsError, plural
from stages.methods import METHODS
from stages.planning.obeying import newest_plan
from stages.progress import Progress
from stages.report_plans import obeyed_plans
from stages.reporting import charts
from stages.reporting.folder import strange, write_report
from stages.reporting.runs import Gathered, Run
from stages.reporting.scans import reported_scans

PICTURES = {  # what is shown of an artifact's pictures: group and title
    "registration.png": ("registration", "the atlas on the best, median and worst scan"),
    "couples.png": ("generated", "generated couples"),
    "losses.png": ("training", "losses"),
}
MOST_PICTURES = 16
Found = Mapping[str, tuple[Path, Manifest]]


def report(
    config: Config,
    methods: Sequence[str],
    out: Path,
    *,
    seed: int | None = None,
    title: str | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> Path:
    """Write the report of methods that were scored on `eval.part`.

    Args:
        methods: as of `compare`, the first is the reference; none: every method with scores on the part.
        out: folder to make.
        title: of the page.
        force: replace a report that lies there.

    Raises:
        LrlsError: nothing was scored, the methods were scored on different scans, or the folder cannot be made.
    """
    check_out(config, out, force=force)
    seed = config.seed if seed is None else seed
    methods = methods or scored_methods(config, seed)
    found = {manifest.digest: (folder, manifest) for folder, manifest in history(config.workspace)}
    gathered, extra = gather(config, methods, seed, found, tell)
    extra["title"] = title or f"{', '.join(run.name for run in gathered.runs)} on {gathered.part}"
    return write(gathered, extra, config, out, force=force, tell=tell)


def write(
    gathered: Gathered,
    extra: Mapping[str, Any],
    config: Config,
    out: Path,
    *,
    force: bool,
    tell: Callable[[str], None],
) -> Path:
    """Look at every scan and write the folder; see `stages.reporting.folder.write_report`."""
    scans = []
    with Progress("report", len(gathered.cases)) as progress:
        for scan in reported_scans(gathered, config):
            scans.append(scan)
            if scan.note:
                tell(scan.note if scan.note.startswith("case ") else f"case {scan.case}: {scan.note}")
            progress.advance()
    with placed(out, force=force, strange=strange) as draft:
        write_report(draft, gathered, scans, extra)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    tell(f"{plural(len(scans), 'scan')}, {size / 1e6:.1f} MB; open index.html in a browser")
    return out


def check_out(config: Config, out: Path, *, force: bool) -> None:
    """Refuse a folder before hours of work for it; raises LrlsError."""
    check_place(out, force=force, strange=strange, kept=(config.workspace, config.data.folder))


def scored_methods(config: Config, seed: int) -> list[str]:
    """Methods with scores on the part, by name.

    Raises:
        LrlsError: there are none.
    """
    names = []
    for name in METHODS:
        for version in listed_versions(Scores, config.workspace / name / Scores.KIND):
            identity = version.manifest.identity
            if identity.config.get("part") == config.eval.part and identity.seed == seed:
                names.append(name)
                break
    if not names:
        raise LrlsError(
            f"no method has scores on {config.eval.part} with seed {seed}; run `lrls run`, or set eval.part or seed."
        )
    return names


def gather(
    config: Config, methods: Sequence[str], seed: int, found: Found, tell: Callable[[str], None]
) -> tuple[Gathered, dict[str, Any]]:
    """Everything that is reported but the scans, and the tables and charts of the methods."""
    made = {digest: manifest for digest, (_, manifest) in found.items()}
    comparison = compare(config, methods, [seed], tell=tell)
    rows = list(dict.fromkeys(" ".join(row.split()) for row in methods))
    runs = [_run(row, newest_scores(config, row, seed, made, lambda _: None), found) for row in rows]
    first = runs[0].artifact
    assert first is not None
    table = comparison.table
    obeyed, plans = obeyed_plans(config, runs, found)
    used = {digest for run in runs for m in run.manifests for digest in way_to(m, made)}
    gathered = Gathered(
        part=config.eval.part,
        runs=runs,
        cases=list(dict.fromkeys(first.table["case"].astype(str))),
        structures=config.reported(),
        names=list(config.structures),
        cohort=_opened(Cohort, first.manifest.identity.inputs["cohort"], found),
        comparison=table,
        plans=obeyed,
        is_planned=newest_plan(config) is not None,
        found=found,
        artifacts=[comparison, *plans],
    )
    main = [_row_of(table, run) for run in runs]
    minutes = [None if pd.isna(row["wall_time_s"]) else row["wall_time_s"] / 60 for row in main]
    dsc = [(row["dsc"], row["dsc_low"], row["dsc_high"]) for row in main]
    extra = {
        "comparison": _comparison(table),
        "registrations": [row for row in table.to_dict("records") if pd.notna(row["folded_percent"])],
        "against_time": charts.against_time([run.name for run in runs], minutes, dsc),
        "curves": [*_rounds(runs), *_sweeps(config)],
        "pictures": _pictures(runs, used, found),
    }
    return gathered, extra


def _run(row: str, scores: Scores, found: Found) -> Run:
    manifest, table = scores.manifest, scores.table
    folds: dict[str, float] = {}
    if "registration.csv" in manifest.files:
        fields = read_table(scores, "registration.csv", texts=("case", "atlas"), numbers=("folding_fraction",))
        folds = {str(case): float(value) for case, value in fields.groupby("case")["folding_fraction"].mean().items()}
    return Run(
        name=row,
        method=row.split()[0],
        table=table,
        artifact=scores,
        manifests=[manifest],
        held_out=_opened(Cohort, manifest.identity.inputs["held-out"], found),
        outputs=list(dict.fromkeys(table["output"])),
        folds=folds,
    )


def _opened(kind: Any, digest: str, found: Found) -> Any:
    """The artifact with a digest; raises LrlsError if it was deleted."""
    if digest not in found:
        raise LrlsError(
            f"the {kind.KIND} with digest {digest[:8]}, which the scores were made from, is gone from the workspace; "
            "run `lrls run` again."
        )
    return kind.open(found[digest][0])


def _row_of(table: pd.DataFrame, run: Run) -> dict[str, Any]:
    own = table[(table["method"] == run.name) & (table["output"] == run.main)]
    return own.to_dict("records")[0]


def _comparison(table: pd.DataFrame) -> dict[str, Any]:
    """The table of `lrls compare`, differences and tests beside DSC; columns that are empty throughout are left out."""
    rows = [dict(zip(HEADINGS, cells(row), strict=True)) for row in table.to_dict("records")]
    for row in rows:  # intervals as they stand elsewhere on the page
        row |= {name: row[name].replace("-", "–") for name in ("95 %", "range")}
        row["diff. 95 %"] = row["diff. 95 %"].replace(" ", " to ")
    first = ("method", "output", "DSC", "95 %", "diff.", "diff. 95 %", "p")
    headings = [*first, *(name for name in HEADINGS if name not in first)]
    headings = [name for name in headings if any(row[name] for row in rows)]
    return {"headings": headings, "rows": [[row[name] for name in headings] for row in rows]}


def _rounds(runs: Sequence[Run]) -> list[tuple[str, Any]]:
    """Curves of what the screening left, of runs with rounds."""
    charted = []
    for run in runs:
        if run.artifact is None or "rounds.csv" not in run.artifact.manifest.files:
            continue
        shares = ("trusted_voxels", "accepted_structures", "labelled_scans")
        table = read_table(run.artifact, "rounds.csv", texts=(), numbers=("round", *shares))
        columns = [*shares, *(["dsc"] if "dsc" in table else [])]
        series = [
            (
                name.replace("_", " "),
                [(float(at), float(y), math.nan, math.nan) for at, y in table[["round", name]].values],
            )
            for name in columns
        ]
        title = f"Rounds of {run.name}: what the screening of pseudo-labels accepted"
        charted.append((title, charts.lines(title, "round", series, up="share")))
    return charted


def _sweeps(config: Config) -> list[tuple[str, Any]]:
    """The newest sweep as curves, where its values are numbers."""
    versions = listed_versions(Sweep, config.workspace / Sweep.KIND)
    if not versions:
        return []
    table = Sweep.open(versions[-1].folder).table
    values = pd.to_numeric(table["value"], errors="coerce")
    if values.isna().any():
        return []
    series = []
    for (method, output), own in table.assign(x=values).groupby(["method", "output"], sort=False):
        several = table[table["method"] == method]["output"].nunique() > 1
        points = own.sort_values("x")[["x", "dsc", "dsc_low", "dsc_high"]].itertuples(index=False, name=None)
        series.append((f"{method}, {output}" if several else str(method), list(points)))
    setting = str(versions[-1].manifest.identity.config.get("setting", "value"))
    title = f"Sweep: DSC against {setting}"
    return [(title, charts.lines(title, setting, series))]


def _pictures(runs: Sequence[Run], used: set[str], found: Found) -> list[tuple[str, str, Path]]:
    """Pages of the artifacts on the way to the answers, at most `MOST_PICTURES`."""
    pictures = []
    artifacts = [(run.artifact.folder, run.artifact.manifest) for run in runs if run.artifact]
    artifacts += [found[digest] for digest in sorted(used) if digest in found]
    for folder, manifest in artifacts:
        kind = manifest.identity.kind
        method = str(manifest.identity.config.get("method", ""))
        for name in manifest.volatile:
            known = PICTURES.get(name.rpartition("/")[2])
            if known and not (known[0] == "training" and kind not in (Registration.KIND, Segmentation.KIND)):
                group, what = known
                pictures.append((group, f"{method} {kind}: {what}".strip(), folder / name))
    return pictures[:MOST_PICTURES]
