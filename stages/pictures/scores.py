"""Scores of one method by structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.pictures.kit import INK, LINE_COLORS, MUTED, new_figure, plain, save, style_plot, write_note


def score_boxes(table: Mapping[str, Sequence[float]], path: Path) -> None:
    """DSC per structure, the best structure on top: box (quartiles, median), whiskers, and a dot per scan.

    Args:
        table: DSC of every scan by structure; nan is left out.
        path: PNG file to write.
    """
    scores = {name: np.asarray(values, dtype=float) for name, values in table.items()}
    scores = {name: values[np.isfinite(values)] for name, values in scores.items()}
    scores = {name: values for name, values in scores.items() if values.size}
    if not scores:
        write_note("no scores", path)
        return
    names = sorted(scores, key=lambda name: (float(np.median(scores[name])), name))
    figure = new_figure(7.5, 1.1 + 0.34 * max(len(names), 3))
    axes = figure.add_subplot()
    axes.boxplot(
        [scores[name] for name in names],
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "#dbe9f6", "edgecolor": LINE_COLORS[0], "linewidth": 0.9},
        whiskerprops={"color": LINE_COLORS[0], "linewidth": 0.9},
        capprops={"color": LINE_COLORS[0], "linewidth": 0.9},
        medianprops={"color": LINE_COLORS[1], "linewidth": 1.8},
    )
    jitter = np.random.default_rng(0)
    for number, name in enumerate(names, start=1):
        heights = number + jitter.uniform(-0.18, 0.18, scores[name].size)
        axes.plot(scores[name], heights, ".", color=INK, markersize=5, alpha=0.45, markeredgewidth=0, zorder=3)
    style_plot(axes, "DSC by structure")
    axes.set_yticks(range(1, len(names) + 1), [plain(f"{name}  {np.mean(scores[name]):.3f}") for name in names])
    axes.set_xlabel("DSC of a scan; the numbers are means", fontsize=8, color=MUTED)
    lowest = min(values.min() for values in scores.values())
    axes.set_xlim(max(lowest - 0.05, -0.02), 1.005)
    axes.set_ylim(0.4, len(names) + 0.6)
    axes.grid(axis="y", visible=False)
    save(figure, path)
