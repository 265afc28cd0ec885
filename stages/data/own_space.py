"""From the cohort's grid back to a scan's own voxels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from stages.artifacts.cohort import Grid
from stages.parts.warps import sample, voxel_grid

SLAB_VOXELS = 2**19


def own_to_grid(record: dict[str, Any], grid: Grid) -> np.ndarray:
    """Affine map (4 x 4) of a scan's voxel coordinates to the grid's, both in axis order (D, H, W)."""

    def voxels_to_mm(spacing: Any, origin: Any, direction: Any) -> np.ndarray:
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(direction).reshape(3, 3) @ np.diag(spacing)
        matrix[:3, 3] = origin
        return matrix

    own = voxels_to_mm(record["spacing"], record["origin"], record["direction"])
    on_grid = voxels_to_mm(grid.spacing_mm[::-1], grid.origin, grid.direction)
    map_xyz = np.linalg.inv(on_grid) @ np.linalg.inv(np.array(record["matrix"])) @ own
    order = [2, 1, 0, 3]
    return map_xyz[np.ix_(order, order)]


def classes_in_own_space(probabilities: Tensor, record: dict[str, Any], grid: Grid) -> np.ndarray:
    """The most probable class at each of the scan's own voxels; background outside the grid.

    Interpolates probabilities, not labels, slab by slab, so that no full-size one-hot map is held in memory.

    Args:
        probabilities: (C, D, H, W) on the grid.
        record: of the scan; see `stages.data.prepare.prepare`.

    Returns:
        Class indices (D', H', W') in the scan's stored order.
    """
    classes = []
    for slab in in_own_space(probabilities[1:], record, grid):
        best, index = slab.max(0)
        index = torch.where(best > 1 - slab.sum(0), index + 1, 0)
        classes.append(index.cpu().numpy().astype(np.min_scalar_type(len(probabilities) - 1)))
    return np.concatenate(classes)


def in_own_space(maps: Tensor, record: dict[str, Any], grid: Grid) -> Iterator[Tensor]:
    """Maps (C, D, H, W) on the grid, sampled at the scan's own voxels, in slabs (C, n, H', W'); 0 outside the grid."""
    width, height, depth = (int(n) for n in record["size"])
    matrix = torch.from_numpy(own_to_grid(record, grid)).float().to(maps.device)
    slab = max(1, SLAB_VOXELS // (height * width))
    for start in range(0, depth, slab):
        index = voxel_grid((min(slab, depth - start), height, width), maps)
        index[:, 0] += start
        points = torch.einsum("ij,njdhw->nidhw", matrix[:3, :3], index) + matrix[:3, 3].view(1, 3, 1, 1, 1)
        yield sample(maps[None].float(), points, padding="zeros")[0]


def as_label_image(values: np.ndarray, record: dict[str, Any]) -> sitk.Image:
    """A label map as an image with the scan's own geometry."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(record["spacing"])
    image.SetOrigin(record["origin"])
    image.SetDirection(record["direction"])
    return image
