"""Pseudo-labels by round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.pictures.kit import INK, LINE_COLORS, MUTED, Row, new_figure, save, style_plot, write_note


def rounds_page(rows: Sequence[Row], path: Path) -> None:
    """Pseudo-labels by round: what the screening accepted, and DSC if it is known.

    Args:
        rows: `round`; `trusted_voxels`, `accepted_structures`, `labelled_scans` and `changed_voxels` (shares),
            `volume_of_atlas`, and optionally `dsc`.
        path: PNG file to write.
    """
    if not rows:
        write_note("no rounds", path)
        return
    figure = new_figure(6.5, 3.4)
    axes = figure.add_subplot()
    lines = {
        "trusted_voxels": "trusted voxels", "accepted_structures": "accepted structures",
        "labelled_scans": "scans with a label", "changed_voxels": "structure voxels changed since the round before",
        "volume_of_atlas": "volume of structures, in parts of the atlas's", "dsc": "DSC of the pseudo-labels",
    }  # fmt: skip
    numbers = [row["round"] for row in rows]
    top = 1.0
    for place, (color, (key, name)) in enumerate(zip(LINE_COLORS, lines.items(), strict=False)):
        if any(key in row for row in rows):
            values = np.array([row.get(key, np.nan) for row in rows], dtype=float)
            top = max([top, *values[np.isfinite(values)]])
            axes.plot(  # first lines thicker, so that equal values stay visible
                numbers, values, marker="os^DvP"[place], markersize=11 - 1.4 * place, color=color,
                linewidth=3 - 0.4 * place, label=name,
            )  # fmt: skip
    style_plot(axes, "pseudo-labels by round")
    axes.set_xticks(numbers)
    axes.set_xlabel("round", fontsize=8, color=MUTED)
    axes.set_ylim(-0.02 * top, 1.05 * top)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    save(figure, path)
