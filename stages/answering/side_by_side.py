"""The answers of several scored runs on one scan, as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from stages.artifacts.scores import Scores
from stages.config import Config
from stages.data.checks import examine_all
from stages.data.facts import Known, faults_of
from stages.data.faults import refuse
from stages.data.intake import read_scan, read_voxels
from stages.data.labels import class_indices
from stages.errors import LrlsError


def draw_side_by_side(runs: Mapping[str, Sequence[Scores]], config: Config, path: Path) -> None:
    """Every run's answers beside the truth, on the scan whose mean DSC over all of them is the median.

    Where that scan is not there any more, or not as it was scored, the page says so.

    Args:
        runs: name -> runs with several seeds, scored on the same scans; the first seed's label maps are shown.
        path: PNG file to write.
    """
    from stages.pictures import side_by_side_page
    from stages.pictures.kit import write_note

    first = {name: of_name[0] for name, of_name in runs.items()}
    tables = {name: scores.table for name, scores in first.items()}
    case = median_scan(tables.values())
    try:
        row = _row(case, first, tables, config)
    except LrlsError as error:
        write_note(f"No answers side by side. {error}", path)
        return
    side_by_side_page(row, path, structures=list(config.structures))


def median_scan(tables: Any) -> str:
    """The scan whose mean DSC is in the middle, or just below it; structures, outputs, then tables count alike."""
    by_scan = [t.groupby(["output", "case"])["dsc"].mean().groupby("case").mean() for t in tables]
    means = pd.concat(by_scan, axis=1).mean(axis=1)
    ranked = sorted(means.index, key=lambda case: (-means[case], case))
    return str(ranked[len(ranked) // 2])


def _row(case: str, first: dict[str, Scores], tables: dict[str, pd.DataFrame], config: Config) -> dict[str, Any]:
    """A row of `pictures.side_by_side_page`, with the head at the last slices.

    Raises:
        LrlsError: the scan is faulty, or has changed since it was scored.
    """
    facts = dict(examine_all(config, Known(config).look({case: True})))[case]
    refuse(faults_of(config, facts))
    if any(scores.manifest.identity.inputs.get(f"truth/{case}") != facts.digest for scores in first.values()):
        raise LrlsError(f"case {case}: its files have changed since it was scored; run `lrls eval` again.")
    scan = read_scan(config, case, label=True)
    assert scan.label is not None

    def classes(label: sitk.Image) -> np.ndarray:
        return class_indices(sitk.GetArrayFromImage(sitk.DICOMOrient(label, "LPS")), config, case)

    answers = {}
    for name, scores in first.items():
        of_scan = tables[name][tables[name]["case"] == case]
        dice = of_scan.groupby("output", sort=False)["dsc"].mean()
        for number, output in enumerate(dice.index):
            folder = scores.folder / ("labels" if number == 0 else f"labels-{output}")
            label = classes(read_voxels(folder / f"{case}.nii.gz"))
            answers[f"{name}, {output}" if len(dice) > 1 else name] = (label, float(dice[output]))
    image = sitk.DICOMOrient(scan.image, "LPS")
    return {
        "case": case,
        "image": sitk.GetArrayFromImage(image),
        "truth": classes(scan.label),
        "spacing_mm": image.GetSpacing()[::-1],
        "answers": answers,
    }
