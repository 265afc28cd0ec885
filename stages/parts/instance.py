"""Registering one pair at a time without learning: gradient descent on the pair's own velocity field."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.parts.augmentation import gaussian_blur
from stages.parts.losses import diffusion_loss, lncc_loss
from stages.parts.warps import halved, integrate, rescale, resize, warp


@dataclass(frozen=True)
class InstanceOptimisation:
    """Adam on a stationary velocity field at half resolution, first on half-size images, then on full ones.

        LNCC(moving o exp(v), fixed) + smoothness * diffusion(exp(v))

    As iterative methods do, but with the loss and the integration of a diffeomorphic registration network.

    Args:
        coarse_steps: on images of half the size, velocities at a quarter.
        fine_steps: on the images as they are.
        learning_rate: of Adam; about the voxels by which a velocity changes in one step.
        smoothness: weight of the displacement's diffusion loss.

    Source: Balakrishnan et al., "VoxelMorph", TMI 2019 (instance-specific optimisation); Arsigny et al.,
    MICCAI 2006; Avants et al., MedIA 2008 (LNCC).
    """

    coarse_steps: int = 60
    fine_steps: int = 40
    learning_rate: float = 0.1
    smoothness: float = 1.0

    SQUARINGS = 5

    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (1, 1, D, H, W) in [0, 1] -> displacement (1, 3, D, H, W), voxels, float32."""
        shape = tuple(moving.shape[2:])
        half = halved(shape)
        small_moving, small_fixed = (resize(gaussian_blur(image, 0.8), half) for image in (moving, fixed))
        velocity = torch.zeros(1, 3, *halved(half), device=moving.device)
        velocity = self._descend(small_moving, small_fixed, velocity, steps=self.coarse_steps, window=7)
        velocity = self._descend(moving, fixed, rescale(velocity, half), steps=self.fine_steps, window=9)
        return self._displacement(velocity, shape)

    def _displacement(self, velocity: Tensor, shape: tuple[int, ...]) -> Tensor:
        return rescale(integrate(velocity, steps=self.SQUARINGS), shape)

    def _descend(self, moving: Tensor, fixed: Tensor, velocity: Tensor, *, steps: int, window: int) -> Tensor:
        with torch.enable_grad():
            velocity = velocity.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([velocity], lr=self.learning_rate)
            for _ in range(steps):
                displacement = self._displacement(velocity, tuple(moving.shape[2:]))
                loss = lncc_loss(warp(moving, displacement), fixed, window=window)
                loss = loss + self.smoothness * diffusion_loss(displacement)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return velocity.detach()
