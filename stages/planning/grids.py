"""Grids that a plan chooses from: the derived one and coarser ones, each with what it keeps of the atlas's label."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import SimpleITK as sitk

from stages.artifacts.cohort import Grid
from stages.data.grid import to_grid
from stages.data.lost import Labelled
from stages.planning.choosing import GridOption

COARSER = 1.26  # from one grid to the next, of the finest axes: half the voxels where all axes are alike
MOST_GRIDS = 7
LEAST_VOXELS = 16**3
TIMED_VOXELS = 64_000  # of the larger grid on which costs are measured
SMALLER = 4  # times as few has the smaller one
AROUND = 3  # voxels of the label map round a structure

Spacing = tuple[float, float, float]
Deriving = Callable[[Spacing | None], Grid]
"""Spacing (D, H, W) in mm, None: as the settings say -> the grid round the structures."""


def candidates(derive: Deriving, atlas: Labelled, structures: list[str], *, may_change: bool) -> list[GridOption]:
    """The derived grid and coarser ones, until one has fewer than `LEAST_VOXELS`.

    Args:
        may_change: whether spacing and shape are open.
    """
    grids = [derive(None)]
    finest = np.array(grids[0].spacing_mm)
    while may_change and len(grids) < MOST_GRIDS:
        spacing = np.maximum(finest, finest.min() * COARSER ** len(grids))
        grid = derive(_rounded(spacing))
        if np.prod(grid.shape) < LEAST_VOXELS or grid.shape == grids[-1].shape:
            break
        grids.append(grid)
    return [_option(grid, atlas, structures, is_choice=len(grids) > 1) for grid in grids]


def timed_grid(derive: Deriving, first: GridOption, voxels: int) -> Grid:
    """A grid that costs are measured on: at most so many voxels, with the first one's ratios of the axes."""
    spacing, factor, most = np.array(first.spacing_mm), 1.0, max(voxels, LEAST_VOXELS)
    while np.prod((grid := derive(_rounded(spacing * factor))).shape) > most:
        factor *= 1.1
    return grid


def _rounded(spacing: np.ndarray) -> Spacing:
    d, h, w = (float(f"{mm:.3g}") for mm in spacing)
    return d, h, w


def _option(grid: Grid, atlas: Labelled, structures: list[str], *, is_choice: bool) -> GridOption:
    if not is_choice:
        return GridOption(grid.spacing_mm, grid.shape)
    dice, lost = [], []
    for index, name in enumerate(structures, start=1):
        kept = round_trip(atlas, index, grid)
        if kept is None:
            continue
        dice.append(kept)
        if not kept:
            lost.append(name)
    return GridOption(grid.spacing_mm, grid.shape, float(np.mean(dice or [1.0])), tuple(lost))


def round_trip(atlas: Labelled, index: int, grid: Grid) -> float | None:
    """DSC of a structure of the first atlas with itself: own voxels -> grid -> own voxels; 0: no voxel of it is left.

    Each structure stands against everything else, so that only its surroundings are looked at.

    Returns:
        In [0, 1]; None: the atlas has no such structure.
    """
    mask = atlas.classes == index
    if not mask.any():
        return None
    places = np.argwhere(mask)
    low = np.maximum(places.min(0) - AROUND, 0)[::-1].tolist()
    high = np.minimum(places.max(0) + 1 + AROUND, mask.shape)[::-1].tolist()
    own = sitk.GetImageFromArray(mask.astype(np.float32))
    own.CopyInformation(atlas.label)
    own = own[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    part = _part_of(grid, own)
    share = to_grid(own, {"matrix": np.eye(4)}, part)
    on_grid = sitk.GetImageFromArray((share > 0.5).astype(np.float32))
    on_grid.CopyInformation(part.as_image())
    back = sitk.GetArrayFromImage(sitk.Resample(on_grid, own, sitk.Transform(), sitk.sitkLinear, 0.0)) > 0.5
    truth = sitk.GetArrayViewFromImage(own) > 0.5
    return 2 * float((back & truth).sum()) / float(back.sum() + truth.sum())


def _part_of(grid: Grid, own: sitk.Image) -> Grid:
    """The part of a grid round an image."""
    whole = grid.as_image()
    ends = [(0, n - 1) for n in own.GetSize()]
    corners = np.array(
        [
            whole.TransformPhysicalPointToContinuousIndex(own.TransformIndexToPhysicalPoint(corner))
            for corner in product(*ends)
        ]
    )
    size = np.array(whole.GetSize())
    low = np.clip(np.floor(corners.min(0)) - 1, 0, size - 1).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 1, low, size - 1).astype(int)
    origin = whole.TransformIndexToPhysicalPoint(low.tolist())
    d, h, w = (int(n) for n in (high - low + 1)[::-1])
    return Grid((d, h, w), grid.spacing_mm, origin, grid.direction)
