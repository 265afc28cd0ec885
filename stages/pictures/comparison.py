"""Scores of several methods by structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.pictures.kit import LINE_COLORS, new_figure, plain, save, style_plot, write_note


def structures_by_method(table: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """DSC per structure and method: a dot at the mean over scans, a bar between the quartiles.

    Args:
        table: method -> structure -> DSC of every scan; nan is left out.
        path: PNG file to write.
    """
    methods = list(table)
    scores = {
        name: {method: np.asarray(table[method].get(name, ()), dtype=float) for method in methods}
        for name in next(iter(table.values()))
    }
    scores = {
        name: {method: values[np.isfinite(values)] for method, values in row.items()} for name, row in scores.items()
    }
    names = [name for name, row in scores.items() if any(values.size for values in row.values())]
    if not names:
        write_note("no scores", path)
        return
    height = max(0.22, 0.09 * (len(methods) + 1))
    figure = new_figure(7.5, 1.3 + height * max(len(names), 3))
    axes = figure.add_subplot()
    for number, method in enumerate(methods):
        turn, color_index = divmod(number, len(LINE_COLORS))  # a repeated colour gets another marker
        color, marker = LINE_COLORS[color_index], "os^Dv"[turn % 5]
        rows = [row for row, name in enumerate(names) if scores[name][method].size]
        offset = 0.7 * ((number + 0.5) / len(methods) - 0.5)
        dice_by_row = [scores[names[row]][method] for row in rows]
        means = [dice.mean() for dice in dice_by_row]
        low, high = ([np.quantile(dice, share) for dice in dice_by_row] for share in (0.25, 0.75))
        places = [row + offset for row in rows]
        axes.hlines(places, low, high, color=color, linewidth=1.2, alpha=0.5)
        mean = np.mean(means) if means else float("nan")
        axes.plot(
            means, places, marker, color=color, markersize=3.5,
            label=plain(f"{method}  {mean:.3f}"),
        )  # fmt: skip
    style_plot(axes, "DSC by structure: means and quartiles over scans")
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    # Methods with their mean over structures, in as many columns as fit.
    longest = max(len(method) for method in methods) + 9
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=max(1, min(4, 100 // longest)))
    save(figure, path)
