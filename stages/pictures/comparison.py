"""Scores of several methods by structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from stages.pictures.kit import INK, LINE_COLORS, MUTED, new_figure, plain, save, style_plot, write_note

MOST_HEIGHT = 14.0  # inches of a column of structures
HATCHES = ("", "////", "....", "xxxx")  # of a repeated colour


def structures_by_method(table: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """DSC per structure and method: box (quartiles, median), whiskers to 1.5 times the box, a dot at the mean.

    Args:
        table: method -> structure -> DSC of every scan; nan is left out.
        path: PNG file to write.
    """
    scores = {
        name: {method: np.asarray(table[method].get(name, ()), dtype=float) for method in table}
        for name in next(iter(table.values()))
    }
    scores = {
        name: {method: values[np.isfinite(values)] for method, values in row.items()} for name, row in scores.items()
    }
    scores = {name: row for name, row in scores.items() if any(values.size for values in row.values())}
    if not scores:
        write_note("no scores", path)
        return
    names, methods = list(scores), list(table)
    each = max(0.34, 0.13 * (len(methods) + 1))  # inches of a structure
    columns = min(-(-len(names) * each // MOST_HEIGHT), 4)
    count = int(-(-len(names) // columns))
    parts = [names[start : start + count] for start in range(0, len(names), count)]
    figure = new_figure(max(7.5, 5.5 * len(parts)), 1.5 + each * max(count, 3))
    lowest = min(values.min() for row in scores.values() for values in row.values() if values.size)
    for place, part in enumerate(parts, start=1):
        axes = figure.add_subplot(1, len(parts), place)
        for number, method in enumerate(methods):
            offset = 0.8 * ((number + 0.5) / len(methods) - 0.5)
            _draw_boxes(axes, [scores[name][method] for name in part], offset, 0.62 / len(methods), number)
        style_plot(axes, "DSC by structure" if place == 1 else "")
        axes.set_yticks(range(len(part)), [plain(name) for name in part])
        axes.set_xlim(max(lowest - 0.05, -0.02), 1.005)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_xlabel("DSC of a scan", fontsize=8, color=MUTED)
        axes.grid(axis="y", visible=False)
    means = [
        np.mean([row[method].mean() for row in scores.values() if row[method].size] or [np.nan]) for method in table
    ]
    handles = [
        Patch(facecolor=color, hatch=hatch, edgecolor="white", label=plain(f"{method}  {mean:.3f}"))
        for (color, hatch), method, mean in zip(map(_look, range(len(methods))), methods, means, strict=True)
    ]
    # Methods with their mean over structures, in as many columns as fit.
    longest = max(len(method) for method in methods) + 9
    room = int(13 * figure.get_figwidth())
    figure.legend(
        handles=handles, title="methods, and the mean of their structures", title_fontsize=8, fontsize=8,
        frameon=False, loc="outside lower center", ncols=max(1, min(4, room // longest)),
    )  # fmt: skip
    save(figure, path)


def _look(number: int) -> tuple[str, str]:
    """Colour and hatch of a method."""
    turn, color = divmod(number, len(LINE_COLORS))
    return LINE_COLORS[color], HATCHES[turn % len(HATCHES)]


def _draw_boxes(axes: Axes, scores: Sequence[np.ndarray], offset: float, width: float, number: int) -> None:
    """The boxes of a method, one below the other; structures without scores have none."""
    places = [row + offset for row, values in enumerate(scores) if values.size]
    values = [row for row in scores if row.size]
    if not values:
        return
    color, hatch = _look(number)
    line = {"color": color, "linewidth": 0.8}
    boxes = axes.boxplot(
        values, positions=places, widths=width, orientation="horizontal", manage_ticks=False, patch_artist=True,
        boxprops={"facecolor": color, "edgecolor": color, "alpha": 0.45, "linewidth": 0.8}, whiskerprops=line,
        capprops=line, medianprops={"color": INK, "linewidth": 1.1},
        flierprops={"marker": "o", "markersize": 2, "markerfacecolor": color, "markeredgewidth": 0},
    )  # fmt: skip
    for box in boxes["boxes"]:
        box.set_hatch(hatch)
    means = [row.mean() for row in values]
    axes.plot(means, places, "o", color=INK, markersize=min(3.0, 60 * width * 0.3), markeredgewidth=0, zorder=4)
