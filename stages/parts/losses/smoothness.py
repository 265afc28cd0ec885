"""How smooth a displacement field, or a change of intensities, is."""

from __future__ import annotations

import torch
from torch import Tensor


def diffusion_loss(displacement: Tensor) -> Tensor:
    """Mean squared forward difference of a field, averaged over the axes; 0 for a translation.

    Args:
        displacement: (N, 3, D, H, W), voxels.

    Source: VoxelMorph (TMI 2019, Eq. 8), BRBS Eq. 4.
    """
    displacement = displacement.float()
    return sum((displacement.diff(dim=axis) ** 2).mean() for axis in (2, 3, 4)) / 3  # type: ignore[return-value]


def diffusion_losses(displacement: Tensor) -> Tensor:
    """`diffusion_loss` of each field of a batch, (N,)."""
    displacement = displacement.float()
    return sum((displacement.diff(dim=axis) ** 2).mean((1, 2, 3, 4)) for axis in (2, 3, 4)) / 3  # type: ignore[return-value]


def absolute_gradient_loss(displacement: Tensor) -> Tensor:
    """Mean absolute forward difference of a field, averaged over the axes; 0 for a translation.

    Args:
        displacement: (N, 3, D, H, W), voxels.

    Source: SST Eq. 9.
    """
    displacement = displacement.float()
    return sum(displacement.diff(dim=axis).abs().mean() for axis in (2, 3, 4)) / 3  # type: ignore[return-value]


def bending_energy_loss(displacement: Tensor) -> Tensor:
    """Sum of a field's squared second derivatives, mixed ones twice, mean over voxels and components; 0: it is affine.

        u_dd^2 + u_hh^2 + u_ww^2 + 2 u_dh^2 + 2 u_dw^2 + 2 u_hw^2

    The reading: a mean over the components, too, as MONAI's, where Rueckert sums the three of them (3 times as much);
    second differences of neighbours (u(+1) - 2 u + u(-1), and mixed ones from the four diagonal neighbours), away from
    the border. OS-MedSeg's text names forward differences; its published code takes differences over two voxels,
    twice, which do not see a field that alternates from voxel to voxel.

    Args:
        displacement: (N, 3, D, H, W), voxels; at least 3 voxels an axis.

    Returns:
        Scalar >= 0, in 1 / voxels^2.

    Source: Rueckert et al., TMI 1999, Eq. 4; OS-MedSeg Eq. 9.
    """
    field = displacement.float()

    def moved(*steps: int) -> Tensor:
        """The inner voxels' neighbours, this many voxels away along D, H, W."""
        inner = (slice(1 + step, size - 1 + step) for step, size in zip(steps, field.shape[2:], strict=True))
        return field[(slice(None), slice(None), *inner)]

    axes = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    energy = torch.zeros((), device=field.device)
    for i, (d, h, w) in enumerate(axes):
        energy = energy + (moved(d, h, w) - 2 * moved(0, 0, 0) + moved(-d, -h, -w)).square().mean()
        for e, f, g in axes[i + 1 :]:
            alike = moved(d + e, h + f, w + g) + moved(-d - e, -h - f, -w - g)
            opposed = moved(d - e, h - f, w - g) + moved(e - d, f - h, g - w)
            energy = energy + 2 * ((alike - opposed) / 4).square().mean()
    return energy


def masked_smoothness_loss(change: Tensor, contours: Tensor) -> Tensor:
    """Sum over the axes of the mean of |(1 - c) grad psi|; 0 for a change that is constant within each structure.

    A forward difference does not count where its far voxel lies on a contour.

    Args:
        change: psi, (N, 1, D, H, W).
        contours: c, (N, 1, D, H, W), 1 or 0.

    Source: Zhao et al., CVPR 2019; absolute differences, their sum over axes and the far voxel as in the published
    code, whose weights assume them.
    """
    change, free = change.float(), 1 - contours
    return sum((change.diff(dim=axis).abs() * free.narrow(axis, 1, free.shape[axis] - 1)).mean() for axis in (2, 3, 4))  # type: ignore[return-value]
