"""What a run's parts cost here, in seconds, from one alignment, one registration and a few steps of each network.

Networks and registration are timed on two small grids with the ratios of the real one: what they cost there is fixed
seconds, and seconds per voxel.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from stages.answering.registering import displacements
from stages.artifacts.cohort import Cohort, Grid
from stages.artifacts.draft import Draft
from stages.config import Config
from stages.data.facts import Looked
from stages.data.grid import derive_grid, held_and_shown, packed
from stages.data.intake import first_channels
from stages.data.kept import kept_folder
from stages.data.prepare import (
    Outcome,
    bring_atlas,
    bring_scan,
    read_about,
    spill_atlas,
    spilled_atlas,
    spilled_reference,
)
from stages.device import Device
from stages.errors import LrlsError
from stages.methods import find_method, plan_of, recipe_of, training_of
from stages.methods.recipe import Generate, Recipe, Train
from stages.parts.batches.halved import factors
from stages.planning.choosing import Cost, Measured
from stages.planning.grids import SMALLER, TIMED_VOXELS, Spacing, candidates, timed_grid
from stages.planning.residual import residual_scaling
from stages.processes import Processes, number_of_workers
from stages.training.fitting import kept_bytes, noise
from stages.training.loop import Run, step_seconds

BEST = "best"  # whose parts are timed
TRIED_SCANS = 3
MEASURED_SCANS = 2  # that are registered; the second call is warm
PATIENCE_S = 5.0  # of the steps of a network


class CannotMeasure(Exception):
    """A scan that is needed for it has a fault; `preprocess` says which."""


def measure(config: Config, looked: Mapping[str, Looked], device: Device, *, networks: list[str]) -> Measured:
    """Measure; the alignment that is timed is kept in the workspace.

    Args:
        looked: the atlases and unlabelled scans.
        networks: the candidates of S.

    Raises:
        CannotMeasure: a scan has a fault.
    """
    began = time.monotonic()
    atlases, scans = config.part("atlases"), config.part("unlabeled")
    settings, structures = config.preprocess, list(config.structures)
    with tempfile.TemporaryDirectory() as folder, Processes(1) as processes:
        spilled, atlas_file, scan_file = (Path(folder) / f"{name}.npz" for name in ("spilled", "atlas", "scan"))
        spill_atlas(config, looked[atlases[0]], None, None, spilled)
        if not spilled.exists():
            raise CannotMeasure
        reference, about = spilled_reference(spilled, settings), read_about(spilled)
        box, shown = held_and_shown(settings, reference, [about["box"]] if "box" in about else [])
        spacing, origin, _ = about["geometry"]

        def derive(spacing_mm: Spacing | None) -> Grid:
            changed = {} if spacing_mm is None else {"spacing_mm": spacing_mm, "shape": None}
            wanted = settings.model_copy(update=changed)
            return derive_grid(wanted, box, reference.GetDirection(), spacing, origin, shown)

        may_change = settings.spacing_mm is None and settings.shape is None
        grids = candidates(derive, spilled_atlas(config, atlases[0], spilled), structures, may_change=may_change)
        small, smaller = (timed_grid(derive, grids[0], voxels) for voxels in (TIMED_VOXELS, TIMED_VOXELS // SMALLER))
        if bring_atlas(config, atlases[0], spilled, small, atlas_file).fault:
            raise CannotMeasure
        registers = _recipe(config, networks[0], _stand_in(config, small))
        align_s, couple, start_s, scalings = 0.0, Cost(0.0, 0.0), 0.0, []
        for turn in range(min(MEASURED_SCANS, len(scans))):
            turned = scans[turn:] + scans[:turn]
            align_s, started_s = _align_seconds(config, looked, turned, packed(reference), small, scan_file, processes)
            start_s = max(start_s, started_s)  # the second scan finds the processes started
            couple, displacement = _couple_cost(registers, atlas_file, scan_file, small, device, config)
            if displacement is not None:
                scalings.append(residual_scaling(displacement, _label_of(atlas_file), small.spacing_mm))
    with torch.random.fork_rng(devices=[]):
        step = {network: _step_cost(config, network, (smaller, small), device) for network in networks}
        step_bytes = {network: _step_bytes(config, network, small) for network in networks}
    workers, on_gpu = number_of_workers(config), device.torch.type != "cpu"
    return Measured(
        grids=tuple(grids), align_s=align_s, couple=couple, step=step, step_bytes=step_bytes,
        scans=len(scans), atlases=len(atlases), free_bytes=device.free_bytes(),
        align_workers=workers, couple_workers=1 if on_gpu else workers,
        residual_scaling=float(np.mean(scalings or [1.0])),
        start_s=start_s, way=str(device), took_s=time.monotonic() - began,
    )  # fmt: skip


def _align_seconds(
    config: Config, looked: Mapping[str, Looked], scans: list[str], reference: tuple, grid: Grid, to: Path,
    processes: Processes,
) -> tuple[float, float]:  # fmt: skip
    """Seconds that a process takes to bring a scan to the grid, and to start.

    Of the first scan whose alignment is not kept yet: one that is known takes no time.
    """
    seconds, start_s = 0.0, None
    for case in scans[:TRIED_SCANS]:
        kept, began = _kept_alignments(config), time.monotonic()
        call = (config, looked[case], reference, grid, to)
        if config.preprocess.align in ("none", "centre"):
            outcome, seconds = _timed(*call)
        else:
            outcome, seconds = next(iter(processes.each(_timed_with_ants, [call])))
        if start_s is None:
            start_s = time.monotonic() - began - seconds
        if outcome.fault or not to.exists():
            raise CannotMeasure
        if _kept_alignments(config) != kept:
            break
    return seconds, start_s or 0.0


def _timed(config: Config, looked: Looked, reference: tuple, grid: Grid, to: Path) -> tuple[Outcome, float]:
    began = time.monotonic()
    outcome = bring_scan(config, looked, reference, grid, to)
    return outcome, time.monotonic() - began


def _timed_with_ants(*arguments: Any) -> tuple[Outcome, float]:
    with suppress(ImportError):
        import ants  # noqa: F401  # takes seconds, once for a process
    return _timed(*arguments)


def _kept_alignments(config: Config) -> int:
    folder = kept_folder(config.workspace) / "alignments"
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _stand_in(config: Config, grid: Grid) -> Cohort:
    """A cohort without scans, for networks to be built from."""
    parts = {part: config.part(part) for part in ("atlases", "unlabeled")}
    _, channels = first_channels(config) or ("", 1)
    return Cohort(Path(), cast(Any, None), grid, tuple(config.structures), parts, (), channels=channels)


def _with_network(config: Config, network: str) -> Config:
    own = config.methods.get(BEST, {}) | {"segmentation_network": network, "half_resolution": 0.0}
    return config.model_copy(update={"methods": config.methods | {BEST: own}})


def _recipe(config: Config, network: str, cohort: Cohort) -> Recipe:
    return recipe_of(find_method(BEST), cohort, _with_network(config, network))


def _couple_cost(
    recipe: Recipe, atlas_file: Path, scan_file: Path, grid: Grid, device: Device, config: Config
) -> tuple[Cost, np.ndarray | None]:
    """The cost of a couple's registration, and its displacement; 0 and None: the recipe registers none.

    The smaller grid is every second voxel along the axes that `factors` halves.
    """
    steps = [step for number in range(len(recipe.rounds)) for step in recipe.steps(number)]
    if recipe.answer.registers is None or not any(isinstance(step, Generate) for step in steps):
        return Cost(0.0, 0.0), None
    pair = []
    for file in (atlas_file, scan_file):
        with np.load(file) as stored:
            pair.append(stored["image"])
    seconds, voxels, displacement = [], [], None
    for every in (factors(grid.shape, grid.spacing_mm), (1, 1, 1)):
        part = (..., *(slice(None, None, k) for k in every))
        moving, fixed = (np.ascontiguousarray(image[part]) for image in pair)
        d, h, w = (mm * k for mm, k in zip(grid.spacing_mm, every, strict=True))
        began = time.monotonic()
        _, displacement = next(
            displacements(
                recipe.answer.registers, [(moving, fixed)], ["scan"], spacing_mm=(d, h, w), device=device,
                config=config,
            )
        )  # fmt: skip
        seconds.append(time.monotonic() - began)
        voxels.append(int(np.prod(fixed.shape[-3:])))
    return line(voxels, seconds), displacement


def line(voxels: Sequence[int], seconds: Sequence[float]) -> Cost:
    """The line through a small and a large grid's seconds; all per voxel if the small one was the slower one."""
    (few, many), (short_s, long_s) = voxels, seconds
    if many == few or short_s > long_s:
        return Cost(0.0, long_s / many)
    per_voxel_s = min((long_s - short_s) / (many - few), long_s / many)
    return Cost(long_s - per_voxel_s * many, per_voxel_s)


