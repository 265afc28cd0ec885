"""Changing how an atlas looks: an additive change of its intensities, and the terms that it is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks import RegistrationNetwork
from stages.parts.samplers import LabelledPair
from stages.parts.warps import warp


class AppearanceChange(nn.Module):
    """psi_a: the intensities to add to an atlas, in its own space, so that it looks like a scan.

    Args:
        network: [atlas, scan brought to the atlas] (N, 2, D, H, W) -> (N, 1, D, H, W).
        backward: registers scans to atlases; it gets no gradient.
    """

    def __init__(self, network: nn.Module, backward: RegistrationNetwork) -> None:
        super().__init__()
        self.network, self.backward_registration = network, backward

    def forward(self, atlas: Tensor, scan: Tensor) -> Tensor:
        """Images (N, 1, D, H, W) in [0, 1] -> the change, (N, 1, D, H, W), float32."""
        with torch.no_grad():
            back = warp(scan, self.backward_registration(scan, atlas))
        return self.network(torch.cat([atlas, back], 1))


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
    found = torch.zeros(label.shape, dtype=torch.bool, device=label.device)
    for axis in (1, 2, 3):
        n = label.shape[axis] - 1
        edge = label.narrow(axis, 1, n) != label.narrow(axis, 0, n)
        found.narrow(axis, 0, n).logical_or_(edge)
        found.narrow(axis, 1, n).logical_or_(edge)
    return found[:, None].float()


def masked_smoothness_loss(change: Tensor, contours: Tensor) -> Tensor:
    """Sum over the axes of the mean of |(1 - c) grad psi|; 0 for a change that is constant within each structure.

    A forward difference is let off where its far voxel lies on a contour.

    Args:
        change: psi, (N, 1, D, H, W).
        contours: c, (N, 1, D, H, W), 1 or 0.

    Source: Zhao et al., CVPR 2019; absolute differences, their sum over axes and the far voxel as in the published
    code, whose weights assume them.
    """
    change, free = change.float(), 1 - contours
    return sum((change.diff(dim=axis).abs() * free.narrow(axis, 1, free.shape[axis] - 1)).mean() for axis in (2, 3, 4))  # type: ignore[return-value]


def reconstruction(result: Recoloured) -> Tensor:
    """Mean square between the recoloured, warped atlas and the scan."""
    return F.mse_loss(result.warped, result.scan)


def appearance_smoothness(result: Recoloured) -> Tensor:
    """`masked_smoothness_loss` of the change."""
    return masked_smoothness_loss(result.change, result.contours)
