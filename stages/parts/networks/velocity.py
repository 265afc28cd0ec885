"""A registration network that predicts Gaussians of velocity fields: VoxelMorph's probabilistic model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.warps import halved, integrate, rescale, resize

FIRST_LOG_VARIANCE = -10.0  # of an untrained network: samples lie close to the mean


class VelocityDistribution(RegistrationNetwork):
    """A network over [fixed, moving] as a map of image pairs to Gaussians of stationary velocity fields.

    The velocity lives on a grid of half the resolution. Answers integrate its mean, in 7 steps.

    Args:
        body: (N, 2 C, D, H, W) -> (N, 6, ...), three channels of the mean and three of the log-variance, which is
            counted from -10; on the half grid, or on the images' own, from which it is then resampled.
        antisymmetric: the mean changes sign when the roles are swapped, as in `RegistrationNetwork`; the variance
            stays.

    Source: Dalca et al., MedIA 2019; the first variance as in the published code.
    """

    def __init__(self, body: nn.Module, *, antisymmetric: bool = False) -> None:
        super().__init__(body, diffeomorphic=True, antisymmetric=antisymmetric)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (N, C, D, H, W) -> displacement of the mean velocity (N, 3, D, H, W), voxels, float32."""
        mean, _ = self.distribution(moving, fixed)
        return self.displacement(mean, tuple(fixed.shape[2:]))

    def both_ways(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self(torch.cat([moving, fixed]), torch.cat([fixed, moving]))

    def distribution(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the velocity, (N, 3, D / 2, H / 2, W / 2) each, sizes rounded up.

        In voxels of that grid, and the logarithm of their squares; float32.
        """
        pairs = torch.cat([fixed, moving], 1)
        if self.antisymmetric:
            pairs = torch.cat([pairs, torch.cat([moving, fixed], 1)])
        mean, log_variance = self.body(pairs).float().chunk(2, 1)
        if self.antisymmetric:
            (here, there), (forward, backward) = mean.chunk(2), log_variance.chunk(2)
            mean, log_variance = (here - there) / 2, (forward + backward) / 2
        shape = halved(tuple(fixed.shape[2:]))
        if tuple(mean.shape[2:]) != shape:
            mean, log_variance = rescale(mean, shape), resize(log_variance, shape)
        return mean, FIRST_LOG_VARIANCE + log_variance

    def displacement(self, velocity: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A velocity on the half grid, integrated: (N, 3, D, H, W) of `shape`, in its voxels."""
        with torch.autocast(velocity.device.type, enabled=False):
            return rescale(integrate(velocity), shape)
