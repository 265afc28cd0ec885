"""Panels that show a method's training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.parts.panels import Panel
from stages.pictures.kit import INK, image_grid, name_row, plain, save, structure_legend, write_note
from stages.pictures.slices import (
    FOLD,
    Spacing,
    best_slice,
    cut,
    draw_contours,
    paint,
    plane_size,
    show_slice,
    window_of,
)


def panels_page(
    rows: Sequence[tuple[str, Sequence[Panel]]],
    path: Path,
    *,
    structures: Sequence[str] = (),
    spacing_mm: Spacing | None = None,
) -> None:
    """A method's panels, one row per scan: the axial slice with the most label in the first panel of the row.

    Errors are shown in colour, from 0 (black) to the 99.5th percentile of that panel over all rows (white). Features
    are shown from the 0.5th to the 99.5th percentile of the slice. Folds are red.

    Args:
        rows: case id and panels; the same panels in every row.
        path: PNG file to write.
        structures: names for the legend.
        spacing_mm: of all panels; isotropic by default.
    """
    if not rows:
        write_note("no scans", path)
        return
    shape = plane_size(rows[0][1][0].image.shape, 0, spacing_mm)
    columns = len(rows[0][1])
    figure, grid = image_grid([shape] * len(rows), columns, width=2.5, left=0.3, titles=0.2, structures=structures)
    largest = [
        max(float(np.percentile(panels[column].image.cpu(), 99.5)) for _, panels in rows) for column in range(columns)
    ]
    for number, ((case, panels), row_axes) in enumerate(zip(rows, grid, strict=True)):
        labels = [None if panel.label is None else panel.label.cpu().numpy() for panel in panels]
        index = best_slice(labels[0], panels[0].image.shape, 0)
        for column, (panel, label, axes) in enumerate(zip(panels, labels, row_axes, strict=True)):
            plane, window, colours = cut(panel.image.cpu().numpy(), 0, index), (0.0, 1.0), "gray"
            if panel.shows == "error":
                window, colours = (0.0, largest[column] or 1.0), "magma"
            elif panel.shows == "feature":
                window = window_of(plane)
            show_slice(axes, plane, 0, spacing_mm, window, colours)
            if label is not None:
                draw_contours(axes, cut(label, 0, index))
            if panel.folds is not None:
                paint(axes, cut(panel.folds.cpu().numpy(), 0, index), FOLD)
            if number == 0:
                scale = f", 0 to {window[1]:.2g}" if panel.shows == "error" else ""
                axes.set_title(plain(panel.heading) + scale, fontsize=9, color=INK)
        name_row(row_axes[0], case)
    structure_legend(figure, structures)
    save(figure, path)