def _label_of(atlas_file: Path) -> np.ndarray:
    with np.load(atlas_file) as stored:
        return stored["label"]


def _step_cost(config: Config, network: str, grids: Sequence[Grid], device: Device) -> Cost:
    """The cost of a training step, from steps of one couple on a smaller and a larger grid."""
    seconds = [_step_seconds(config, network, grid, device) for grid in grids]
    return line([int(np.prod(grid.shape)) for grid in grids], seconds)


def _step_seconds(config: Config, network: str, grid: Grid, device: Device) -> float:
    config, method, cohort = _with_network(config, network), find_method(BEST), _stand_in(config, grid)
    recipe = recipe_of(method, cohort, config)
    step = _learning(recipe)
    data = noise(cohort, grid.shape)
    data = replace(
        data,
        images=data.images.to(device.torch),
        labels={place: label.to(device.torch) for place, label in data.labels.items()},
    )
    settings = training_of(method, config, "train_seg").model_copy(update={"batch_size": 1})
    with tempfile.TemporaryDirectory() as folder:
        run = Run(step.phases, recipe.trained(step), data, settings, device, 0, Draft(Path(folder)))
        return step_seconds(run, warm=2, most=4, patience_s=PATIENCE_S, typical=min)


def _step_bytes(config: Config, network: str, grid: Grid) -> float:
    """Bytes that a step of one couple keeps per voxel."""
    config, method, cohort = _with_network(config, network), find_method(BEST), _stand_in(config, grid)
    recipe = plan_of(method, config, cohort)
    return max(kept_bytes(_learning(recipe), cohort, config, method, 1, 0))


def _learning(recipe: Recipe) -> Train:
    step = recipe.step("segmentation", recipe.last_round)
    if not isinstance(step, Train):
        raise LrlsError(f"{BEST} trains no segmentation network.")
    return step
