"""A scan of the report: its image, label maps and numbers, on one grid and within a number of bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.answering.scoring import as_reported
from stages.artifacts.cohort import Grid
from stages.artifacts.sheets import FOLDED, read_sheet
from stages.config import Config
from stages.data.checks import examine_all
from stages.data.facts import Known, faults_of
from stages.data.faults import refuse
from stages.data.grid import to_grid
from stages.data.intake import read_label, read_voxels
from stages.data.labels import class_indices
from stages.data.own_space import as_label_image
from stages.errors import LrlsError
from stages.parts.channels import first_channel
from stages.reporting.encoding import ATTEMPTS, Layer, averaged, coarser, packed_image, packed_labels, thumbnail
from stages.reporting.runs import Gathered, Numbers, Run, low_mark, numbers_of

LEAST_SCRIPT, MOST_SCRIPT = 78_000, 400_000  # bytes of a scan's script
STEP_OF_CHANGE = 8  # grey values of a sheet of Jacobians that are shown alike
MOST_FOLDS = 20_000  # voxels that are looked at one by one
ALL_SCRIPTS = 7_800_000  # bytes of all scripts, while they are above the least


@dataclass(frozen=True)
class Reported:
    """What is written of a scan.

    Args:
        script: its volumes and rows, JSON-able.
        thumbnail: WebP.
        note: why something is missing; may be empty.
    """

    case: str
    numbers: Numbers
    script: dict[str, Any]
    thumbnail: bytes
    note: str


@dataclass(frozen=True)
class OwnLabel:
    """A label map at the scan's own voxels."""

    name: str
    image: sitk.Image  # class indices
    run: int | None  # None: the truth
    is_main: bool = True


