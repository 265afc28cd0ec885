"""How far a Gaussian velocity field is from a smooth prior."""

from __future__ import annotations

import torch
from torch import Tensor


def velocity_kl_loss(mean: Tensor, log_variance: Tensor, *, prior_lambda: float) -> Tensor:
    """KL divergence of a diagonal Gaussian from the smoothness prior N(0, (lambda (D - A))^-1), per voxel.

        1/2 [ sum_i (lambda D_ii exp(s_i) - s_i) + lambda sum_(i~j) (m_i - m_j)^2 ] / voxels

    D - A is the Laplacian of the graph in which a voxel neighbours the six beside it, fewer at the border: D_ii is the
    number of its neighbours, A is 1 for neighbours. The determinant of the prior and the dimension, which are constant,
    are left out (the Laplacian is singular: a translation costs nothing), so the value may be negative.

    Args:
        mean: m, (N, 3, D, H, W), velocity in voxels of its own grid.
        log_variance: s, (N, 3, D, H, W), logarithms of variances in voxels^2.
        prior_lambda: lambda > 0; larger: smoother.

    Returns:
        Scalar: the three components are summed, voxels and batch averaged.

    Source: Dalca et al., "Unsupervised learning of probabilistic diffeomorphic registration for images and surfaces",
    MedIA 2019, the KL term of the variational bound. The published code halves the sum over neighbours once more.
    """
    mean, log_variance = mean.float(), log_variance.float()
    voxels = mean.shape[0] * mean[0, 0].numel()
    degree = torch.zeros(mean.shape[2:], device=mean.device)
    between = torch.zeros((), device=mean.device)
    for axis in range(3):
        size = degree.shape[axis]
        if size > 1:
            degree.narrow(axis, 0, size - 1).add_(1)
            degree.narrow(axis, 1, size - 1).add_(1)
        between = between + mean.diff(dim=2 + axis).square().sum()
    alone = (prior_lambda * degree * log_variance.exp() - log_variance).sum()
    return (alone + prior_lambda * between) / (2 * voxels)
