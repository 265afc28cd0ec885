"""Scans that are unlike the others: a row of dots for each volume and measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.pictures.kit import INK, LINE_COLORS, MUTED, Row, new_figure, plain, save, style_plot

MOST_ROWS = 40
WIDEST = 10.0  # |z|; farther dots are drawn at the edge
NAMED = 3  # outliers of a row that are named


def outliers_page(rows: Sequence[Row], path: Path, *, far: float, scans: int) -> None:
    """Dots by robust z-score; outliers are coloured and named.

    Args:
        rows: "name", "z" (by case) and "outliers" (cases, the farthest first); of more than `MOST_ROWS`, those with the
            farthest dots.
        far: |z| of an outlier.
        scans: how many there are.
    """
    shown = sorted(range(len(rows)), key=lambda k: -max(map(abs, rows[k]["z"].values()), default=0.0))[:MOST_ROWS]
    drawn = [rows[k] for k in sorted(shown)]
    figure = new_figure(9.5, 1.1 + 0.27 * len(drawn))
    axes = figure.add_subplot()
    style_plot(axes, f"{scans} scans, distance from the median in robust deviations")
    axes.axvspan(-far, far, color="#f1f4f8", zorder=0)
    for place, row in enumerate(drawn):
        usual = [z for case, z in row["z"].items() if case not in row["outliers"]]
        axes.scatter(usual, [place] * len(usual), s=14, color=MUTED, alpha=0.45, linewidths=0)
        for side in (-1, 1):
            beyond = [case for case in row["outliers"] if side * row["z"][case] > 0]
            ends = [max(-WIDEST, min(WIDEST, row["z"][case])) for case in beyond]
            axes.scatter(ends, [place] * len(ends), s=20, color=LINE_COLORS[1], linewidths=0)
            if beyond:
                names = ", ".join(name if len(name) <= 18 else f"{name[:17]}…" for name in beyond[:NAMED])
                more = f" and {len(beyond) - NAMED}" if len(beyond) > NAMED else ""
                axes.text(
                    side * (WIDEST + 0.4), place, plain(names + more), fontsize=7.5, color=INK, va="center",
                    ha="left" if side > 0 else "right",
                )  # fmt: skip
    axes.set_xlim(-WIDEST - 6, WIDEST + 6)
    axes.set_xticks([-WIDEST, -far, 0, far, WIDEST], [f"-{WIDEST:g}", f"-{far:g}", "0", f"{far:g}", f"{WIDEST:g}"])
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.set_yticks(range(len(drawn)), [plain(str(row["name"])) for row in drawn])
    save(figure, path)
