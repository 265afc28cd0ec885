"""Votes of several warped images, each by how its patch around a voxel resembles the scan's.

Source: Jia, Yap, Shen, NeuroImage 2012; the authors' published program (IGR3D_MABMIS, Gaussian-weighted label fusion).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-4  # added to the width, so that equal images count as well


def patch_distances(warped: Tensor, scan: Tensor, *, radius: int = 1) -> Tensor:
    """Root of the squared differences, summed over the patch of (2 radius + 1)^3 voxels and the channels.

    Args:
        warped: images on the scan's grid, (N, C, D, H, W).
        scan: (1, C, D, H, W).

    Returns:
        (N, D, H, W) >= 0. Patches at the border hold fewer voxels.
    """
    squares = (warped.float() - scan.float()).square().sum(1, keepdim=True)
    edge = 2 * radius + 1
    return (F.avg_pool3d(squares, edge, stride=1, padding=radius)[:, 0] * edge**3).clamp(min=0).sqrt()


def patch_vote(probabilities: Tensor, distance: Tensor) -> Tensor:
    """Class probabilities from the voters' own, with weights exp(-d^2 / (2 h^2)); h is the voters' median d there.

    Args:
        probabilities: of each voter, (N, C, D, H, W), sum to 1.
        distance: `patch_distances`, (N, D, H, W).

    Returns:
        (C, D, H, W), sums to 1.
    """
    width = distance.median(0, keepdim=True).values + LEAST  # the lower one of two in the middle
    weights = torch.exp(-(distance**2) / (2 * width**2))
    return torch.einsum("ndhw,ncdhw->cdhw", weights, probabilities) / weights.sum(0)
