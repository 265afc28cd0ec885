"""Contours of a label map on its image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.pictures.kit import INK, Row, image_grid, plain, save, structure_legend
from stages.pictures.slices import PLANES, best_slice, cut, draw_contours, plane_size, show_slice


def overlay_page(row: Row, path: Path, *, structures: Sequence[str] = ()) -> None:
    """Contours of a label map on its image, in three planes through the largest part of the structures.

    Args:
        row: `case`, `image` (intensities in [0, 1]) and `label` (D, H, W), `spacing_mm`, and optionally `note`.
        path: PNG file to write.
        structures: names for the legend.
    """
    image, label, spacing_mm = row["image"], row["label"], row["spacing_mm"]
    shapes = [max(plane_size(image.shape, axis, spacing_mm) for axis in range(3))]
    figure, (row_axes,) = image_grid(shapes, 3, width=3.0, left=0.08, titles=0.5, structures=structures)
    for axis, (axes, plane) in enumerate(zip(row_axes, PLANES, strict=True)):
        index = best_slice(label, image.shape, axis)
        show_slice(axes, cut(image, axis, index), axis, spacing_mm)
        draw_contours(axes, cut(label, axis, index))
        axes.set_anchor("N")
        note = f": {row['note']}" if row.get("note") else ""
        title = plane if axis else f"{row['case']}{note}\n{plane}"
        axes.set_title(plain(title), fontsize=8.5, color=INK, loc="left")
    structure_legend(figure, structures)
    save(figure, path)
