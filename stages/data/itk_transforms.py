"""Where an atlas went, as one file that ITK reads: SimpleITK, ANTs (`antsApplyTransforms`), 3D Slicer.

The file maps points of the scan's own space to points of the atlas's own space, in mm, LPS, so that resampling through
it lays the atlas, or anything that lies on the atlas, on the scan: the scan's alignment backwards, the displacement on
the cohort's grid, the atlas's alignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.artifacts.cohort import Grid
from stages.data.alignment import affine_transform
from stages.data.writers import write_whole


def atlas_to_scan(
    displacement: np.ndarray, grid: Grid, record: Mapping[str, Any], atlas_matrix: np.ndarray
) -> sitk.CompositeTransform:
    """The transform that resamples an atlas on a scan.

    Args:
        displacement: of the atlas on the grid, (3, D, H, W), voxels.
        record: of the scan; see `stages.data.prepare.prepare`.
        atlas_matrix: 4 x 4, reference mm -> atlas mm.
    """
    along_axes = displacement[::-1].transpose(1, 2, 3, 0) * np.array(grid.spacing_mm[::-1])  # (D, H, W, xyz), mm
    in_mm = along_axes.astype(np.float64) @ np.reshape(grid.direction, (3, 3)).T
    field = sitk.GetImageFromArray(in_mm, isVector=True)
    field.CopyInformation(grid.as_image())
    transform = sitk.CompositeTransform(3)
    transform.AddTransform(affine_transform(np.asarray(atlas_matrix)))
    transform.AddTransform(sitk.DisplacementFieldTransform(field))
    transform.AddTransform(affine_transform(np.linalg.inv(np.array(record["matrix"]))))  # added last, applied first
    return transform


def write_transform(transform: sitk.Transform, path: Path) -> None:
    """Write a transform as .h5, in full or not at all.

    Raises:
        LrlsError: the file cannot be written.
    """
    write_whole(path, lambda temporary: sitk.WriteTransform(transform, str(temporary)))
