"""Generated images by degree of space and style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.pictures.kit import INK, image_grid, name_row, plain, save, structure_legend
from stages.pictures.slices import Spacing, best_slice, cut, draw_contours, plane_size, show_slice

Volumes = tuple[np.ndarray, np.ndarray | None]  # image in [0, 1] and class indices, (D, H, W)


def degrees_page(
    sources: Mapping[str, Volumes], grid: Mapping[str, Mapping[str, Volumes]], path: Path, *,
    structures: Sequence[str] = (), spacing_mm: Spacing | None = None,
) -> None:  # fmt: skip
    """Images by two degrees, below what they lie between; all in one axial slice, that with the most label.

    Args:
        sources: name -> an atlas, with its label, and the scans that it goes towards.
        grid: name of a row -> name of a column -> generated image and label.
        path: PNG file to write.
        structures: names for the legend.
        spacing_mm: of all volumes; isotropic by default.
    """
    image, label = next(iter(sources.values()))
    index = best_slice(label, image.shape, 0)
    rows = [sources, *grid.values()]
    columns = max(len(row) for row in rows)
    shape = plane_size(image.shape, 0, spacing_mm)
    figure, axes_grid = image_grid(
        [shape] * len(rows), columns, width=1.9, left=0.3, titles=0.22, structures=structures
    )
    for number, (row, row_axes) in enumerate(zip(rows, axes_grid, strict=True)):
        for axes in row_axes[len(row) :]:
            axes.remove()
        for (name, (volume, classes)), axes in zip(row.items(), row_axes, strict=False):
            show_slice(axes, cut(volume, 0, index), 0, spacing_mm)
            if classes is not None:
                draw_contours(axes, cut(classes, 0, index))
            if number < 2:
                axes.set_title(plain(name), fontsize=8, color=INK)
    for name, row_axes in zip(grid, axes_grid[1:], strict=True):
        name_row(row_axes[0], name)
    structure_legend(figure, structures)
    save(figure, path)
