"""Suggested scans to label first, and the scores of all scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from stages.pictures.kit import (
    INK,
    LINE_COLORS,
    MUTED,
    Row,
    add_image_axes,
    name_row,
    new_figure,
    plain,
    save,
    style_plot,
)
from stages.pictures.slices import PLANES, Spacing, cut, plane_size, show_slice


def suggestion_page(
    rows: Sequence[Row],
    path: Path,
    *,
    scores: Mapping[str, Sequence[Any]],
    spacing_mm: Spacing | None = None,
    by: Literal["others", "average"] = "others",
) -> None:
    """Middle slices of a few aligned scans in three planes, and every scan's score with its interval.

    Args:
        rows: `name` and `image` (D, H, W) in [0, 1], all on the same grid.
        path: PNG file to write.
        scores: `case`, `score`, `score_low`, `score_high` of every scan, the best first.
        spacing_mm: of all images; isotropic by default.
        by: what scores compare a scan with.
    """
    size, gap, titles, plot = 1.9, 0.08, 0.3, 4.2  # inches
    shape = rows[0]["image"].shape
    heights = [size * min(plane_size(shape, axis, spacing_mm), 1.6) for axis in range(3)]
    left, top = len(rows) * (size + gap) + 0.3, 0.08
    total = top + titles + sum(heights) + 3 * gap + 0.1
    width = left + plot + 0.2
    figure = new_figure(width, total, constrained=False)
    for column, row in enumerate(rows):
        low = total - top - titles + gap
        for axis, height in enumerate(heights):
            low -= gap + height
            axes = add_image_axes(figure, 0.3 + column * (size + gap), low, size, height)
            show_slice(axes, cut(row["image"], axis, shape[axis] // 2), axis, spacing_mm)
            if axis == 0:
                axes.set_title(plain(row["name"]), fontsize=8.5, color=INK)
            if column == 0:
                name_row(axes, PLANES[axis])
    bottom, count = 0.5, len(scores["case"])
    named = count <= 30
    indent = 1.1 if named else 0.55
    axes = figure.add_axes(
        ((left + indent) / width, bottom / total, (plot - indent) / width, (total - bottom - 0.4) / total)
    )
    ranks = range(1, count + 1)
    axes.hlines(ranks, scores["score_low"], scores["score_high"], color=LINE_COLORS[0], linewidth=1.0, alpha=0.6)
    axes.plot(scores["score"], ranks, "o", color=LINE_COLORS[1], markersize=4 if named else 2.5)
    compared = "mean NCC to the other scans" if by == "others" else "NCC to the mean of the others"
    style_plot(axes, f"{compared}, 95 % interval")
    if named:
        axes.set_yticks(ranks, [plain(str(case)) for case in scores["case"]])
    else:
        axes.set_ylabel("rank", fontsize=8, color=MUTED)
    axes.set_ylim(count + 0.6, 0.4)
    save(figure, path)
