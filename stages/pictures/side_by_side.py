"""Answers of several methods on one scan, beside the truth."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from stages.pictures.kit import (
    INK,
    Row,
    add_image_axes,
    legend_height,
    name_row,
    new_figure,
    plain,
    save,
    structure_legend,
    write_note,
)
from stages.pictures.slices import PLANES, best_slice, box_around, cut, draw_contours, plane_size, show_slice, window_of

MOST_COLUMNS = 7


def side_by_side_page(row: Row, path: Path, *, structures: Sequence[str] = ()) -> None:
    """The truth and every answer on the same slices: three planes through the most label of the truth.

    Args:
        row: `case`, `image`, `truth` (D, H, W), `spacing_mm`, `answers`: name -> (label map (D, H, W), DSC). Any
            intensities.
        path: PNG file to write.
        structures: names for the legend.
    """
    answers = row["answers"]
    if not answers:
        write_note("no answers", path)
        return
    labelled = np.any([row["truth"] > 0, *(label > 0 for label, _ in answers.values())], axis=0)
    box = box_around(labelled, row["spacing_mm"])
    image, truth = row["image"][box], row["truth"][box]
    columns = [("truth", truth)]
    columns += [(f"{name}\n{dice:.3f}", label[box]) for name, (label, dice) in answers.items()]
    lines = [columns[start : start + MOST_COLUMNS] for start in range(0, len(columns), MOST_COLUMNS)]
    size, gap, left, titles = 1.9, 0.06, 0.32, 0.56  # inches
    heights = [size * min(plane_size(image.shape, axis, row["spacing_mm"]), 1.8) for axis in range(3)]
    width = left + len(lines[0]) * (size + gap) + 0.1
    width = max(width, 4.2)  # the title has room
    line_height = titles + sum(heights) + 3 * gap
    total = 0.34 + len(lines) * line_height + 0.1 + legend_height(structures, width)
    figure = new_figure(width, total, constrained=False)
    title = plain(f"{row['case']}, and its DSC by method")
    figure.text(0.1 / width, 1 - 0.27 / total, title, fontsize=10.5, fontweight="bold", color=INK)
    window = window_of(image)
    shown = [(axis, best_slice(truth if truth.any() else labelled[box], image.shape, axis)) for axis in range(3)]
    for number, line in enumerate(lines):
        low = total - 0.34 - number * line_height - titles + gap
        for (axis, index), height in zip(shown, heights, strict=True):
            low -= gap + height
            for column, (heading, label) in enumerate(line):
                axes = add_image_axes(figure, left + column * (size + gap), low, size, height)
                axes.set_anchor("N")
                show_slice(axes, cut(image, axis, index), axis, row["spacing_mm"], window)
                draw_contours(axes, cut(label, axis, index))
                if axis == 0:
                    _head(axes, heading)
                if column == 0:
                    name_row(axes, PLANES[axis])
    structure_legend(figure, structures)
    save(figure, path)


def _head(axes: Axes, heading: str) -> None:
    """A method's name in at most two lines, and what stands below it."""
    name, *below = heading.split("\n")
    lines = textwrap.wrap(name, 29, max_lines=2, placeholder=" ...")
    axes.set_title(plain("\n".join([*lines, *below])), fontsize=8, color=INK, pad=3, linespacing=1.15)
