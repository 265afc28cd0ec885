"""Registering one pair at a time without learning: gradient descent on the pair's own velocity field."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.parts.discrete import on_level, start_velocity
from stages.parts.folding import folding_loss, without_folds
from stages.parts.losses import LnccTo, diffusion_loss
from stages.parts.pyramid import Level, levels_of, shrunk
from stages.parts.warps import integrate, squarings_for, warp

WINDOW = 9  # of LNCC, voxels of the finest axes
FOLDING_WEIGHT = 5.0
PATIENCE, LEAST_GAIN = 10, 2e-4  # a level ends where the loss falls by less than this in so many steps


@dataclass(frozen=True)
class InstanceOptimisation:
    """Adam on a stationary velocity field at half the images' resolution, on a pyramid of images.

        LNCC(moving o exp(v), fixed) + smoothness * diffusion(exp(v)) + 5 * folding(exp(v))

    As iterative methods do, but with the loss and the integration of a diffeomorphic registration network. On the
    coarsest level two starts compete, no displacement and a discrete search that sees far (`stages.parts.discrete`);
    the one with the lower loss goes on. What still folds at the end is mended (`stages.parts.folding`).

    Args:
        coarse_steps: on each of the coarser levels.
        fine_steps: on the images as they are.
        learning_rate: of Adam; about the voxels by which a velocity changes in one step.
        smoothness: weight of the displacement's diffusion loss.
        spacing_mm: of the images' voxels (D, H, W); levels and windows follow its ratios.
        levels: of the pyramid.

    Source: Balakrishnan et al., "VoxelMorph", TMI 2019 (instance-specific optimisation); Arsigny et al.,
    MICCAI 2006; Avants et al., MedIA 2008 (LNCC).
    """

    coarse_steps: int = 40
    fine_steps: int = 15
    learning_rate: float = 0.1
    smoothness: float = 1.0
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    levels: int = 3

    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (1, C, D, H, W) in [0, 1] -> displacement (1, 3, D, H, W), voxels, float32."""
        levels = levels_of(moving.shape[2:], self.spacing_mm, self.levels + 1)
        pyramid = [(moving.float(), fixed.float())]
        for level in levels[1:-1]:
            pyramid.append((shrunk(pyramid[-1][0], level.shape), shrunk(pyramid[-1][1], level.shape)))
        velocity = torch.zeros(1, 3, *levels[-1].shape, device=moving.device)
        for place in reversed(range(self.levels)):
            level, half = levels[place], levels[place + 1].shape
            is_coarsest, steps = place == self.levels - 1, self.coarse_steps if place else self.fine_steps
            similarity = _similarity(pyramid[place][1], level)
            descent = _Descent(self, pyramid[place][0], similarity)
            starts = [on_level(velocity, half)]
            if is_coarsest and steps:
                starts.append(on_level(start_velocity(moving, fixed, self.spacing_mm), half))
            ends = [descent(start, steps) for start in starts]
            velocity = min(ends, key=lambda end: end[1])[0]
        return without_folds(velocity, lambda v: displacement_of(v, levels[0].shape))


@dataclass(frozen=True)
class _Descent:
    """Gradient descent on one level.

    Args:
        moving: image (1, C, D, H, W).
        similarity: warped image -> loss.
    """

    of: InstanceOptimisation
    moving: Tensor
    similarity: LnccTo

    def __call__(self, velocity: Tensor, steps: int) -> tuple[Tensor, float]:
        """The velocity after at most so many steps, and the loss before the last one (0 without steps).

        No displacement stays none if no step has lowered its loss: Adam makes steps of rounding errors, too.
        """
        start, first, total = velocity, 0.0, 0.0
        with torch.enable_grad():
            velocity = velocity.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([velocity], lr=self.of.learning_rate)
            for step in range(steps):
                loss = self._loss(velocity)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                first = first if step else float(loss.detach())
                if step % PATIENCE == PATIENCE - 1 or step == steps - 1:
                    before, total = total, float(loss.detach())
                    if before and before - total < LEAST_GAIN:
                        break
        if steps > 1 and total >= first and not start.any():
            return start, first
        return velocity.detach(), total

    def _loss(self, velocity: Tensor) -> Tensor:
        displacement = integrate(velocity, steps=squarings_for(velocity))
        smoothness = diffusion_loss(displacement)  # of the same slopes as on the images' grid, at an eighth of the cost
        warped = warp(self.moving, on_level(displacement, tuple(self.moving.shape[2:])))
        return self.similarity(warped) + self.of.smoothness * smoothness + FOLDING_WEIGHT * folding_loss(displacement)


def _similarity(fixed: Tensor, level: Level) -> LnccTo:
    window = level.window(WINDOW)
    return LnccTo(fixed, window, level.strides(window))


def displacement_of(velocity: Tensor, shape: tuple[int, ...]) -> Tensor:
    """exp(v) on a grid over the same extent, (1, 3, *shape), in its voxels."""
    return on_level(integrate(velocity, steps=squarings_for(velocity)), shape)
