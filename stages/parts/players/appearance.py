"""Training of an additive change of an atlas's intensities: the recoloured, warped atlas, and its loss terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts import losses
from stages.parts.batches.pairs import LabelledPair
from stages.parts.networks.appearance import AppearanceChange
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.warps import warp


@dataclass
class Recoloured:
    """Atlases that were made to look like scans."""

    change: Tensor  # psi_a, (N, 1, D, H, W), in the atlases' space
    contours: Tensor  # of the atlases' labels, (N, 1, D, H, W), 1 or 0
    warped: Tensor  # T(A + psi_a, phi), (N, 1, D, H, W)
    scan: Tensor


@dataclass
class Recolour:
    """Forward pass of the appearance player; the registration networks get no gradient."""

    appearance: AppearanceChange
    forward: RegistrationNetwork

    def __call__(self, batch: LabelledPair) -> Recoloured:
        with torch.no_grad():
            path = self.forward(batch.moving, batch.fixed)
        change = self.appearance(batch.moving, batch.fixed)
        return Recoloured(change, contours(batch.label), warp(batch.moving + change, path), batch.fixed)


def contours(label: Tensor) -> Tensor:
    """1 where a voxel has a neighbour across a face that is of another class: both sides of every boundary.

    Args:
        label: class indices, (N, D, H, W).

    Returns:
        (N, 1, D, H, W), float32.
    """
    boundary = torch.zeros(label.shape, dtype=torch.bool, device=label.device)
    for axis in (1, 2, 3):
        n = label.shape[axis] - 1
        edge = label.narrow(axis, 1, n) != label.narrow(axis, 0, n)
        boundary.narrow(axis, 0, n).logical_or_(edge)
        boundary.narrow(axis, 1, n).logical_or_(edge)
    return boundary[:, None].float()


def reconstruction(result: Recoloured) -> Tensor:
    """Mean square between the recoloured, warped atlas and the scan."""
    return F.mse_loss(result.warped, result.scan)


def appearance_smoothness(result: Recoloured) -> Tensor:
    """`losses.masked_smoothness_loss` of the change."""
    return losses.masked_smoothness_loss(result.change, result.contours)
