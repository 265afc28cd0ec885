"""Predictions beside the truth, and their disagreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

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
from stages.pictures.slices import (
    PLANES,
    best_slice,
    box_around,
    cut,
    draw_contours,
    paint,
    plane_size,
    show_slice,
    window_of,
)

MISSING, EXTRA, CONFUSED = "#19d3ff", "#ff3df2", "#ffe81a"


def best_median_worst(dice: Mapping[str, float]) -> dict[str, str]:
    """The scans to show: case ids by rank `best`, `median`, `worst`, none twice; ties are ordered alphabetically."""
    ranked = sorted(dice, key=lambda case: (-dice[case], case))
    if len(ranked) < 3:
        return dict(zip(("best", "worst"), ranked, strict=False))
    return {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}


def predictions_page(rows: Sequence[Row], path: Path, *, structures: Sequence[str] = ()) -> None:
    """Truth, prediction and their disagreement, in three planes through the largest part of the structures.

    Args:
        rows: `case`, `dice`, `image`, `truth`, `prediction` (D, H, W), `spacing_mm`, and optionally `rank`
            ("best", ...); usually the best, the median and the worst scan. Any intensities.
        path: PNG file to write.
        structures: names for the legend.
    """
    if not rows:
        write_note("no predictions", path)
        return
    crops = [_around_labels(row) for row in rows]
    size, gap, left_margin = 1.75, 0.06, 0.32  # inches
    block = left_margin + 3 * (size + gap)
    heights = [
        size * min(max(plane_size(crop["image"].shape, axis, crop["spacing_mm"]) for crop in crops), 1.8)
        for axis in range(3)
    ]
    width = block * len(rows) + 0.1
    legend = legend_height(structures, width)
    total = 0.62 + sum(heights) + 3 * gap + 0.32 + legend
    figure = new_figure(width, total, constrained=False)
    for number, crop in enumerate(crops):
        left = number * block + left_margin
        rank = f"{crop['rank']}: " if crop.get("rank") else ""
        title = plain(f"{rank}{crop['case']}, DSC {crop['dice']:.3f}")
        figure.text(left / width, 1 - 0.28 / total, title, fontsize=10.5, fontweight="bold", color=INK)
        grid, low = [], total - 0.62 + gap
        for height in heights:
            low -= gap + height
            grid.append(
                [add_image_axes(figure, left + column * (size + gap), low, size, height) for column in range(3)]
            )
        _show_prediction(grid, crop)
    marks = (("missing", MISSING), ("too much", EXTRA), ("wrong structure", CONFUSED))
    figure.legend(
        handles=[Patch(color=color, label=text) for text, color in marks],
        loc="lower center",
        bbox_to_anchor=(0.5, legend / total),
        ncols=3,
        fontsize=8,
        frameon=False,
        labelcolor=INK,
    )
    structure_legend(figure, structures)
    save(figure, path)


def _around_labels(row: Row) -> dict[str, Any]:
    """The row cropped to its structures."""
    box = box_around((row["truth"] > 0) | (row["prediction"] > 0), row["spacing_mm"])
    return {**row, **{name: row[name][box] for name in ("image", "truth", "prediction")}}


def _show_prediction(grid: Sequence[Sequence[Axes]], row: Row) -> None:
    """Draw one plane per row; truth, prediction and disagreement in columns."""
    truth, prediction, image = row["truth"], row["prediction"], row["image"]
    window = window_of(image)
    for axis, (plane, row_axes) in enumerate(zip(PLANES, grid, strict=True)):
        index = best_slice(truth if truth.any() else prediction, image.shape, axis)
        shown, true_labels, predicted = (cut(volume, axis, index) for volume in (image, truth, prediction))
        for axes in row_axes:
            show_slice(axes, shown, axis, row["spacing_mm"], window)
            axes.set_anchor("N")
        draw_contours(row_axes[0], true_labels)
        draw_contours(row_axes[1], predicted)
        _paint_disagreement(row_axes[2], true_labels, predicted)
        name_row(row_axes[0], plane)
    for axes, heading in zip(grid[0], ("truth", "prediction", "disagreement"), strict=True):
        axes.set_title(heading, fontsize=8.5, color=INK, pad=3)


def _paint_disagreement(axes: Axes, truth: np.ndarray, prediction: np.ndarray) -> None:
    """Colour voxels where two label maps differ: missing, too much, or wrong structure."""
    wrong = truth != prediction
    paint(axes, wrong & (prediction == 0), MISSING)
    paint(axes, wrong & (truth == 0), EXTRA)
    paint(axes, wrong & (truth > 0) & (prediction > 0), CONFUSED)
