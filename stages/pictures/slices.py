"""Slices of volumes: choice of the slice, proportions, image, and contours of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from stages.parts.colors import class_color

PLANES = ("axial", "coronal", "sagittal")

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
