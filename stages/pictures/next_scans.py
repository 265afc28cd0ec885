"""Scans to label or correct next, with their answers, and all scans by distance and expected error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from stages.pictures.slices import PLANES, Spacing, best_slice, cut, draw_contours, plane_size, show_slice

MOST_NAMED = 6


def next_scans_page(
    rows: Sequence[Row], path: Path, *, table: Mapping[str, Sequence[Any]], structures: Sequence[str],
    spacing_mm: Spacing | None = None,
) -> None:  # fmt: skip
    """The suggested scans in three planes under the contours of their answers, and where all scans stand.

    Args:
        rows: `name`, `image` (D, H, W) in [0, 1] and `label` of each suggested scan, all on the same grid.
        path: PNG file to write.
        table: `rank`, `case`, `shape_distance`, `look_distance`, `expected_error` and `gain` of every scan, in order.
        structures: names of the classes.
        spacing_mm: of all images; isotropic by default.
    """
    size, gap, titles, plot = 1.9, 0.08, 0.3, 4.4  # inches
    shape = rows[0]["image"].shape
    heights = [size * min(plane_size(shape, axis, spacing_mm), 1.6) for axis in range(3)]
    left, top = len(rows) * (size + gap) + 0.3, 0.08
    total = max(top + titles + sum(heights) + 3 * gap + 0.1, 4.0)
    width = left + plot + 0.2
    figure = new_figure(width, total, constrained=False)
    for column, row in enumerate(rows):
        low = total - top - titles + gap
        for axis, height in enumerate(heights):
            low -= gap + height
            axes = add_image_axes(figure, 0.3 + column * (size + gap), low, size, height)
            place = best_slice(row["label"], shape, axis)
            show_slice(axes, cut(row["image"], axis, place), axis, spacing_mm)
            draw_contours(axes, cut(row["label"], axis, place))
            if axis == 0:
                axes.set_title(plain(f"{column + 1}: {row['name']}"), fontsize=8.5, color=INK)
            if column == 0:
                name_row(axes, PLANES[axis])
    bottom, indent = 0.55, 0.7
    axes = figure.add_axes(
        ((left + indent) / width, bottom / total, (plot - indent) / width, (total - bottom - 0.4) / total)
    )
    across, up = table["shape_distance"], table["expected_error"]
    most = max(max(table["gain"], default=0.0), 1e-9)
    sizes = [8 + 70 * max(gain, 0) / most for gain in table["gain"]]
    colors = [LINE_COLORS[1] if rank <= len(rows) else LINE_COLORS[0] for rank in table["rank"]]
    axes.scatter(across, up, s=sizes, c=colors, alpha=0.7, linewidths=0)
    middle = (min(across) + max(across)) / 2
    for k, case in enumerate(table["case"][: min(len(rows), MOST_NAMED)]):
        right = across[k] > middle
        axes.annotate(
            plain(f"{k + 1}: {case}"), (across[k], up[k]), fontsize=8, color=INK, xytext=(-6 if right else 6, 5),
            textcoords="offset points", ha="right" if right else "left",
        )  # fmt: skip
    style_plot(axes, "all unlabelled scans; size: gain")
    axes.set_xlabel("distance in shape to the nearest labelled scan (1 - DSC)", fontsize=8, color=MUTED)
    axes.set_ylabel("expected error of the answer", fontsize=8, color=MUTED)
    save(figure, path)
