"""One pass over a cohort's scans: each is decoded once, checked, and brought to the grid; see `stages.data.prepare`.

The reference comes first, then the other atlases, whose labels determine where the grid lies, then all other scans.
After the first fault the pass only checks, so that the message can say how many more faults there are.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.artifacts.checked import is_sound, read_record, write_record
from stages.artifacts.cohort import Cohort, Grid
from stages.config import Config
from stages.data.alignments import region_of
from stages.data.checks import facts_of_killed, faults_among
from stages.data.facts import Looked, ScanFacts, faults_of, known_facts
from stages.data.faults import Fault, refuse
from stages.data.grid import derive_grid, held_and_shown, packed
from stages.data.lost import cut_structures, lost_structures
from stages.data.prepare import (
    Outcome,
    bring_atlas,
    bring_scan,
    check_scan,
    read_about,
    spill_atlas,
    spilled_atlas,
    spilled_reference,
)
from stages.data.subsets import grid_atlases
from stages.processes import working
from stages.progress import Progress

LEAST_MARGIN = 1  # voxels between a label and the faces of a grid that is kept
FEWER = "set preprocess.workers to fewer, or preprocess.spacing_mm to coarser voxels"
Call = tuple[Any, ...]  # a function of `stages.data.prepare` and its arguments


@dataclass
class Pass:
    """The scans of a cohort on their way to its grid.

    Args:
        looked: scans by case: those of `members`, and others that are only checked.
        members: cases of the cohort, in order.
        atlases: cases that the grid is laid around, the reference first; empty if there is a base.
        parts, beside: see `faults_among`.
        base: the cohort whose reference and grid are used; None: both are derived from the atlases.
        folder: holds scans on the grid until the cohort is written; files that exist are not made again.
    """

    config: Config
    looked: Mapping[str, Looked]
    members: Sequence[str]
    atlases: Sequence[str]
    parts: Sequence[str]
    beside: Sequence[str]
    base: Cohort | None
    folder: Path
    facts: dict[str, ScanFacts] = field(default_factory=dict)
    off_grid: list[Fault] = field(default_factory=list)
    notices: list[Fault] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)  # case by digest of the voxels
    reference_and_grid: tuple[sitk.Image, Grid] | None = None  # set once the pass is over

    def file(self, case: str) -> Path:
        """The file of a scan on the grid."""
        return self.folder / "scans" / f"{case}.npz"

    def spilled(self, case: str) -> Path:
        return self.folder / "atlases" / f"{case}.npz"

    def run(self, name: str) -> tuple[sitk.Image, Grid]:
        """Bring every member to the grid, unless that is done; return reference and grid.

        Raises:
            LrlsError: the first fault, with the number of further ones.
        """
        if self.reference_and_grid is None or not all(_is_whole(self.file(case), case) for case in self.members):
            began = time.monotonic()
            try:
                self.reference_and_grid = self._run(name)
            finally:
                self._keep_time(time.monotonic() - began)
        return self.reference_and_grid

    def took_s(self) -> float:
        """Wall time of all passes over these scans, including stopped ones."""
        return read_record(self.folder / "wall_time_s", "the time that earlier runs took") or 0.0

    def _keep_time(self, seconds: float) -> None:
        with suppress(OSError):
            write_record(self.folder / "wall_time_s", round(self.took_s() + seconds, 3))

    def _run(self, name: str) -> tuple[sitk.Image, Grid]:
        for place in (self.file(""), self.spilled("")):
            place.parent.mkdir(parents=True, exist_ok=True)
        for case, looked in self.looked.items():
            if facts := known_facts(self.config, looked):
                self.facts[case] = facts
                self.seen[facts.image.voxels] = case
        is_done = {case: self._is_done(case, self.file(case)) for case in self.members}
        checks = [case for case in self.looked if case not in self.facts and case not in is_done]
        start = sum(is_done.values())
        total = len(is_done) + len(checks)
        with working(self.config) as processes, Progress(name, total, start=start) as progress:

            def work(calls: Iterable[Call]) -> None:
                for outcome in processes.each(_call, list(calls), broken=_killed):
                    self._take(outcome)
                    if outcome.fault or outcome.case in checks or self.file(outcome.case).exists():
                        progress.advance()
                    if self._may_be_faulty(outcome) and self.faults():
                        break
                if self.faults():
                    unchecked = [looked for case, looked in self.looked.items() if case not in self.facts]
                    check_all = [(check_scan, self.config, looked) for looked in unchecked]
                    for outcome in processes.each(_call, check_all, broken=_killed):
                        self._take(outcome)
                    # Corrected scans get another folder. Alignments are kept elsewhere.
                    shutil.rmtree(self.folder, ignore_errors=True)
                    refuse(self.faults())

            check = [(check_scan, self.config, self.looked[case]) for case in checks]
            if self.base:
                reference, grid = self.base.reference(), self.base.grid
                geometry = packed(reference)
                waiting = [case for case, done in is_done.items() if not done]
                work([self._bring(case, geometry, grid) for case in waiting] + check)
                self.notices += self._lost(grid) + self._cut(grid)
                return reference, grid
            first, *_ = self.atlases
            laid_round = grid_atlases(self.config)
            spill = [] if self._is_done(first, self.spilled(first)) else [self._spill(first)]
            work(spill + check)
            reference = spilled_reference(self.spilled(first), self.config.preprocess)
            geometry = packed(reference)
            others = self._not_spilled(laid_round)
            of_first = self._grid(reference, [first]) if others else None
            work(self._spill(case, geometry, of_first) for case in others)
            grid = self._grid(reference, laid_round)
            # A scan that became an atlas was aligned for this grid, and is so again: the alignment is kept.
            work(self._spill(case, geometry, grid) for case in self._not_spilled(self.atlases))
            if list(laid_round) != list(self.atlases) and not self._holds_labels(grid):
                grid = self._grid(reference, self.atlases)
            waiting = [case for case, done in is_done.items() if not done]
            atlases = [case for case in waiting if case in self.atlases]
            work((bring_atlas, self.config, case, self.spilled(case), grid, self.file(case)) for case in atlases)
            lost = self._cut(grid, reference) or self._lost(grid, reference)
            self.notices += [notice for notice in lost if not notice.stops]
            self.off_grid += [fault for fault in lost if fault.stops]
            if self.off_grid:
                work([])
            work(self._bring(case, geometry, grid) for case in waiting if case not in atlases)
            return reference, grid

    def faults(self) -> list[Fault]:
        """All faults known so far."""
        return faults_among(self.config, self.facts, self.parts, self.beside) + self.off_grid

    def _is_done(self, case: str, file: Path) -> bool:
        return case in self.facts and all(self.looked[case].digests) and _is_whole(file, case)

    def _may_be_faulty(self, outcome: Outcome) -> bool:
        """Whether this outcome may add a fault, so that all scans known so far are worth comparing."""
        if outcome.fault or outcome.facts is None:
            return bool(outcome.fault)
        voxels = outcome.facts.image.voxels
        twin = self.seen.setdefault(voxels, outcome.case) if voxels else outcome.case
        return twin != outcome.case or bool(faults_of(self.config, outcome.facts))

    def _take(self, outcome: Outcome) -> None:
        if outcome.facts:
            self.facts[outcome.case] = outcome.facts
        if outcome.fault:
            self.off_grid.append(outcome.fault)

    def _spill(self, case: str, reference: tuple | None = None, grid: Grid | None = None) -> Call:
        return spill_atlas, self.config, self.looked[case], reference, grid, self.spilled(case)

    def _bring(self, case: str, reference: tuple, grid: Grid) -> Call:
        return bring_scan, self.config, self.looked[case], reference, grid, self.file(case)

    def _not_spilled(self, atlases: Sequence[str]) -> list[str]:
        return [case for case in atlases if not self._is_done(case, self.spilled(case))]

    def _holds_labels(self, grid: Grid) -> bool:
        """Whether the labels of all atlases lie in a grid, `LEAST_MARGIN` voxels from its faces."""
        low, high = (np.array(corner) for corner in region_of(grid))
        margin = LEAST_MARGIN * np.array(grid.spacing_mm[::-1])
        abouts = [read_about(self.spilled(case)) for case in self.atlases]
        boxes = [np.array(about["box"]) for about in abouts if "box" in about]
        return all((box[0] >= low + margin).all() and (box[1] <= high - margin).all() for box in boxes)

    def _lost(self, grid: Grid, reference: sitk.Image | None = None) -> list[Fault]:
        """What is told of structures that labelled scans lose on the grid.

        Args:
            reference: None: the grid is another cohort's, and no spacing is named.
        """
        cases = self.atlases if reference else self.members
        present = {case: label.classes for case in cases if (label := self.facts[case].label)}
        lost = {case: read_about(self.file(case))["lost"] for case in present}
        if not any(lost.values()):
            return []
        if reference is None:
            faults = lost_structures(self.config, lost, present, grid)
            return [replace(fault, severity="notice") for fault in faults]
        return lost_structures(
            self.config, lost, present, grid,
            lambda case: spilled_atlas(self.config, case, self.spilled(case)),
            lambda spacing_mm: self._grid(reference, self.atlases, spacing_mm=spacing_mm, shape=None),
        )  # fmt: skip

    def _cut(self, grid: Grid, reference: sitk.Image | None = None) -> list[Fault]:
        """What is told of structures of labelled scans that the grid cuts; arguments as of `_lost`."""
        cases = self.atlases if reference else self.members
        labelled = [case for case in cases if self.facts[case].label]
        cut = {case: dict(shares) for case in labelled if (shares := read_about(self.file(case))["cut"])}
        if reference is None:
            return cut_structures(self.config, cut, grid)
        whole = self._grid(reference, self.atlases, spacing_mm=grid.spacing_mm, shape=None) if cut else None
        return cut_structures(self.config, cut, grid, whole)

    def _grid(self, reference: sitk.Image, atlases: Sequence[str], **changed: Any) -> Grid:
        """The grid around atlases, the reference first; settings of preprocessing may be changed."""
        settings = self.config.preprocess.model_copy(update=changed)
        about = [read_about(self.spilled(case)) for case in atlases]
        box, shown = held_and_shown(settings, reference, [atlas["box"] for atlas in about if "box" in atlas])
        spacing, origin, _ = about[0]["geometry"]
        return derive_grid(settings, box, reference.GetDirection(), spacing, origin, shown)


def _is_whole(file: Path, case: str) -> bool:
    return is_sound(file, f"case {case}")


def _killed(_: Callable[..., Outcome], config: Config, scan: Looked | str, *__: Any) -> Outcome:
    """What stands in for `_call` if the process was killed."""
    if isinstance(scan, Looked):
        return Outcome(*facts_of_killed(config, scan))
    return Outcome(scan, None, Fault(scan, "the process that resampled it was killed", FEWER, "killed"))


def _call(function: Callable[..., Outcome], *arguments: Any) -> Outcome:
    return function(*arguments)
