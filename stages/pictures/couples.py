"""Generated couples of image and label, with the scans they came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.pictures.kit import INK, Row, image_grid, plain, save, structure_legend, write_note
from stages.pictures.slices import Spacing, best_slice, cut, draw_contours, plane_size, show_slice


def couples_page(
    couples: Sequence[Row], path: Path, *, structures: Sequence[str] = (), spacing_mm: Spacing | None = None
) -> None:
    """Generated couples: the axial slice with the most label, its contours, and the scans that the couple came from.

    Args:
        couples: `image` (D, H, W), intensities in [0, 1]; `label` (D, H, W); `alpha`, `beta` (fraction of the way to
            the space and the style scan); case ids `atlas`, `scan`, `space`, `style`. All but `image` may be None.
        path: PNG file to write.
        structures: names for the legend.
        spacing_mm: of all couples; isotropic by default.
    """
    if not couples:
        write_note("no generated couples", path)
        return
    columns = min(len(couples), 5)
    rows = [couples[start : start + columns] for start in range(0, len(couples), columns)]
    shapes = [plane_size(row[0]["image"].shape, 0, spacing_mm) for row in rows]
    figure, grid = image_grid(shapes, columns, width=2.5, left=0.08, titles=0.58, structures=structures)
    for row, row_axes in zip(rows, grid, strict=True):
        for axes in row_axes[len(row) :]:
            axes.remove()
        for couple, axes in zip(row, row_axes, strict=False):
            label = couple.get("label")
            index = best_slice(label, couple["image"].shape, 0)
            show_slice(axes, cut(couple["image"], 0, index), 0, spacing_mm)
            if label is not None:
                draw_contours(axes, cut(label, 0, index))
            axes.set_title(_provenance(couple), fontsize=7.5, color=INK, loc="left", linespacing=1.25)
    structure_legend(figure, structures)
    save(figure, path)


def _provenance(couple: Row) -> str:
    """The scans that a couple came from, one per line, with the fraction of the way to each."""
    lines = []
    for scan, share, sign in (("atlas", "", ""), ("scan", "", ""), ("space", "alpha", "α"), ("style", "beta", "β")):
        if couple.get(scan) is not None:
            amount = "" if couple.get(share) is None else f"  {sign} {couple[share]:.2f}"
            name, *further = str(couple[scan]).split("+")  # several: drawn between scans, or voted by atlases
            if further and len(str(couple[scan])) > 36:
                name, further = f"{name} + {len(further)} more", []
            lines.append(plain("+".join([f"{scan} {name}", *further])) + amount)
    return "\n".join(lines)
