"""Structures of an atlas that lose every voxel on the cohort's grid, too small or too thin, or that the grid cuts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.artifacts.cohort import Grid
from stages.config import Config
from stages.data import intake
from stages.data.alignment import box_centre
from stages.data.faults import Fault, IntakeError, Severity
from stages.data.grid import Box, cut_shares, derive_grid, image_box, label_box, label_to_grid, union
from stages.data.labels import classes_of
from stages.errors import LrlsError
from stages.parts.lengths import are_thick, as_setting

FINER = 0.85  # ratio of one tried spacing to the next
MOST_NAMES = 5  # structures in a line
Spacing = tuple[float, float, float]  # mm (D, H, W)
FINEST = 0.2  # of the atlas's own finest voxel: where trying ends


@dataclass(frozen=True)
class Labelled:
    """An atlas's label map, its class indices (D, H, W), and the map of the reference's space to its own (4 x 4)."""

    case: str
    label: sitk.Image
    classes: np.ndarray
    matrix: Any

    def has_on(self, grid: Grid, index: int, num_classes: int) -> bool:
        """Whether a structure has a voxel on the grid."""
        part = _part_of(grid, label_box(self.label, self.classes == index, self.matrix, grid.direction))
        record = {"matrix": self.matrix}
        return bool((label_to_grid(self.label, self.classes, num_classes, record, part) == index).any())


def lost_structures(
    config: Config,
    lost: Mapping[str, Sequence[int]],
    present: Mapping[str, Sequence[int]],
    grid: Grid,
    labelled: Callable[[str], Labelled] | None = None,
    grid_at: Callable[[Spacing], Grid] | None = None,
) -> list[Fault]:
    """What is told of structures without a voxel on the grid: a fault where none keeps it, otherwise a notice.

    Args:
        lost: by labelled scan, the classes without a voxel on the grid.
        present: by labelled scan, the classes in its label map.
        labelled: the label map of a scan; None: no spacing is sought that keeps the structures.
        grid_at: the grid of a spacing (mm).
    """
    spacing = " x ".join(f"{mm:.3g}" for mm in grid.spacing_mm)
    faults = []
    for index, name in enumerate(config.structures, start=1):
        having = [case for case, classes in present.items() if index in classes]
        losing = [case for case in having if index in lost.get(case, ())]
        if not losing:
            continue
        remedy = "set a finer preprocess.spacing_mm"
        if labelled and grid_at:
            maps = [labelled(case) for case in losing]
            keeping = _keeping_spacing_mm(maps, index, len(config.structures) + 1, grid, grid_at)
            remedy = (
                f"set preprocess.spacing_mm to {as_setting(keeping)}, which keeps it" if keeping else "label more of it"
            )
            if config.preprocess.shape and keeping:
                remedy += ", and leave preprocess.shape out"
        of = (
            f"case {having[0]}"
            if len(having) == 1
            else f"{len(losing)} of the {len(having)} labelled scans that have it"
        )
        found = f"structure {name} has no voxel on the grid of {spacing} mm in {of}"
        if len(losing) == len(having):
            remedy += ", or take it out of structures: nothing can be learned of it"
        severity: Severity = "fault" if len(losing) == len(having) else "notice"
        faults.append(Fault("", found, remedy, "lost-structure", severity))
    return faults


def cut_structures(
    config: Config, cut: Mapping[str, Mapping[int, float]], grid: Grid, whole: Grid | None = None
) -> list[Fault]:
    """What is told of structures that leave the grid: a fault for each atlas.

    Args:
        cut: by labelled scan, the share of each structure that lies outside.
        whole: a grid of the same spacing that holds the atlases; None: the grid is another cohort's, and scans are told
            as notices.
    """
    names, faults = list(config.structures), []
    for case, shares in cut.items():
        worst = sorted(shares.items(), key=lambda pair: -pair[1])
        listed = ", ".join(f"{names[index - 1]} ({_percent(share)} lost)" for index, share in worst[:MOST_NAMES])
        more = f" and {len(worst) - MOST_NAMES} more" * (len(worst) > MOST_NAMES)
        size = " x ".join(map(str, grid.shape))
        found = f"the grid of {size} voxels of {as_setting(grid.spacing_mm)} mm cuts {listed}{more}"
        remedy, severity = "only the rest is learned from; a larger preprocess.margin_mm would hold more", "notice"
        if whole and config.preprocess.crop != "labels":
            remedy, severity = "set preprocess.crop to labels, or a larger preprocess.margin_mm", "fault"
        elif whole:
            holding = ", ".join(map(str, whole.shape))
            remedy, severity = f"set preprocess.shape to [{holding}], or leave it or preprocess.spacing_mm out", "fault"
        faults.append(Fault(case, found, remedy, "cut-structure", severity))  # type: ignore[arg-type]
    return faults


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def lost_in_check(config: Config) -> list[Fault]:
    """What `cut_structures`, or `lost_structures`, tells without an alignment: boxes' centres meet.

    With several atlases this is an estimate, and faults are told as notices.
    """
    try:
        atlases = list(_by_centres(config))
    except IntakeError:
        return []
    first, settings = atlases[0].label, config.preprocess
    if settings.crop == "labels":
        boxes = [label_box(atlas.label, atlas.classes > 0, atlas.matrix, first.GetDirection()) for atlas in atlases]
        box: Box = union(boxes)
    else:
        box = image_box(first)

    def grid_with(**changed: Any) -> Grid:
        wanted = settings.model_copy(update=changed)
        return derive_grid(wanted, box, first.GetDirection(), first.GetSpacing(), first.GetOrigin())

    grid, num_classes = grid_with(), len(config.structures) + 1
    present = {atlas.case: np.unique(atlas.classes).tolist() for atlas in atlases}
    lost = {}
    for atlas in atlases:
        small = [index for index in present[atlas.case] if index and (atlas.classes == index).sum() < _few(atlas, grid)]
        lost[atlas.case] = [index for index in small if not atlas.has_on(grid, index, num_classes)]
    by_case = {atlas.case: atlas for atlas in atlases}
    cut = {
        atlas.case: shares
        for atlas in atlases
        if (shares := cut_shares(atlas.label, atlas.classes, atlas.matrix, grid))
    }
    faults = cut_structures(config, cut, grid, grid_with(spacing_mm=grid.spacing_mm, shape=None)) or lost_structures(
        config,
        lost,
        present,
        grid,
        by_case.__getitem__,
        lambda spacing_mm: grid_with(spacing_mm=spacing_mm, shape=None),
    )
    if len(atlases) == 1:
        return faults
    return [replace(fault, severity="notice") for fault in faults]


def _by_centres(config: Config) -> Iterable[Labelled]:
    centre = None
    for case in config.part("atlases"):
        label = sitk.DICOMOrient(intake.read_label(config, case), "LPS")
        centre = box_centre(label) if centre is None else centre
        matrix = np.eye(4)
        matrix[:3, 3] = box_centre(label) - centre
        yield Labelled(case, label, classes_of(label, config, case), matrix)


def _few(atlas: Labelled, grid: Grid) -> float:
    """A structure of more voxels than this cannot be lost but by being thin; 64 of the grid's voxels."""
    return 64 * max(1.0, float(np.prod(grid.spacing_mm) / np.prod(atlas.label.GetSpacing())))


