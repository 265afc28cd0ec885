"""Registrations: atlas, scan, warped atlas and deformation grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from stages.parts.metrics import jacobian_determinant
from stages.pictures.kit import INK, Row, image_grid, name_row, save, structure_legend, write_note
from stages.pictures.slices import FOLD, best_slice, cut, draw_contours, paint, plane_size, show_slice


def registration_overlay(rows: Sequence[Row], path: Path, *, structures: Sequence[str] = ()) -> None:
    """Atlas, scan, warped atlas, their checkerboard and the deformation grid, one row per scan.

    Shows the axial slice with the most warped label, or the middle slice without a label. The grid's lines are
    x + u(x) within the slice: the position in the atlas that each voxel of the scan is read from. Voxels where the
    mapping folds, |J| <= 0, are red, and their share of the whole grid stands above.

    Args:
        rows: `case` (of the scan); `atlas`, `warped` and `scan` (D, H, W), intensities in [0, 1]; `displacement`
            (3, D, H, W), voxels; and optionally `warped_label` (D, H, W) and `spacing_mm`.
        path: PNG file to write.
        structures: names for the legend.
    """
    if not rows:
        write_note("no registrations", path)
        return
    headings = ("atlas", "scan, propagated label", "warped atlas", "scan | warped, checkerboard")
    shapes = [plane_size(row["scan"].shape, 0, row.get("spacing_mm")) for row in rows]
    figure, grid = image_grid(shapes, len(headings) + 1, width=2.5, left=0.3, titles=0.2, structures=structures)
    for number, (row, row_axes) in enumerate(zip(rows, grid, strict=True)):
        label, spacing_mm = row.get("warped_label"), row.get("spacing_mm")
        index = best_slice(label, row["scan"].shape, 0)
        atlas, scan, warped = (cut(row[name], 0, index) for name in ("atlas", "scan", "warped"))
        board = np.add.outer(*(np.arange(size) * 8 // max(size, 1) for size in scan.shape)) % 2 == 0
        for axes, image in zip(row_axes, (atlas, scan, warped, np.where(board, scan, warped), scan), strict=True):
            show_slice(axes, image, 0, spacing_mm)
        if label is not None:
            for axes in row_axes[1:3]:
                draw_contours(axes, cut(label, 0, index))
        folds = _folds(row["displacement"])
        paint(row_axes[-1], cut(folds, 0, index), FOLD)
        _draw_deformation_grid(row_axes[-1], row["displacement"][1:, index])
        name_row(row_axes[0], str(row["case"]))
        for axes, heading in zip(row_axes, headings if number == 0 else (), strict=False):
            axes.set_title(heading, fontsize=9, color=INK)
        row_axes[-1].set_title(f"grid x + u(x), folded {folds.mean():.3%}", fontsize=9, color=INK)
    structure_legend(figure, structures)
    save(figure, path)


def _folds(displacement: np.ndarray) -> np.ndarray:
    """Where x + u(x) folds, as `folding_fraction` counts it; displacement (3, D, H, W), voxels -> (D, H, W)."""
    return ~(jacobian_determinant(torch.from_numpy(displacement)[None])[0] > 0).numpy()


def _draw_deformation_grid(axes: Axes, displacement: np.ndarray) -> None:
    """Draw lines of x + u(x); displacement (2, H, W), voxels."""
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
