"""Registration by diffeomorphic demons, without gradients of a loss: it runs in inference mode, and is fast.

Source: Vercauteren, Pennec, Perchant, Ayache, "Diffeomorphic demons", NeuroImage 2009; forces as in ITK.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.parts.pyramid import blurred, levels_of, shrunk
from stages.parts.warps import compose, integrate, rescale, squarings_for, warp

QUIET = 1e-3  # differences of intensities below this move nothing: rounding would move flat regions


@dataclass(frozen=True)
class Demons:
    """One image moved to another one, coarse to fine, from a displacement that is known to be near.

        u <- G (u o exp(d J / (|J|^2 + (d / (2 longest))^2))),  d = fixed - moving o u,  J the mean of both gradients

    G smooths the whole displacement. Channels of an image pull together.

    Args:
        iterations: coarse to fine.
        sigma: of G (voxels of each level).
        longest: most voxels of a level that one iteration moves a point.
        spacing_mm: of the images (D, H, W); levels follow its ratios, and thick slices are smoothed less.
    """

    iterations: Sequence[int]
    sigma: float = 1.5
    longest: float = 2.0
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, moving: Tensor, fixed: Tensor, start: Tensor | None = None) -> Tensor:
        """Images (N, C, D, H, W) in [0, 1] -> displacements (N, 3, D, H, W), voxels, float32.

        Args:
            start: displacements to begin with; None: no displacement.
        """
        levels = levels_of(fixed.shape[2:], self.spacing_mm, len(self.iterations))
        pyramid = [(moving.float(), fixed.float())]
        for level in levels[1:]:
            pyramid.append((shrunk(pyramid[-1][0], level.shape), shrunk(pyramid[-1][1], level.shape)))
        displacement = fixed.new_zeros(len(fixed), 3, *fixed.shape[2:]).float() if start is None else start.float()
        for level, (one, other), steps in zip(reversed(levels), reversed(pyramid), self.iterations, strict=True):
            displacement = rescale(displacement, level.shape)
            sigmas = [self.sigma * min(level.spacing) / mm for mm in level.spacing]
            gradient = _gradient(other)
            for _ in range(steps):
                displacement = blurred(compose(displacement, self._step(one, other, gradient, displacement)), sigmas)
        return displacement

    def _step(self, moving: Tensor, fixed: Tensor, gradient: Tensor, displacement: Tensor) -> Tensor:
        warped = warp(moving, displacement)
        difference = (fixed - warped)[:, :, None]  # (N, C, 1, D, H, W)
        difference = torch.where(difference.abs() < QUIET, 0.0, difference)
        slope = (gradient + _gradient(warped)) / 2
        below = slope.square().sum((1, 2)) + (difference / (2 * self.longest)).square().sum((1, 2))
        velocity = (difference * slope).sum(1) / below.clamp(min=1e-9)[:, None]
        return integrate(velocity, steps=squarings_for(velocity))


def _gradient(image: Tensor) -> Tensor:
    """Central differences a voxel, (N, C, 3, D, H, W); 0 along axes of one voxel."""
    along = [
        torch.gradient(image, dim=axis)[0] if image.shape[axis] > 1 else torch.zeros_like(image) for axis in (2, 3, 4)
    ]
    return torch.stack(along, 2)


def inverse(displacement: Tensor, *, iterations: int = 20) -> Tensor:
    """The displacement v that undoes u, by v(x) <- -u(x + v(x)); (N, 3, D, H, W), voxels.

    Converges where u changes by less than a voxel from voxel to voxel.
    """
    back = -displacement
    for _ in range(iterations):
        back = -warp(displacement, back)
    return back
