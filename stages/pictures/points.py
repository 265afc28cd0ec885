"""A plot of points in groups."""

from __future__ import annotations

from pathlib import Path

from stages.parts.panels import Points
from stages.pictures.kit import INK, LINE_COLORS, MUTED, new_figure, plain, save, style_plot


def points_plot(points: Points, path: Path) -> None:
    """Groups of points in colours. The first point of a group is larger, and named if there are at most 30 groups.

    Clouds have a marker each, and a legend with the number of points.

    Args:
        points: the groups, and titles of the plot and its axes.
        path: PNG file to write.
    """
    figure = new_figure(6.5, 5.5)
    axes = figure.add_subplot()
    named = len(points.groups) <= 30 and not points.clouds
    for number, (name, places) in enumerate(points.groups.items()):
        color = LINE_COLORS[number % len(LINE_COLORS)]
        x, y = places.cpu().numpy().T
        if points.clouds:
            marker, size = ("o", 4.5) if number == 0 else ("s^Dv"[number % 4], 5.5)
            label = plain(f"{name} ({len(x)})")
            axes.plot(x, y, marker, color=color, markersize=size, alpha=0.7, markeredgewidth=0, label=label)
            continue
        axes.plot(x[1:], y[1:], ".", color=color, markersize=5, alpha=0.5, markeredgewidth=0)
        axes.plot(x[:1], y[:1], "o", color=color, markersize=6)
        if named:
            axes.annotate(plain(name), (x[0], y[0]), xytext=(4, 3), textcoords="offset points", fontsize=7, color=INK)
    style_plot(axes, points.title)
    axes.set_xlabel(points.axes[0], fontsize=8, color=MUTED)
    axes.set_ylabel(points.axes[1], fontsize=8, color=MUTED)
    if points.clouds:
        figure.legend(fontsize=8, frameon=False, labelcolor=INK, loc="outside lower center", ncols=1)
    save(figure, path)
