"""Pictures of training, registration, generated data and results, as PNG files.

Volumes have shape (D, H, W); along D, later slices lie nearer to the head, along H nearer to the back.
Label maps hold class indices, `structures` the names of the classes from 1. Spacings are in mm along (D, H, W).
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from stages.parts.panels import Panel, Points

DOTS_PER_INCH = 110
MAX_LEGEND = 8
INK, MUTED = "#222222", "#6b6b6b"
COLORS = ("#ff5a4f", "#35a7ff", "#5fe04c", "#ffd31a", "#c58bff", "#ff9d2e", "#2fe0cf", "#ff78c8")
LINE_COLORS = ("#1f6fb4", "#d9541e", "#2a9d4a", "#8a4fc4", "#b8860b", "#c2307a", "#128c8c", "#6b6b6b")
MISSING, EXTRA, CONFUSED = "#19d3ff", "#ff3df2", "#ffe81a"
PLANES = ("axial", "coronal", "sagittal")

Row = Mapping[str, Any]
Spacing = Sequence[float]


def loss_curves(log: Sequence[Row], path: Path) -> None:
    """One panel per phase and player: each term as it was (thin) and smoothed.

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
        _write_note("no training steps", path)
        return
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = _new_figure(7.0 * columns, 3.4 * rows)
    several_phases = len({phase for phase, _ in panels}) > 1
    for place, ((phase, player), terms) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        if len(terms) > 1 and any(points == terms.get("total") for name, points in terms.items() if name != "total"):
            del terms["total"]  # of one term of weight 1
        for number, (term, points) in enumerate(terms.items()):
            steps, values = np.array(sorted(points, key=lambda point: point[0]), dtype=float).T
            color = LINE_COLORS[number % len(LINE_COLORS)]
            axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.35, marker="." if len(steps) < 10 else "")
            axes.plot(steps, _smooth(values), color=color, linewidth=1.6, label=_plain(term))
        every = np.concatenate([[value for _, value in points] for points in terms.values()])
        every = every[np.isfinite(every)]
        if every.size and every.min() > 0:
            _use_log_scale(axes, every)
        _style_plot(axes, f"{phase}: {player}" if several_phases else player)
        axes.set_xlabel("step", fontsize=8, color=MUTED)
        axes.margins(x=0.01)
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    _save(figure, path)