def _keeping_spacing_mm(
    atlases: Sequence[Labelled], index: int, num_classes: int, grid: Grid, grid_at: Callable[[Spacing], Grid]
) -> Spacing | None:
    """The coarsest tried spacing at which each atlas keeps a voxel of a structure; None: none does.

    It is the same on all axes; those of thick slices stay as they are, if that keeps the structure.
    """
    own = min(min(atlas.label.GetSpacing()) for atlas in atlases)
    spacing, tried = min(grid.spacing_mm), [own]
    while (spacing := spacing * FINER) > FINEST * own:
        tried.append(spacing)
    is_thick = are_thick(grid.spacing_mm)
    for kept, spacing in product((is_thick, (False,) * 3)[not any(is_thick) :], sorted(tried, reverse=True)):
        rounded = float(f"{spacing:.2g}") if spacing != own else own
        if rounded < min(grid.spacing_mm) or kept != is_thick:
            d, h, w = (mm if keep else rounded for mm, keep in zip(grid.spacing_mm, kept, strict=True))
            try:
                finer = grid_at((d, h, w))
            except LrlsError:  # too fine for the memory
                return None
            if all(atlas.has_on(finer, index, num_classes) for atlas in atlases):
                return d, h, w
    return None


def _part_of(grid: Grid, box: Box) -> Grid:
    """The part of a grid that a box lies in, and two voxels round it."""
    spacing = np.array(grid.spacing_mm[::-1])
    axes = np.array(grid.direction).reshape(3, 3)
    start = axes.T @ np.array(grid.origin)
    size = np.array(grid.shape[::-1])
    low = np.clip(np.floor((np.array(box[0]) - start) / spacing) - 2, 0, size - 1)
    high = np.clip(np.ceil((np.array(box[1]) - start) / spacing) + 2, low, size - 1)
    origin = np.array(grid.origin) + axes @ (low * spacing)
    d, h, w = (int(n) for n in (high - low + 1)[::-1])
    return Grid((d, h, w), grid.spacing_mm, tuple(origin.tolist()), grid.direction)
