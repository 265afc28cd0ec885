"""The cohort's one grid: where it lies, and images and label maps on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.artifacts.cohort import Grid
from stages.config import LEAST_EDGE, PreprocessSettings
from stages.data.alignment import affine_transform
from stages.data.faults import IntakeError, off_grid
from stages.data.slabs import slabs
from stages.errors import LrlsError
from stages.memory import available_bytes
from stages.parts.lengths import are_thick, as_setting, with_fewer_voxels

FOREGROUND = 0.1  # of intensities in [0, 1]
SCAN_BYTES = 10  # that a voxel of a scan takes while it is brought to the grid
THICK = 3.0  # times the finest spacing: beyond it, an axis keeps its own spacing, as in nnU-Net
THIN_EDGE = 10  # least voxels along an axis of thick slices: every method's networks run on them
MARGIN_VOXELS = 12  # of the first atlas's finest edge: the least
MARGIN_SHARE = 0.15  # of an edge of the structures' box, or of its mean edge: what large structures move by
SLACK_VOXELS, SLACK_SHARE = 2, 0.05  # of an axis, and of that mean edge: beyond what the first atlas shows

Box = tuple[list[float], list[float]]  # lowest and highest (x, y, z) in mm along the reference's axes


def derive_grid(
    settings: PreprocessSettings,
    box: Box,
    direction: tuple[float, ...],
    own_spacing: tuple[float, ...],
    own_origin: tuple[float, ...],
    shown: Box | None = None,
) -> Grid:
    """The grid around a box in the reference's space; derives spacing and shape if the settings leave them open.

    A derived spacing is the first atlas's finest on all axes but those that are more than `THICK` times as coarse; they
    keep their own. Where that makes too many voxels, the finest axes are coarsened until they reach the others. A
    shape alone resamples the box with its margins.

    Args:
        box: what the grid must contain, without the margin.
        direction: of the reference's axes.
        own_spacing, own_origin: of the first atlas in the reference's orientation (of a big atlas the reference is a
            coarser copy).
        shown: what the reference shows; see `margins_mm`.
    """
    below, above = margins_mm(settings, box, own_spacing, shown)
    low, high = np.array(box[0]) - below, np.array(box[1]) + above
    inside = np.subtract(box[1], box[0])
    if settings.spacing_mm is not None:
        spacing = np.broadcast_to(np.atleast_1d(settings.spacing_mm)[::-1], 3).astype(float)
    elif settings.shape is not None:
        spacing = (high - low + own_spacing) / settings.shape[::-1]  # boxes end at centres of voxels
    else:
        spacing = own_or_finest(own_spacing)
    if settings.shape is None:
        finest, derived = spacing.min(), spacing
        while True:
            size = np.maximum(_sizes(high - low, spacing), np.floor(inside / spacing + 1e-6) + 1)
            if settings.spacing_mm is not None or size.prod() <= settings.max_voxels:
                break
            finest = finest * 1.1
            spacing = np.maximum(derived, finest)
    else:
        size = np.array(settings.shape[::-1])
    _refuse_what_cannot_fit(size[::-1].astype(float), spacing[::-1], settings)
    size = size.astype(int)
    axes = np.array(direction).reshape(3, 3)
    centre = axes @ ((low + high) / 2)  # the box lives on the reference's axes
    origin = centre - axes @ ((size - 1) / 2 * spacing)
    # The grid starts on a voxel of the atlas. Half a voxel off, every voxel at a structure's surface would be a tie
    # between structure and background, and thin structures would lose a fifth of their volume. Often the box lies half
    # a voxel off; then the last digits, in which units of length differ, must not decide.
    steps = np.round(axes.T @ (origin - np.array(own_origin)) / own_spacing, 3)
    origin = np.array(own_origin) + axes @ (np.round(steps) * own_spacing)
    d, h, w = (int(n) for n in size[::-1])
    return Grid((d, h, w), tuple(spacing[::-1].tolist()), tuple(origin.tolist()), direction)


def own_or_finest(own_spacing: Sequence[float]) -> np.ndarray:
    """The finest spacing on all axes but those that are more than `THICK` times as coarse, which keep their own."""
    own = np.array(own_spacing, dtype=float)
    return np.where(own > THICK * own.min(), own, own.min())


def _sizes(extent_mm: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Voxels that hold an extent: multiples of 8, which networks halve three times; of thick slices, even numbers."""
    is_thick = np.array(are_thick(spacing.tolist()))
    multiple, least = np.where(is_thick, 2, 8), np.where(is_thick, THIN_EDGE, LEAST_EDGE)
    return np.maximum(least, np.ceil(extent_mm / spacing / multiple) * multiple)


