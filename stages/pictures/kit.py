"""Shared by all pages: figures, axes, image grids, colours, legends, saving."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stages.parts.colors import class_color

DOTS_PER_INCH = 110
MAX_LEGEND = 8
INK, MUTED = "#222222", "#6b6b6b"
LINE_COLORS = ("#1f6fb4", "#d9541e", "#2a9d4a", "#8a4fc4", "#b8860b", "#c2307a", "#128c8c", "#6b6b6b")

OTHER_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans", "Microsoft YaHei",
    "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai",
    "Arial Unicode MS", "Segoe UI",
)  # fmt: skip

Row = Mapping[str, Any]  # data of one scan, couple, step or round; the docstring of a page lists the keys


def _use_fonts_of_other_scripts() -> None:
    """Let text that DejaVu Sans lacks be drawn with a font of the machine that has it, and otherwise as boxes."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    rcParams["font.sans-serif"] = ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)]


_use_fonts_of_other_scripts()


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """A white figure; sizes in inches. `constrained`: matplotlib makes room for labels and legends."""
    return Figure((width, height), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained" if constrained else None)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file, without matplotlib's version, so that equal pictures give equal files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure.savefig(path, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def write_note(text: str, path: Path) -> None:
    """Write a page with a text that says why there is nothing to draw."""
    lines = textwrap.wrap(text, 50)
    figure = new_figure(4, max(1.5, 0.6 + 0.18 * len(lines)))
    figure.text(0.5, 0.5, plain("\n".join(lines)), ha="center", va="center", color=MUTED, fontsize=10)
    save(figure, path)


def plain(text: str) -> str:
    """Text for matplotlib in which dollar signs are drawn, not read as formulas."""
    return text.replace("$", r"\$")


def image_grid(
    shapes: Sequence[float], columns: int, *, width: float, left: float, titles: float, structures: Sequence[str]
) -> tuple[Figure, list[list[Axes]]]:
    """Axes for rows of images. Sizes are in inches.

    Args:
        shapes: height over width of the images of each row.
        width: of every image.
        left: margin for the names of rows.
        titles: height above each row.
        structures: names for the legend.
    """
    gap = 0.06
    heights = [width * shape for shape in shapes]
    total_width = left + columns * width + (columns - 1) * gap + 0.08
    total_height = (
        0.08
        + legend_height(structures, total_width)
        + sum(heights)
        + len(shapes) * titles
        + (len(shapes) - 1) * gap
        + 0.08
    )
    figure = new_figure(total_width, total_height, constrained=False)
    lefts = [left + column * (width + gap) for column in range(columns)]
    grid, low = [], total_height - 0.08 + gap
    for height in heights:
        low -= gap + titles + height
        grid.append([add_image_axes(figure, column_left, low, width, height) for column_left in lefts])
    return figure, grid


def add_image_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes without ticks or frame; position and size in inches."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def style_plot(axes: Axes, title: str) -> None:
    """Title, grid and spines of a plot with ticks."""
    axes.set_title(plain(title), fontsize=10, color=INK, loc="left", fontweight="bold")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED, labelcolor=INK, length=3, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#b5b5b5")


def name_row(axes: Axes, text: str) -> None:
    """Write the name of a row of images beside its first image."""
    axes.set_ylabel(plain(text), fontsize=8.5, color=INK, labelpad=4)


def structure_legend(figure: Figure, structures: Sequence[str]) -> None:
    """Draw colours and names of the structures below the images, in the space of `legend_height`."""
    if not legend_height(structures, figure.get_figwidth()):
        return
    handles = [
        Line2D([], [], color=class_color(number), linewidth=2.5, label=plain(name))
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


def legend_height(structures: Sequence[str], width: float) -> float:
    """Height of the legend in inches on a page of this width; 0 (no legend) for more than `MAX_LEGEND` structures."""
    if not 0 < len(structures) <= MAX_LEGEND:
        return 0.0
    return 0.12 + 0.2 * -(-len(structures) // _legend_columns(structures, width))


def _legend_columns(structures: Sequence[str], width: float) -> int:
    longest = max(len(name) for name in structures)
    return min(max(int(width / (0.6 + 0.09 * longest)), 1), len(structures))