def registration_overlay(rows: Sequence[Row], path: Path, *, structures: Sequence[str] = ()) -> None:
    """Atlas, scan, warped atlas, their checkerboard and the deformation grid, one row per scan.

    Shows the axial slice with the most warped label (the middle one without a label). The grid's lines are
    those of x + u(x) within the slice: where in the atlas each voxel of the scan is read.

    Args:
        rows: `case` (of the scan); `atlas`, `warped` and `scan` (D, H, W), intensities in [0, 1]; `displacement`
            (3, D, H, W), voxels; and optionally `warped_label` (D, H, W) and `spacing_mm`.
        path: PNG file to write.
        structures: names for the legend.
    """
    if not rows:
        _write_note("no registrations", path)
        return
    headings = ("atlas", "scan, propagated label", "warped atlas", "scan | warped, checkerboard", "scan, grid x + u(x)")
    shapes = [_plane_size(row["scan"].shape, 0, row.get("spacing_mm")) for row in rows]
    figure, grid = _image_grid(shapes, len(headings), width=2.5, left=0.3, titles=0.2, structures=structures)
    for number, (row, axes) in enumerate(zip(rows, grid, strict=True)):
        label, spacing_mm = row.get("warped_label"), row.get("spacing_mm")
        index = _best_slice(label, row["scan"].shape, 0)
        atlas, scan, warped = (_cut(row[name], 0, index) for name in ("atlas", "scan", "warped"))
        board = np.add.outer(*(np.arange(size) * 8 // max(size, 1) for size in scan.shape)) % 2 == 0
        for one, image in zip(axes, (atlas, scan, warped, np.where(board, scan, warped), scan), strict=True):
            _show(one, image, 0, spacing_mm)
        if label is not None:
            for one in axes[1:3]:
                _contours(one, _cut(label, 0, index))
        _deformation_grid(axes[-1], row["displacement"][1:, index])
        _name_row(axes[0], str(row["case"]))
        if number == 0:
            for one, heading in zip(axes, headings, strict=True):
                one.set_title(heading, fontsize=9, color=INK)
    _structure_legend(figure, structures)
    _save(figure, path)


def panels_page(
    rows: Sequence[tuple[str, Sequence[Panel]]],
    path: Path,
    *,
    structures: Sequence[str] = (),
    spacing_mm: Spacing | None = None,
) -> None:
    """What a method shows of its training, a row per scan: the axial slice with the most label of a row's first panel.

    An error is shown in colour, from 0 (black) to the 99.5th percentile of that panel in all rows (white); a feature
    from its 0.5th to its 99.5th percentile in the slice.

    Args:
        rows: case id and panels; the same ones in every row.
        path: PNG file to write.
        structures: names for the legend.
        spacing_mm: of all panels; isotropic by default.
    """
    if not rows:
        _write_note("no scans", path)
        return
    shape = _plane_size(rows[0][1][0].image.shape, 0, spacing_mm)
    columns = len(rows[0][1])
    figure, grid = _image_grid([shape] * len(rows), columns, width=2.5, left=0.3, titles=0.2, structures=structures)
    largest = [max(float(np.percentile(panels[k].image.cpu(), 99.5)) for _, panels in rows) for k in range(columns)]
    for number, ((case, panels), line) in enumerate(zip(rows, grid, strict=True)):
        labels = [None if panel.label is None else panel.label.cpu().numpy() for panel in panels]
        index = _best_slice(labels[0], panels[0].image.shape, 0)
        for column, (panel, label, axes) in enumerate(zip(panels, labels, line, strict=True)):
            plane, window, colours = _cut(panel.image.cpu().numpy(), 0, index), (0.0, 1.0), "gray"
            if panel.shows == "error":
                window, colours = (0.0, largest[column] or 1.0), "magma"
            elif panel.shows == "feature":
                low, high = (float(value) for value in np.percentile(plane, (0.5, 99.5)))
                window = (low, high if high > low else low + 1)
            _show(axes, plane, 0, spacing_mm, window, colours)
            if label is not None:
                _contours(axes, _cut(label, 0, index))
            if number == 0:
                scale = f", 0 to {window[1]:.2g}" if panel.shows == "error" else ""
                axes.set_title(_plain(panel.heading) + scale, fontsize=9, color=INK)
        _name_row(line[0], case)
    _structure_legend(figure, structures)
    _save(figure, path)


def points_plot(points: Points, path: Path) -> None:
    """Groups of points, a colour each, its first point large and named where there are 30 groups at most."""
    figure = _new_figure(6.5, 5.5)
    axes = figure.add_subplot()
    named = len(points.groups) <= 30
    for number, (name, places) in enumerate(points.groups.items()):
        color = LINE_COLORS[number % len(LINE_COLORS)]
        x, y = places.cpu().numpy().T
        axes.plot(x[1:], y[1:], ".", color=color, markersize=5, alpha=0.5, markeredgewidth=0)
        axes.plot(x[:1], y[:1], "o", color=color, markersize=6)
        if named:
            axes.annotate(_plain(name), (x[0], y[0]), xytext=(4, 3), textcoords="offset points", fontsize=7, color=INK)
    _style_plot(axes, points.title)
    axes.set_xlabel(points.axes[0], fontsize=8, color=MUTED)
    axes.set_ylabel(points.axes[1], fontsize=8, color=MUTED)
    _save(figure, path)


def couples_page(
    couples: Sequence[Row], path: Path, *, structures: Sequence[str] = (), spacing_mm: Spacing | None = None
) -> None:
    """Generated couples: the axial slice with the most label, with contours and where it came from.

    Args:
        couples: `image` (D, H, W), intensities in [0, 1]; `label` (D, H, W); `alpha`, `beta` (share of the way to
            the space and the style scan); case ids `atlas`, `scan`, `space`, `style`. All but the image may be None.
        path: PNG file to write.
        structures: names for the legend.
        spacing_mm: of all couples; isotropic by default.
    """
    if not couples:
        _write_note("no generated couples", path)
        return
    columns = min(len(couples), 5)
    lines = [couples[start : start + columns] for start in range(0, len(couples), columns)]
    shapes = [_plane_size(line[0]["image"].shape, 0, spacing_mm) for line in lines]
    figure, grid = _image_grid(shapes, columns, width=2.5, left=0.08, titles=0.58, structures=structures)
    for line, row_axes in zip(lines, grid, strict=True):
        for axes in row_axes[len(line) :]:
            axes.remove()
        for couple, axes in zip(line, row_axes, strict=False):
            label = couple.get("label")
            index = _best_slice(label, couple["image"].shape, 0)
            _show(axes, _cut(couple["image"], 0, index), 0, spacing_mm)
            if label is not None:
                _contours(axes, _cut(label, 0, index))
            axes.set_title(_provenance(couple), fontsize=7.5, color=INK, loc="left", linespacing=1.25)
    _structure_legend(figure, structures)
    _save(figure, path)


def best_median_worst(dice: Mapping[str, float]) -> dict[str, str]:
    """The scans to show: `best`, `median` and `worst` to case id, none twice; ties stand in alphabetical order."""
    ranked = sorted(dice, key=lambda case: (-dice[case], case))
    if len(ranked) < 3:
        return dict(zip(("best", "worst"), ranked, strict=False))
    return {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}


def predictions_page(rows: Sequence[Row], path: Path, *, structures: Sequence[str] = ()) -> None:
    """Truth, prediction and where they disagree, in three planes through the largest part of the structures.

    Args:
        rows: `case`, `dice`, `image`, `truth`, `prediction` (D, H, W), `spacing_mm`, and optionally `rank`
            ("best", ...); usually the best, the median and the worst scan. Any intensities.
        path: PNG file to write.
        structures: names for the legend.
    """
    if not rows:
        _write_note("no predictions", path)
        return
    crops = [_around_labels(row) for row in rows]
    size, gap, left_margin = 1.75, 0.06, 0.32  # inches
    block = left_margin + 3 * (size + gap)
    heights = [
        size * min(max(_plane_size(crop["image"].shape, axis, crop["spacing_mm"]) for crop in crops), 1.8)
        for axis in range(3)
    ]
    width = block * len(rows) + 0.1
    legend = _legend_height(structures, width)
    total = 0.62 + sum(heights) + 3 * gap + 0.32 + legend
    figure = _new_figure(width, total, constrained=False)
    for number, crop in enumerate(crops):
        left = number * block + left_margin
        rank = f"{crop['rank']}: " if crop.get("rank") else ""
        title = _plain(f"{rank}{crop['case']}, DSC {crop['dice']:.3f}")
        figure.text(left / width, 1 - 0.28 / total, title, fontsize=10.5, fontweight="bold", color=INK)
        grid, low = [], total - 0.62 + gap
        for height in heights:
            low -= gap + height
            grid.append([_add_image_axes(figure, left + c * (size + gap), low, size, height) for c in range(3)])
        _show_prediction(grid, crop)
    marks = (("missing", MISSING), ("too much", EXTRA), ("wrong structure", CONFUSED))
    figure.legend(
        handles=[Patch(color=color, label=text) for text, color in marks],
        loc="lower center",
        bbox_to_anchor=(0.5, legend / total),
        ncols=3,
        fontsize=8,
        frameon=False,
        labelcolor=INK,
    )
    _structure_legend(figure, structures)
    _save(figure, path)


def overlay_page(row: Row, path: Path, *, structures: Sequence[str] = ()) -> None:
    """Contours of a label map on its image, in three planes through the largest part of the structures.

    Args:
        row: `case`, `image` (intensities in [0, 1]) and `label` (D, H, W), `spacing_mm`, and optionally `note`.
        path: PNG file to write.
        structures: names for the legend.
    """
    image, label, spacing_mm = row["image"], row["label"], row["spacing_mm"]
    shapes = [max(_plane_size(image.shape, axis, spacing_mm) for axis in range(3))]
    figure, ((*line,),) = _image_grid(shapes, 3, width=3.0, left=0.08, titles=0.5, structures=structures)
    for axis, (axes, plane) in enumerate(zip(line, PLANES, strict=True)):
        index = _best_slice(label, image.shape, axis)
        _show(axes, _cut(image, axis, index), axis, spacing_mm)
        _contours(axes, _cut(label, axis, index))
        axes.set_anchor("N")
        note = f": {row['note']}" if row.get("note") else ""
        title = plane if axis else f"{row['case']}{note}\n{plane}"
        axes.set_title(_plain(title), fontsize=8.5, color=INK, loc="left")
    _structure_legend(figure, structures)
    _save(figure, path)


def score_boxes(table: Mapping[str, Sequence[float]], path: Path) -> None:
    """DSC per structure, the best one on top: box (quartiles, median), whiskers, and every scan as a dot.

    Args:
        table: DSC of every scan by structure; nan is left out.
        path: PNG file to write.
    """
    scores = {name: np.asarray(values, dtype=float) for name, values in table.items()}
    scores = {name: values[np.isfinite(values)] for name, values in scores.items()}
    scores = {name: values for name, values in scores.items() if values.size}
    if not scores:
        _write_note("no scores", path)
        return
    names = sorted(scores, key=lambda name: (float(np.median(scores[name])), name))
    figure = _new_figure(7.5, 1.1 + 0.34 * max(len(names), 3))
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
    _style_plot(axes, "DSC by structure")
    axes.set_yticks(range(1, len(names) + 1), [_plain(f"{name}  {np.mean(scores[name]):.3f}") for name in names])
    axes.set_xlabel("DSC of a scan; the numbers are means", fontsize=8, color=MUTED)
    lowest = min(values.min() for values in scores.values())
    axes.set_xlim(max(lowest - 0.05, -0.02), 1.005)
    axes.set_ylim(0.4, len(names) + 0.6)
    axes.grid(axis="y", visible=False)
    _save(figure, path)


def rounds_page(rows: Sequence[Row], path: Path) -> None:
    """How pseudo-labels changed by round: what the screening accepted, and their DSC where it is known.

    Args:
        rows: `round`; `trusted_voxels`, `accepted_structures`, `labelled_scans` and `changed_voxels` (shares),
            `volume_of_atlas`, and perhaps `dsc`.
        path: PNG file to write.
    """
    if not rows:
        _write_note("no rounds", path)
        return
    figure = _new_figure(6.5, 3.4)
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
            axes.plot(  # the first ones larger, so that equal values show
                numbers, values, marker="os^DvP"[place], markersize=11 - 1.4 * place, color=color,
                linewidth=3 - 0.4 * place, label=name,
            )  # fmt: skip
    _style_plot(axes, "pseudo-labels by round")
    axes.set_xticks(numbers)
    axes.set_xlabel("round", fontsize=8, color=MUTED)
    axes.set_ylim(-0.02 * top, 1.05 * top)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    _save(figure, path)


def structures_by_method(table: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """DSC per structure, a line of dots per method: the mean over scans, a bar between its quartiles.

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
        _write_note("no scores", path)
        return
    height = max(0.22, 0.09 * (len(methods) + 1))
    figure = _new_figure(7.5, 1.3 + height * max(len(names), 3))
    axes = figure.add_subplot()
    for number, method in enumerate(methods):
        again, place = divmod(number, len(LINE_COLORS))  # colours that come again have another marker
        color, marker = LINE_COLORS[place], "os^Dv"[again % 5]
        rows = [row for row, name in enumerate(names) if scores[name][method].size]
        offset = 0.7 * ((number + 0.5) / len(methods) - 0.5)
        values = [scores[names[row]][method] for row in rows]
        low, high = (([np.quantile(each, q) for each in values]) for q in (0.25, 0.75))
        places = [row + offset for row in rows]
        axes.hlines(places, low, high, color=color, linewidth=1.2, alpha=0.5)
        mean = np.mean([each.mean() for each in values]) if values else float("nan")
        axes.plot(
            [each.mean() for each in values], places, marker, color=color, markersize=3.5,
            label=_plain(f"{method}  {mean:.3f}"),
        )  # fmt: skip
    _style_plot(axes, "DSC by structure: means and quartiles over scans")
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    # With the mean of structures; as many side by side as there is room for.
    longest = max(len(method) for method in methods) + 9
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=max(1, min(4, 100 // longest)))
    _save(figure, path)


def suggestion_page(
    rows: Sequence[Row], path: Path, *, scores: Mapping[str, Sequence[Any]], spacing_mm: Spacing | None = None
) -> None:
    """Middle slices of a few aligned scans in three planes, and every scan's score with its interval.

    Args:
        rows: `name` and `image` (D, H, W) in [0, 1], all on one grid.
        path: PNG file to write.
        scores: `case`, `score`, `score_low`, `score_high` of every scan, the best first.
        spacing_mm: of all images; isotropic by default.
    """
    size, gap, names, plot = 1.9, 0.08, 0.3, 4.2  # inches
    shape = rows[0]["image"].shape
    heights = [size * min(_plane_size(shape, axis, spacing_mm), 1.6) for axis in range(3)]
    left, top = len(rows) * (size + gap) + 0.3, 0.08
    total = top + names + sum(heights) + 3 * gap + 0.1
    width = left + plot + 0.2
    figure = _new_figure(width, total, constrained=False)
    for column, row in enumerate(rows):
        low = total - top - names + gap
        for axis, height in enumerate(heights):
            low -= gap + height
            axes = _add_image_axes(figure, 0.3 + column * (size + gap), low, size, height)
            _show(axes, _cut(row["image"], axis, shape[axis] // 2), axis, spacing_mm)
            if axis == 0:
                axes.set_title(_plain(row["name"]), fontsize=8.5, color=INK)
            if column == 0:
                _name_row(axes, PLANES[axis])
    bottom, count = 0.5, len(scores["case"])
    named = count <= 30
    indent = 1.1 if named else 0.55
    axes = figure.add_axes(
        ((left + indent) / width, bottom / total, (plot - indent) / width, (total - bottom - 0.4) / total)
    )
    places = range(1, count + 1)
    axes.hlines(places, scores["score_low"], scores["score_high"], color=LINE_COLORS[0], linewidth=1.0, alpha=0.6)
    axes.plot(scores["score"], places, "o", color=LINE_COLORS[1], markersize=4 if named else 2.5)
    _style_plot(axes, "mean NCC to the other scans, 95 % interval")
    if named:
        axes.set_yticks(places, [_plain(str(case)) for case in scores["case"]])
    else:
        axes.set_ylabel("rank", fontsize=8, color=MUTED)
    axes.set_ylim(count + 0.6, 0.4)
    _save(figure, path)


# Figures


def _new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    return Figure((width, height), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained" if constrained else None)


def _save(figure: Figure, path: Path) -> None:
    # Without the version of matplotlib, equal pictures are equal files.
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def _write_note(text: str, path: Path) -> None:
    figure = _new_figure(4, 1.5)
    figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, fontsize=10)
    _save(figure, path)


def _plain(text: str) -> str:
    """Names are no formulas."""
    return text.replace("$", r"\$")


def _image_grid(
    shapes: Sequence[float], columns: int, *, width: float, left: float, titles: float, structures: Sequence[str]
) -> tuple[Figure, list[list[Axes]]]:
    """Axes for images of one width, `shapes` (one per row) times as high; inches, with `titles` above each row."""
    gap = 0.06
    heights = [width * shape for shape in shapes]
    total_width = left + columns * width + (columns - 1) * gap + 0.08
    total_height = (
        0.08
        + _legend_height(structures, total_width)
        + sum(heights)
        + len(shapes) * titles
        + (len(shapes) - 1) * gap
        + 0.08
    )
    figure = _new_figure(total_width, total_height, constrained=False)
    places = [left + column * (width + gap) for column in range(columns)]
    grid, low = [], total_height - 0.08 + gap
    for height in heights:
        low -= gap + titles + height
        grid.append([_add_image_axes(figure, place, low, width, height) for place in places])
    return figure, grid


def _add_image_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes without ticks or frame; inches."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _style_plot(axes: Axes, title: str) -> None:
    axes.set_title(_plain(title), fontsize=10, color=INK, loc="left", fontweight="bold")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED, labelcolor=INK, length=3, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#b5b5b5")


def _use_log_scale(axes: Axes, values: np.ndarray) -> None:
    axes.set_yscale("log")
    numbers = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(numbers)
    axes.yaxis.set_minor_formatter(numbers if values.max() < 5 * values.min() else NullFormatter())


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over about a twentieth of the curve; values that are not finite are left out."""
    kernel = np.ones(min(max(len(values) // 20, 1), len(values)))
    finite = np.isfinite(values)
    weight = np.convolve(finite, kernel, mode="same")
    total = np.convolve(np.where(finite, values, 0), kernel, mode="same")
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0.5)


# Slices


def _cut(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    return np.take(volume, index, axis=axis)


def _best_slice(label: np.ndarray | None, shape: Sequence[int], axis: int) -> int:
    """The slice with the most label; the middle one without any."""
    if label is None or not label.any():
        return shape[axis] // 2
    others = tuple(other for other in range(3) if other != axis)
    return int(np.count_nonzero(label, axis=others).argmax())


def _plane_spacing(axis: int, spacing_mm: Spacing | None) -> list[float]:
    """Spacing down and across a slice."""
    return [
        float(size) for other, size in enumerate(spacing_mm if spacing_mm is not None else (1, 1, 1)) if other != axis
    ]


def _plane_size(shape: Sequence[int], axis: int, spacing_mm: Spacing | None) -> float:
    """Height of a slice over its width."""
    down, across = _plane_spacing(axis, spacing_mm)
    rows, columns = (size for other, size in enumerate(shape) if other != axis)
    return rows * down / (columns * across)


def _show(
    axes: Axes, image: np.ndarray, axis: int, spacing_mm: Spacing | None, window: tuple[float, float] = (0, 1),
    colours: str = "gray",
) -> None:  # fmt: skip
    """A slice, with the head at the top where D runs down the page."""
    down, across = _plane_spacing(axis, spacing_mm)
    axes.imshow(
        np.asarray(image, dtype=np.float32),
        cmap=colours,
        vmin=window[0],
        vmax=window[1],
        aspect=down / across,
        origin="upper" if axis == 0 else "lower",
        interpolation="nearest",
    )


def class_color(class_index: int) -> Any:
    if class_index <= len(COLORS):
        return COLORS[class_index - 1]
    # Golden-ratio steps round the hues keep neighbouring classes apart.
    return colorsys.hsv_to_rgb(class_index * 0.618034 % 1, 0.6 + 0.3 * (class_index % 2), 1.0)


def _contours(axes: Axes, label: np.ndarray, linewidth: float = 1.1) -> None:
    # Padded, so that a structure that is cut by the border is closed there.
    padded = np.pad(label, 1)
    down, across = (np.arange(-1, size + 1) for size in label.shape)
    limits = axes.get_xlim(), axes.get_ylim()
    for class_index in np.unique(label[label > 0]):
        mask = (padded == class_index).astype(np.float32)
        axes.contour(across, down, mask, levels=[0.5], colors=[class_color(int(class_index))], linewidths=linewidth)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def _deformation_grid(axes: Axes, displacement: np.ndarray) -> None:
    """Lines of x + u(x); displacement (2, H, W), voxels."""
    height, width = displacement.shape[1:]
    down, across = np.meshgrid(np.arange(height), np.arange(width), indexing="ij") + displacement.astype(np.float32)
    step = max(2, round(max(height, width) / 24))
    limits = axes.get_xlim(), axes.get_ylim()
    style: dict[str, Any] = {"color": "#ffd31a", "linewidth": 0.6, "alpha": 0.85}
    for row in range(step // 2, height, step):
        axes.plot(across[row], down[row], **style)
    for column in range(step // 2, width, step):
        axes.plot(across[:, column], down[:, column], **style)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def _name_row(axes: Axes, text: str) -> None:
    axes.set_ylabel(_plain(text), fontsize=8.5, color=INK, labelpad=4)


def _provenance(couple: Row) -> str:
    lines = []
    for scan, share, sign in (("atlas", "", ""), ("scan", "", ""), ("space", "alpha", "α"), ("style", "beta", "β")):
        if couple.get(scan) is not None:
            amount = "" if couple.get(share) is None else f"  {sign} {couple[share]:.2f}"
            name, *others = str(couple[scan]).split("+")  # what lies between several scans, or was voted by atlases
            if others and len(str(couple[scan])) > 36:
                name, others = f"{name} + {len(others)} more", []
            lines.append(_plain("+".join([f"{scan} {name}", *others])) + amount)
    return "\n".join(lines)


def _legend_columns(structures: Sequence[str], width: float) -> int:
    longest = max(len(name) for name in structures)
    return min(max(int(width / (0.6 + 0.09 * longest)), 1), len(structures))


def _legend_height(structures: Sequence[str], width: float) -> float:
    """Inches, on a page of this width; many structures have no legend."""
    if not 0 < len(structures) <= MAX_LEGEND:
        return 0.0
    return 0.12 + 0.2 * -(-len(structures) // _legend_columns(structures, width))


def _structure_legend(figure: Figure, structures: Sequence[str]) -> None:
    if not _legend_height(structures, figure.get_figwidth()):
        return
    handles = [
        Line2D([], [], color=class_color(number), linewidth=2.5, label=_plain(name))
        for number, name in enumerate(structures, start=1)
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=_legend_columns(structures, figure.get_figwidth()),
        fontsize=8,
        frameon=False,
        labelcolor=INK,
    )


def _around_labels(row: Row, margin_mm: float = 12.0) -> dict[str, Any]:
    """The row cut down to its structures and a margin; all of it where there are none."""
    labelled = (row["truth"] > 0) | (row["prediction"] > 0)
    if not labelled.any():
        return dict(row)
    box = []
    for axis, spacing in enumerate(row["spacing_mm"]):
        used = np.flatnonzero(labelled.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = max(int(np.ceil(margin_mm / spacing)), 1)
        box.append(slice(max(used[0] - margin, 0), used[-1] + 1 + margin))
    return {**row, **{name: row[name][tuple(box)] for name in ("image", "truth", "prediction")}}


def _show_prediction(grid: Sequence[Sequence[Axes]], row: Row) -> None:
    """Planes down, truth, prediction and disagreement across."""
    truth, prediction, image = row["truth"], row["prediction"], row["image"]
    low, high = (float(value) for value in np.percentile(image, (0.5, 99.5)))
    window = (low, high if high > low else low + 1)
    for axis, (plane, line) in enumerate(zip(PLANES, grid, strict=True)):
        index = _best_slice(truth if truth.any() else prediction, image.shape, axis)
        gray, t, p = (_cut(volume, axis, index) for volume in (image, truth, prediction))
        for axes in line:
            _show(axes, gray, axis, row["spacing_mm"], window)
            axes.set_anchor("N")
        _contours(line[0], t)
        _contours(line[1], p)
        _disagreement(line[2], t, p)
        _name_row(line[0], plane)
    for axes, heading in zip(grid[0], ("truth", "prediction", "disagreement"), strict=True):
        axes.set_title(heading, fontsize=8.5, color=INK, pad=3)


def _disagreement(axes: Axes, truth: np.ndarray, prediction: np.ndarray) -> None:
    (image,) = axes.images
    paint = np.zeros((*truth.shape, 4), dtype=np.float32)
    wrong = truth != prediction
    for where, color in (
        (wrong & (prediction == 0), MISSING),
        (wrong & (truth == 0), EXTRA),
        (wrong & (truth > 0) & (prediction > 0), CONFUSED),
    ):
        paint[where] = [*(int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)), 0.8]
    axes.imshow(paint, aspect=axes.get_aspect(), origin=image.origin, interpolation="nearest")
