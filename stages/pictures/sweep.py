"""DSC against a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from stages.pictures.kit import LINE_COLORS, MAX_LEGEND, MUTED, new_figure, plain, save, style_plot

WIDEST = 20  # ratio of the largest to the smallest number that still stand at their own places
LONGEST = 14  # characters of a value below the axis


@dataclass(frozen=True)
class Curve:
    """DSC at each value of the setting.

    Args:
        mean: over runs and scans.
        low, high: 95 % interval; as long as `mean`, or empty: none is drawn.
        runs: mean of every run at each value; empty: none are drawn.
    """

    mean: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    runs: Sequence[Sequence[float]] = field(default=())


def sweep_page(
    curves: Mapping[str, Curve],
    path: Path,
    *,
    setting: str,
    values: Sequence[float | str],
    structures: Mapping[str, Curve] | None = None,
) -> None:
    """Curves with intervals as bands and runs as dots; beside them a line per structure, where there are few.

    Args:
        curves: by method or output.
        path: PNG file to write.
        setting: name of the horizontal axis.
        values: its values, in order; numbers stand at their places unless they span orders of magnitude.
        structures: of the first curve.
    """
    structures = structures if structures and 1 < len(structures) <= MAX_LEGEND else {}
    figure = new_figure(6.6 + 5.4 * bool(structures), 3.8)
    first, *second = figure.subplots(1, 2 if structures else 1, sharey=True, squeeze=False)[0]
    _draw(first, curves, values)
    dots = "; dots are runs" if any(curve.runs for curve in curves.values()) else ""
    style_plot(first, f"DSC, mean of structures; 95 % intervals{dots}")
    for axes in second:
        _draw(axes, structures, values)
        style_plot(axes, f"DSC by structure: {next(iter(curves))}")
    for axes in (first, *second):
        places = places_of(values)
        axes.set_xticks(places, [_named(value) for value in values])
        axes.set_xlabel(plain(setting), fontsize=8, color=MUTED)
    save(figure, path)


def places_of(values: Sequence[float | str]) -> list[float]:
    """Where values stand: numbers at their own places, anything else, and numbers far apart, one after the other."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values]
        sizes = [abs(number) for number in numbers if number]
        gaps = np.diff(numbers)
        if len(numbers) > 1 and max(sizes) <= WIDEST * min(sizes) and min(gaps) * WIDEST >= max(numbers) - min(numbers):
            return numbers
    return [float(place) for place in range(len(values))]


def _named(value: float | str) -> str:
    text = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    return plain(text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...")


def _draw(axes: Axes, curves: Mapping[str, Curve], values: Sequence[float | str]) -> None:
    places = places_of(values)
    beside = 0.015 * (max(places) - min(places))
    for number, (name, curve) in enumerate(curves.items()):
        color = LINE_COLORS[number % len(LINE_COLORS)]
        if len(curve.low):
            axes.fill_between(places, curve.low, curve.high, color=color, alpha=0.13, linewidth=0)
        axes.plot(places, curve.mean, marker="os^DvP"[number % 6], markersize=5, color=color, label=plain(name))
        for place, runs in zip(places, curve.runs, strict=False):
            axes.plot([place + beside] * len(runs), runs, "o", color=color, markersize=3, alpha=0.6, markeredgewidth=0)
    axes.margins(x=0.04)
    axes.legend(fontsize=8, frameon=False, loc="best")