def reported_scans(gathered: Gathered, config: Config) -> Iterator[Reported]:
    """Every scan of the report, in the order of the part."""
    run = gathered.runs[gathered.chief]
    usual = {name: float(np.median(list(own.values()))) for name in gathered.structures
             if len(run.table) and (own := run.of_structure(name))}  # fmt: skip
    low = low_mark(list(run.by_scan().values())) if len(run.table) else None
    budget = min(MOST_SCRIPT, max(LEAST_SCRIPT, ALL_SCRIPTS // max(1, len(gathered.cases))))
    attempt = 0
    for case in gathered.cases:
        labels, note = _labels(case, gathered, config)
        volumes = [_millilitres(labels, number, config) for number in range(len(gathered.runs))]
        truth = next((_ml(label, config) for label in labels if label.run is None), None)
        numbers = numbers_of(case, gathered, volumes, truth, usual, low)
        attempt, script, picture = _fitting(case, gathered, labels, budget, attempt)
        script |= {"rows": numbers.rows, "note": note}
        yield Reported(case, numbers, script, picture, note)


def _labels(case: str, gathered: Gathered, config: Config) -> tuple[list[OwnLabel], str]:
    """The truth, if it is as it was scored, and every answer, in the scan's own space; and what is missing."""
    labels, note = [], ""
    if any(len(run.table) for run in gathered.runs):
        try:
            labels.append(OwnLabel("truth", _truth(case, gathered, config), None))
        except LrlsError as error:
            note = str(error)
    for number, run in enumerate(gathered.runs):
        record = run.held_out.transform(case)
        for output in run.outputs:
            if output in run.classes:
                image = as_label_image(run.classes[output][case], record)
            else:
                stored = read_voxels(run.labels_of(output, case))
                image = sitk.GetImageFromArray(class_indices(sitk.GetArrayViewFromImage(stored), config, case))
                image.CopyInformation(stored)
            labels.append(OwnLabel(run.label(output), image, number, output == run.main))
    return labels, note


def _truth(case: str, gathered: Gathered, config: Config) -> sitk.Image:
    """The label map that was scored against, as class indices; raises LrlsError if it is not there any more."""
    facts = dict(examine_all(config, Known(config).look({case: True})))[case]
    refuse(faults_of(config, facts))
    for run in gathered.runs:
        if run.artifact and run.artifact.manifest.identity.inputs.get(f"truth/{case}") != facts.digest:
            raise LrlsError("Its files have changed since it was scored: the truth is not shown.")
    label = read_label(config, case)
    image = sitk.GetImageFromArray(class_indices(sitk.GetArrayViewFromImage(label), config, case))
    image.CopyInformation(label)
    return image


def _millilitres(labels: Sequence[OwnLabel], run: int, config: Config) -> dict[str, float]:
    return next((_ml(label, config) for label in labels if label.run == run and label.is_main), {})


def _ml(label: OwnLabel, config: Config) -> dict[str, float]:
    """Volume of each reported structure."""
    classes = as_reported(sitk.GetArrayViewFromImage(label.image), config)
    counts = np.bincount(classes.ravel(), minlength=len(config.reported()) + 1)
    voxel_ml = float(np.prod(label.image.GetSpacing())) / 1000
    return {name: float(counts[k] * voxel_ml) for k, name in enumerate(config.reported(), start=1)}


def _fitting(
    case: str, gathered: Gathered, labels: Sequence[OwnLabel], budget: int, first: int
) -> tuple[int, dict[str, Any], bytes]:
    """The finest form of a scan that fits: the place in `ATTEMPTS`, script and thumbnail."""
    run = gathered.runs[gathered.chief]
    image = (first_channel(run.held_out.image(case)).astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    picture = b""
    for place in range(first, len(ATTEMPTS)):
        times, quality = ATTEMPTS[place]
        grid = coarser(run.held_out.grid, times)
        record = run.held_out.transform(case)
        layers = [Layer(label.name, to_grid(label.image, record, grid, nearest=True)) for label in labels]
        shown = averaged(image, grid.shape)
        if not picture:
            picture = _thumbnail(shown, labels, layers, gathered.chief, grid)
        images = [{"name": "scan", "kind": "scan", "shape": grid.shape} | packed_image(shown, quality)]
        images += _registered(case, gathered, grid, quality)
        script = {
            "shape": grid.shape, "spacing": [round(s, 4) for s in grid.spacing_mm],
            "own": [round(s, 4) for s in run.held_out.grid.spacing_mm], "images": images,
            "labels": packed_labels(layers),
        }  # fmt: skip
        if len(json.dumps(script)) <= budget or place == len(ATTEMPTS) - 1:
            return place, script, picture
    raise AssertionError("the last attempt is always taken")


def _thumbnail(image: np.ndarray, labels: Sequence[OwnLabel], layers: Sequence[Layer], chief: int, grid: Grid) -> bytes:
    both = list(zip(labels, layers, strict=True))
    truth = next((layer.classes for label, layer in both if label.run is None), None)
    answer = next((layer.classes for label, layer in both if label.run == chief and label.is_main), None)
    return thumbnail(image, truth, answer, grid.spacing_mm)


def _registered(case: str, gathered: Gathered, grid: Grid, quality: int) -> list[dict[str, Any]]:
    """The warped atlas, and how its volume changes, of every run that registers and kept them."""
    images = []
    for run in gathered.runs:
        if (warped := _sheet(run, "warped", case)) is not None:
            about = {"name": f"atlas warped, {run.name}", "kind": "scan", "shape": grid.shape}
            images.append(about | packed_image(_onto(warped, run.held_out.grid, grid), max(35, quality - 10)))
        change = _sheet(run, "volume-change", case)
        if change is not None and change.min() != change.max():
            onto = coarser(grid, 1.6)
            shown = (
                _onto(change, run.held_out.grid, onto).clip(1) // STEP_OF_CHANGE * STEP_OF_CHANGE + STEP_OF_CHANGE // 2
            )
            folds = _folds(change == FOLDED, run.held_out.grid, onto)
            shown[folds] = FOLDED
            about = {"name": f"volume change, {run.name}", "kind": "change", "shape": onto.shape}
            images.append(about | {"folds": bool(folds.any())} | packed_image(shown, None))
    return images


def _sheet(run: Run, folder: str, case: str) -> np.ndarray | None:
    name = f"{folder}/{case}.png"
    if run.artifact is None or name not in run.artifact.manifest.volatile:
        return None
    return read_sheet(run.artifact.folder / name, run.held_out.grid.shape)


def _onto(volume: np.ndarray, grid: Grid, shown: Grid) -> np.ndarray:
    """A volume of one grid on another one over the same space; what lies outside is as the nearest voxel."""
    if (grid.shape, grid.origin, grid.spacing_mm) == (shown.shape, shown.origin, shown.spacing_mm):
        return volume
    image = sitk.GetImageFromArray(volume)
    image.CopyInformation(grid.as_image())
    resample = sitk.ResampleImageFilter()
    resample.SetReferenceImage(shown.as_image())
    resample.UseNearestNeighborExtrapolatorOn()
    return sitk.GetArrayFromImage(resample.Execute(image))


def _folds(folded: np.ndarray, grid: Grid, shown: Grid) -> np.ndarray:
    """The voxels of a grid in which any voxel of a finer one is folded: coarsening must not hide a fold."""
    found = np.zeros(shown.shape, bool)
    own, onto = grid.as_image(), shown.as_image()
    for place in np.argwhere(folded)[:MOST_FOLDS].tolist():
        index = onto.TransformPhysicalPointToIndex(own.TransformIndexToPhysicalPoint(place[::-1]))[::-1]
        if all(0 <= i < n for i, n in zip(index, shown.shape, strict=True)):
            found[index] = True
    return found


def flagged(scans: Sequence[Reported]) -> Mapping[str, int]:
    """How many scans have each kind of flag; what follows a colon does not count."""
    kinds: dict[str, int] = {}
    for scan in scans:
        for kind in {flag.partition(":")[0] for flag in scan.numbers.flags}:
            kinds[kind] = kinds.get(kind, 0) + 1
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