def margins_mm(
    settings: PreprocessSettings, box: Box, own_spacing: Sequence[float], shown: Box | None
) -> tuple[np.ndarray, np.ndarray]:
    """Margins (x, y, z) below and above the box, in mm, where other people's structures lie after alignment.

    Without a set margin, `MARGIN_VOXELS`; or `MARGIN_SHARE`, where that is more and the reference shows so much. The
    slack beyond it is `SLACK_VOXELS` or `SLACK_SHARE`: another scan may show more than the reference does.

    Args:
        own_spacing: of the first atlas.
        shown: the box of what the reference shows; None: no limit.
    """
    if settings.margin_mm is not None:
        return np.full(3, settings.margin_mm), np.full(3, settings.margin_mm)
    edges = np.subtract(box[1], box[0])
    mean_edge = float(np.prod(edges) ** (1 / 3))
    wanted = MARGIN_SHARE * np.maximum(edges, mean_edge)
    slack = np.maximum(SLACK_VOXELS * np.array(own_spacing), SLACK_SHARE * mean_edge)
    least = np.maximum(MARGIN_VOXELS * min(own_spacing), slack)
    rooms = [np.subtract(box[0], shown[0]), np.subtract(shown[1], box[1])] if shown else [np.full(3, np.inf)] * 2
    below, above = (np.maximum(least, np.minimum(wanted, np.maximum(room, 0) + slack)) for room in rooms)
    return below, above


def _refuse_what_cannot_fit(size: np.ndarray, spacing_mm: np.ndarray, settings: PreprocessSettings) -> None:
    """Refuse a grid of which not even one scan fits into memory; size and spacing (D, H, W).

    Raises:
        LrlsError: names the size of the grid, and a spacing or shape that fits.
    """
    free, needed = available_bytes(), SCAN_BYTES * float(size.prod())
    if free is None or needed <= free:
        return
    if settings.shape is None:
        coarser = with_fewer_voxels(spacing_mm.tolist(), 1.01**3 * needed / free)
        remedy = f"preprocess.spacing_mm to {as_setting(coarser)} or more"
    else:
        factor = (needed / free) ** (1 / 3)
        remedy = f"preprocess.shape to [{', '.join(f'{n // factor:.0f}' for n in size)}] or less"
    raise LrlsError(
        f"a grid of {' x '.join(f'{n:.6g}' for n in size)} voxels takes {needed / 1e9:.3g} GB of memory for one scan, "
        f"{free / 1e9:.3g} GB are free; set {remedy}."
    )


def label_box(label: sitk.Image, classes: np.ndarray, matrix: Any, direction: tuple[float, ...]) -> Box:
    """The box of an atlas's structures in the reference's space.

    Args:
        classes: class indices (D, H, W) of the label map.
        matrix: 4 x 4, reference mm -> atlas mm.
        direction: of the reference's axes.
    """
    back = np.linalg.inv(matrix)
    blocks = (points for _, points in _points(label, classes > 0) if len(points))
    return union([_box(points @ back[:3, :3].T + back[:3, 3], direction) for points in blocks])


def cut_shares(label: sitk.Image, classes: np.ndarray, matrix: Any, grid: Grid) -> dict[int, float]:
    """The share of each structure's voxels that the grid cuts off.

    They lie a voxel beyond its outermost ones, or a finest voxel of the label map, by which a grid may be shifted.

    Args:
        classes: class indices (D, H, W) of the label map; those that are not cut are left out of the answer.
        matrix: 4 x 4, reference mm -> label map mm.
    """
    mask = classes > 0
    back = np.linalg.inv(matrix)
    beyond = np.maximum(1, min(label.GetSpacing()) / np.array(grid.spacing_mm[::-1]))
    number = int(classes.max()) + 1
    all_voxels, cut = np.zeros(number, np.int64), np.zeros(number, np.int64)
    for slab, own_points in _points(label, mask):
        points = own_points @ back[:3, :3].T + back[:3, 3]
        index = (points - grid.origin) @ np.array(grid.direction).reshape(3, 3) / grid.spacing_mm[::-1]
        is_outside = ((index <= -beyond) | (index >= np.array(grid.shape[::-1]) - 1 + beyond)).any(1)
        found = classes[slab][mask[slab]]
        all_voxels += np.bincount(found, minlength=number)
        cut += np.bincount(found[is_outside], minlength=number)
    return {int(found): float(cut[found] / all_voxels[found]) for found in np.flatnonzero(cut)}


