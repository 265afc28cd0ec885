"""How far two displacements are from being inverses, and labels from their original after the way there and back."""

from __future__ import annotations

from torch import Tensor

from stages.parts.warps import on_device, warp


def inverse_consistency_loss(forward: Tensor, backward: Tensor) -> Tensor:
    """Mean square of u_fwd(x) + u_bwd(x + u_fwd(x)), in voxels^2; 0 where backward is the inverse of forward.

    Source: BRBS Eq. 2 asks for mutual inverses; this is the residual of their composition.
    """
    return ((forward + warp(backward, forward)) ** 2).mean()


def self_warped_inverse_loss(forward: Tensor, backward: Tensor) -> Tensor:
    """BRBS Eq. 2 as printed: mean square of phi - I(phi^-1) with I(phi^-1) = -T(phi^-1, phi^-1).

    The backward field is warped by itself, which on a smooth field is a worse inverse than plain negation.
    """
    return ((forward + warp(backward, backward)) ** 2).mean()


def robust_penalty(value: Tensor, *, epsilon: float = 1e-3, gamma: float = 0.45) -> Tensor:
    """Generalised Charbonnier penalty (v^2 + epsilon^2)^gamma of every element: nearly |v|, smooth and flat at 0.

    About 0.002 at 0, 1 at 1; grows slower than |v|, so that single large values do not dominate the mean.

    Source: Sun et al., IJCV 2014; epsilon and gamma as in UnFlow (AAAI 2018) and LT-Net (CVPR 2020), below Eq. 8.
    """
    return (value.float().square() + epsilon**2) ** gamma


def robust_inverse_loss(forward: Tensor, backward: Tensor, *, of_grid: bool = False) -> Tensor:
    """Mean robust penalty of each component of u_fwd(x) + u_bwd(x + u_fwd(x)).

    Args:
        forward, backward: (N, 3, D, H, W), voxels.
        of_grid: penalise the residual in coordinates that run from -1 to 1 over the grid, instead of voxels.

    Returns:
        Scalar > 0; at least 0.002, reached where backward is the inverse of forward.

    Source: LT-Net Eq. 8; component by component as UnFlow, where the penalty comes from.
    """
    residual = forward + warp(backward, forward)
    if of_grid:
        sizes = on_device(residual.shape[2:], residual)
        residual = residual * (2 / (sizes - 1).clamp(min=1)).view(1, 3, 1, 1, 1)
    return robust_penalty(residual).mean()


def anatomy_difference_loss(label: Tensor, carried: Tensor, back: Tensor) -> Tensor:
    """Robust penalty of |x - y| - |y - x'|: a label should change back by what it changed on the way there.

    Summed over classes, so that their number does not change its weight; mean over voxels.

    Args:
        label: x, one-hot, (N, C, D, H, W).
        carried: y, x carried over to another image, (N, C, D, H, W).
        back: x', y carried back, (N, C, D, H, W).

    Returns:
        Scalar > 0; at least 0.002 C, where x' equals x (or where x' is as far from y on its other side).

    Source: LT-Net Eq. 10.
    """
    return robust_penalty((label - carried).abs() - (carried - back).abs()).sum(1).mean()
