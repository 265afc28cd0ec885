"""Loss curves, one panel per phase and player."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from stages.pictures.kit import INK, LINE_COLORS, MUTED, Row, new_figure, plain, save, style_plot, write_note


def loss_curves(log: Sequence[Row], path: Path) -> None:
    """One panel per phase and player: each term as logged (thin) and smoothed.

    Args:
        log: records {"phase": ..., "step": ..., "<player>/<term>": value, ...}.
        path: PNG file to write.
    """
    panels: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for record in log:
        for key, value in record.items():
            player, separator, term = key.partition("/")
            if separator:
                terms = panels.setdefault((str(record["phase"]), player), {})
                terms.setdefault(term, []).append((record["step"], value))
    if not panels:
        write_note("no training steps", path)
        return
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(7.0 * columns, 3.4 * rows)
    several_phases = len({phase for phase, _ in panels}) > 1
    for place, ((phase, player), terms) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        if len(terms) > 1 and any(points == terms.get("total") for name, points in terms.items() if name != "total"):
            del terms["total"]  # equals its only term of weight 1
        for number, (term, points) in enumerate(terms.items()):
            steps, values = np.array(sorted(points, key=lambda point: point[0]), dtype=float).T
            color = LINE_COLORS[number % len(LINE_COLORS)]
            axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.35, marker="." if len(steps) < 10 else "")
            axes.plot(steps, smooth(values), color=color, linewidth=1.6, label=plain(term))
        losses = np.concatenate([[value for _, value in points] for points in terms.values()])
        losses = losses[np.isfinite(losses)]
        if losses.size and losses.min() > 0:
            _use_log_scale(axes, losses)
        style_plot(axes, f"{phase}: {player}" if several_phases else player)
        axes.set_xlabel("step", fontsize=8, color=MUTED)
        axes.margins(x=0.01)
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    save(figure, path)


def _use_log_scale(axes: Axes, values: np.ndarray) -> None:
    """Log scale with plain numbers at major ticks, and at minor ticks if the values span less than a factor of 5."""
    axes.set_yscale("log")
    numbers = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(numbers)
    axes.yaxis.set_minor_formatter(numbers if values.max() < 5 * values.min() else NullFormatter())


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over about a twentieth of the curve, without values that are not finite."""
    kernel = np.ones(min(max(len(values) // 20, 1), len(values)))
    finite = np.isfinite(values)
    weight = np.convolve(finite, kernel, mode="same")
    total = np.convolve(np.where(finite, values, 0), kernel, mode="same")
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0.5)
