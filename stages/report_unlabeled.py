"""A report of answers for the unlabelled scans: there is no truth, so DSC is estimated, where a calibration exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.answering.answers import AT_ONCE, GridScan
from stages.answering.quality import assess
from stages.artifacts.cohort import Cohort
from stages.artifacts.store import history
from stages.calibrate import calibrated_model
from stages.config import Config, load_config
from stages.data.writers import volumes_ml
from stages.errors import LrlsError
from stages.planning.obeying import newest_plan, settled
from stages.progress import Progress
from stages.report import check_out, write
from stages.report_plans import obeyed_plans
from stages.reporting.runs import Gathered, Run
from stages.workflow import trained

COLUMNS = ("output", "case", "structure", "dsc", "hd95_mm", "assd_mm", "missed")
ANSWER = "segmentation"


def report_unlabeled(
    path: Path,
    overrides: list[str],
    methods: Sequence[str],
    out: Path,
    *,
    title: str | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> Path:
    """Answer the unlabelled scans and write the report.

    Args:
        path, overrides: the configuration file, and settings on top.
        methods: names of trained methods.

    Raises:
        LrlsError: there is no unlabelled scan, nothing was trained, or the folder cannot be made.
    """
    methods = list(dict.fromkeys(methods))
    config = settled(path, overrides, methods[0]).config
    check_out(config, out, force=force)
    runs, cohort = [], None
    for method in methods:
        run, cohort = _run(settled(path, overrides, method).config, method, tell)
        runs.append(run)
    assert cohort is not None
    found = {manifest.digest: (folder, manifest) for folder, manifest in history(config.workspace)}
    by_hand = load_config(path, overrides)  # plans are known by what it leaves open
    obeyed, plans = obeyed_plans(by_hand, runs, found)
    gathered = Gathered(
        part="unlabeled",
        runs=runs,
        cases=list(cohort.parts["unlabeled"]),
        structures=config.reported(),
        names=list(config.structures),
        cohort=cohort,
        comparison=None,
        plans=obeyed,
        is_planned=newest_plan(by_hand) is not None,
        found=found,
        artifacts=plans,
    )
    extra: dict[str, Any] = {
        "title": title or f"{', '.join(methods)} on unlabelled scans", "comparison": {"headings": [], "rows": []},
        "registrations": [], "against_time": "", "curves": [], "pictures": [],
    }  # fmt: skip
    return write(gathered, extra, config, out, force=force, tell=tell)


def _run(config: Config, method: str, tell: Callable[[str], None]) -> tuple[Run, Cohort]:
    """Answers of a method for the unlabelled scans of its cohort, at their own voxels, with their quality."""
    made = trained(config, method)
    cohort = made.cohort
    cases = cohort.parts.get("unlabeled", [])
    if not cases:
        raise LrlsError("data.unlabeled lists no scan to answer; list some, or leave --unlabeled out.")
    model = calibrated_model(made, config, method)
    if model.calibration is None:
        tell(f"{method} has no calibration, so DSC is not estimated; `lrls calibrate --method {method}` makes one")
    answering, template = model.answering(), model.template()
    classes, quality, folds = {}, {}, {}
    with Progress(f"answer by {method}", len(cases)) as progress:
        for start in range(0, len(cases), AT_ONCE):
            scans = [GridScan(c, cohort.image(c), cohort.transform(c)) for c in cases[start : start + AT_ONCE]]
            for scan, answer in zip(scans, answering.answers(scans), strict=True):
                found = answering.in_own_space(answer, scan.record)
                volumes = volumes_ml(found, list(cohort.structures), scan.record["spacing"])
                judged = assess(answering, scan, answer, template, volumes, model.calibration)
                classes[scan.case] = found
                quality[scan.case] = {"estimate": judged.estimated_dsc, "flags": judged.flags}
                if judged.folding_fraction is not None:
                    folds[scan.case] = judged.folding_fraction
                progress.advance()
    manifests = [artifact.manifest for artifact in made.weights] or [cohort.manifest]
    run = Run(
        name=method, method=method, table=pd.DataFrame(columns=list(COLUMNS)), artifact=None, manifests=manifests,
        held_out=cohort, outputs=[ANSWER], quality=quality, folds=folds, classes={ANSWER: classes},
    )  # fmt: skip
    return run, cohort
