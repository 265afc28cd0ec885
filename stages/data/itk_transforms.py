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
from stages.artifacts.h5 import new_h5
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


def write_transform(transform: sitk.CompositeTransform, path: Path) -> None:
    """Write a transform as .h5, in full or not at all.

    Raises:
        LrlsError: the file cannot be written.
    """
    write_whole(path, lambda temporary: _write(transform, temporary))


def _write(transform: sitk.CompositeTransform, path: Path) -> None:
    """The layout is that of files that ITK 5.4 writes. Its own writer ends the process where the disk is full."""
    import h5py

    with new_h5(path) as file:

        def add(number: int, kind: str) -> h5py.Group:
            group = file.create_group(f"TransformGroup/{number}")
            name = [f"{kind}_double_3_3"]
            group.create_dataset("TransformType", data=name, dtype=h5py.string_dtype("ascii"))
            return group

        add(0, "CompositeTransform")
        for number in range(transform.GetNumberOfTransforms()):
            part = transform.GetNthTransform(number)
            if part.GetTransformEnum() == sitk.sitkDisplacementField:
                group = add(number + 1, "DisplacementFieldTransform")
                field = sitk.DisplacementFieldTransform(part).GetDisplacementField()
                values = sitk.GetArrayFromImage(field).ravel()
            else:
                group = add(number + 1, "AffineTransform")
                values = np.array(part.GetParameters())
            group["TransformFixedParameters"] = np.array(part.GetFixedParameters())
            group["TransformParameters"] = values