def image_box(reference: sitk.Image, *, above: float = -math.inf) -> Box:
    """The box of the reference's voxels above a value, or of the whole reference if there is none."""
    voxels = sitk.GetArrayViewFromImage(reference)
    mask = voxels > above
    blocks = (points for _, points in _points(reference, mask if mask.any() else ~mask) if len(points))
    return union([_box(points, reference.GetDirection()) for points in blocks])


def held_and_shown(settings: PreprocessSettings, reference: sitk.Image, labels: Sequence[Box]) -> tuple[Box, Box]:
    """The box that a grid must hold by `preprocess.crop`, and the box of what the reference shows.

    Args:
        labels: the box of each atlas's structures.
    """
    shown = image_box(reference, above=0)  # 0 is the background of brain-extracted scans
    if settings.crop == "labels":
        return union(list(labels)), shown
    return image_box(reference, above=FOREGROUND if settings.crop == "foreground" else -math.inf), shown


def union(boxes: list[Box]) -> Box:
    low, high = np.array([box[0] for box in boxes]).min(0), np.array([box[1] for box in boxes]).max(0)
    return low.tolist(), high.tolist()


def _box(points: np.ndarray, direction: tuple[float, ...]) -> Box:
    along = points @ np.array(direction).reshape(3, 3)  # rows: projections on the reference's axes
    return along.min(0).tolist(), along.max(0).tolist()


def _points(image: sitk.Image, mask: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Positions (n, 3) in mm of a mask's voxels, slab by slab: those of a whole CT take gigabytes."""
    for slab in slabs(mask):
        index = np.add(np.argwhere(mask[slab]), (slab.start, 0, 0))[:, ::-1] * np.array(image.GetSpacing())
        yield slab, index @ np.array(image.GetDirection()).reshape(3, 3).T + np.array(image.GetOrigin())


def to_grid(image: sitk.Image, record: dict[str, Any], grid: Grid, *, nearest: bool = False) -> np.ndarray:
    """A scan on the cohort's grid, (D, H, W); 0 outside the scan. Smoothed first along axes that get much coarser."""
    interpolator = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    matrix = np.array(record["matrix"])
    if not nearest and any(variances := _smoothing(image, matrix, grid)):
        image = sitk.DiscreteGaussian(image, variances)
    transform = affine_transform(matrix)
    return sitk.GetArrayFromImage(
        sitk.Resample(image, grid.as_image(), transform, interpolator, 0.0, image.GetPixelID())
    )


def _smoothing(image: sitk.Image, matrix: np.ndarray, grid: Grid) -> list[float]:
    """Variance (mm^2) of the Gaussian along each axis of an image that spares it aliasing; 0: none is needed.

    An axis is compared with the grid's axis that lies nearest to it.

    Args:
        matrix: 4 x 4, reference mm -> image mm.
    """
    axes = np.array(image.GetDirection()).reshape(3, 3).T @ matrix[:3, :3] @ np.array(grid.direction).reshape(3, 3)
    nearest = np.abs(axes / np.linalg.norm(axes, axis=0)).argmax(1)
    pairs = [(grid.spacing_mm[::-1][axis], own) for axis, own in zip(nearest, image.GetSpacing(), strict=True)]
    return [(0.35 * mm) ** 2 if mm / own > 1.5 else 0.0 for mm, own in pairs]


def image_on_grid(normalised: sitk.Image, record: dict[str, Any], grid: Grid, case: str) -> np.ndarray:
    """A scan on the grid, as networks see it: (D, H, W) float16 in [0, 1].

    Raises:
        IntakeError: nothing of the scan lies on the grid.
    """
    voxels = to_grid(normalised, record, grid)
    if voxels.min() == voxels.max():
        raise IntakeError(off_grid(case))
    return voxels.astype(np.float16)


def label_to_grid(
    label: sitk.Image, classes: np.ndarray, num_classes: int, record: dict[str, Any], grid: Grid
) -> np.ndarray:
    """A label map on the grid, (D, H, W) class indices: the class with the largest share of each voxel."""
    result = np.zeros(grid.shape, classes.dtype)
    total = np.zeros(grid.shape, np.float32)
    shares = {}
    for index in range(1, num_classes):
        mask = sitk.GetImageFromArray((classes == index).astype(np.float32))
        mask.CopyInformation(label)
        share = to_grid(mask, record, grid)
        if share.any():
            shares[index] = share
            total += share
    best = 1 - total
    for index, share in shares.items():
        result[share > best] = index
        best = np.maximum(best, share)
    return result


def packed(image: sitk.Image) -> tuple:
    """Voxels, spacing, origin and direction: an image in the form that is sent to other processes."""
    return sitk.GetArrayFromImage(image), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def unpacked(geometry: tuple) -> sitk.Image:
    voxels, spacing, origin, direction = geometry
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image
