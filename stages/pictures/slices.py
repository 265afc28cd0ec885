"""Slices of volumes: choice of the slice, proportions, image, and contours of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from stages.parts.colors import class_color

PLANES = ("axial", "coronal", "sagittal")
FOLD = "#ff2a2a"

Spacing = Sequence[float]


def cut(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """One slice of a volume."""
    return np.take(volume, index, axis=axis)


def best_slice(label: np.ndarray | None, shape: Sequence[int], axis: int) -> int:
    """Index of the slice with the most label; of the middle slice without a label."""
    if label is None or not label.any():
        return shape[axis] // 2
    others = tuple(other for other in range(3) if other != axis)
    return int(np.count_nonzero(label, axis=others).argmax())


def box_around(mask: np.ndarray, spacing_mm: Spacing, margin_voxels: int = 12) -> tuple[slice, ...]:
    """The part of a volume that holds a mask and a margin of the finest voxels; all of it without a mask."""
    if not mask.any():
        return tuple(slice(None) for _ in range(3))
    box = []
    for axis, spacing in enumerate(spacing_mm):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = max(int(np.ceil(margin_voxels * min(spacing_mm) / spacing)), 1)
        box.append(slice(max(used[0] - margin, 0), used[-1] + 1 + margin))
    return tuple(box)


def window_of(image: np.ndarray) -> tuple[float, float]:
    """From the 0.5th to the 99.5th percentile, which become black and white."""
    low, high = (float(value) for value in np.percentile(image, (0.5, 99.5)))
    return low, high if high > low else low + 1


def plane_size(shape: Sequence[int], axis: int, spacing_mm: Spacing | None) -> float:
    """Height of a slice divided by its width, in mm."""
    down, across = _plane_spacing(axis, spacing_mm)
    rows, columns = (size for other, size in enumerate(shape) if other != axis)
    return rows * down / (columns * across)


def _plane_spacing(axis: int, spacing_mm: Spacing | None) -> list[float]:
    """Spacing down and across a slice, in mm; 1 if `spacing_mm` is None."""
    return [
        float(size) for other, size in enumerate(spacing_mm if spacing_mm is not None else (1, 1, 1)) if other != axis
    ]


def show_slice(
    axes: Axes, image: np.ndarray, axis: int, spacing_mm: Spacing | None, window: tuple[float, float] = (0, 1),
    colours: str = "gray",
) -> None:  # fmt: skip
    """Draw a slice; coronal and sagittal ones with the head at the top."""
    down, across = _plane_spacing(axis, spacing_mm)
    axes.imshow(
        np.asarray(image, dtype=np.float32),
        cmap=colours,
        vmin=window[0],
        vmax=window[1],
        aspect=down / across,
        origin="upper" if axis == 0 else "lower",
        interpolation="nearest",
    )


def draw_contours(axes: Axes, label: np.ndarray, linewidth: float = 1.1) -> None:
    """Draw outlines of the classes of a slice in their colours."""
    # Padded, so that contours are closed at the border of the slice.
    padded = np.pad(label, 1)
    down, across = (np.arange(-1, size + 1) for size in label.shape)
    limits = axes.get_xlim(), axes.get_ylim()
    for class_index in np.unique(label[label > 0]):
        mask = (padded == class_index).astype(np.float32)
        axes.contour(across, down, mask, levels=[0.5], colors=[class_color(int(class_index))], linewidths=linewidth)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def paint(axes: Axes, mask: np.ndarray, color: str, opacity: float = 0.8) -> None:
    """Colour the voxels of a mask on a slice that is shown."""
    (image, *_) = axes.images
    painted = np.zeros((*mask.shape, 4), dtype=np.float32)
    painted[mask] = [*to_rgb(color), opacity]
    axes.imshow(painted, aspect=axes.get_aspect(), origin=image.origin, interpolation="nearest")
