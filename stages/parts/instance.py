"""Registering pairs without learning: gradient descent on each pair's own velocity field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.parts.discrete import on_level, start_velocity
from stages.parts.folding import folding_losses, without_folds
from stages.parts.losses import LnccTo, diffusion_losses
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

    Pairs of a batch share the steps and nothing else: each has its own losses, start and end, and its displacement is
    what it would be alone, up to rounding. They fill a GPU; on the CPU, pairs in processes of their own are faster.

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
        """Images (N, C, D, H, W) in [0, 1], a pair a row -> displacements (N, 3, D, H, W), voxels, float32."""
        levels = levels_of(moving.shape[2:], self.spacing_mm, self.levels + 1)
        pyramid = [(moving.float(), fixed.float())]
        for level in levels[1:-1]:
            pyramid.append((shrunk(pyramid[-1][0], level.shape), shrunk(pyramid[-1][1], level.shape)))
        velocity = torch.zeros(len(moving), 3, *levels[-1].shape, device=moving.device)
        for place in reversed(range(self.levels)):
            level, half = levels[place], levels[place + 1].shape
            is_coarsest, steps = place == self.levels - 1, self.coarse_steps if place else self.fine_steps
            similarity = _similarity(pyramid[place][1], level)
            descent = _Descent(self, pyramid[place][0], similarity)
            starts = [on_level(velocity, half)]
            if is_coarsest and steps:
                starts.append(on_level(start_velocity(moving, fixed, self.spacing_mm), half))
            velocity = _better([descent(start, steps) for start in starts])
        mended = [without_folds(one, lambda v: displacement_of(v, levels[0].shape)) for one in velocity.split(1)]
        return torch.cat(mended)


def _better(ends: Sequence[tuple[Tensor, list[float]]]) -> Tensor:
    """The velocity of the lower loss, pair by pair."""
    best = [min(range(len(ends)), key=lambda start: ends[start][1][pair]) for pair in range(len(ends[0][1]))]
    return torch.stack([ends[start][0][pair] for pair, start in enumerate(best)])


@dataclass(frozen=True)
class _Descent:
    """Gradient descent on one level.

    Args:
        moving: images (N, C, D, H, W).
        similarity: warped images -> losses (N,).
    """

    of: InstanceOptimisation
    moving: Tensor
    similarity: LnccTo

    def __call__(self, velocity: Tensor, steps: int) -> tuple[Tensor, list[float]]:
        """The velocities after at most so many steps, and each pair's loss before its last one (0 without steps).

        A pair that has ended keeps its velocity, and the others go on without it. No displacement stays none if no
        step has lowered its loss: Adam makes steps of rounding errors, too.
        """
        going, here = list(range(len(velocity))), self
        ends, first, last = list(velocity.split(1)), [0.0] * len(going), [0.0] * len(going)
        with torch.enable_grad():
            moved = velocity.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([moved], lr=self.of.learning_rate)
            for step in range(steps):
                losses = here._losses(moved)
                optimizer.zero_grad()
                losses.sum().backward()
                optimizer.step()
                if not step:
                    at_first = losses.detach()
                if step % PATIENCE != PATIENCE - 1 and step != steps - 1:
                    continue
                before, now = [last[pair] for pair in going], losses.tolist()
                go_on = [k for k in range(len(going)) if not (before[k] and before[k] - now[k] < LEAST_GAIN)]
                for k, pair in enumerate(going):
                    ends[pair], last[pair] = moved.detach()[k : k + 1], now[k]
                if not go_on:
                    break
                if len(go_on) < len(going):
                    going, here = [going[k] for k in go_on], here._only(go_on)
                    moved, optimizer = _only(optimizer, moved, go_on)
        if steps > 1:
            first, moves = at_first.tolist(), velocity.flatten(1).any(1).tolist()
            for pair, start in enumerate(velocity.split(1)):
                if last[pair] >= first[pair] and not moves[pair]:
                    ends[pair], last[pair] = start, first[pair]
        return torch.cat(ends), last

    def _only(self, rows: Sequence[int]) -> _Descent:
        """The same of some of the pairs."""
        return _Descent(self.of, self.moving[rows], self.similarity.only(rows))

    def _losses(self, velocity: Tensor) -> Tensor:
        displacement = integrate(velocity, steps=squarings_for(velocity))
        smoothness = diffusion_losses(displacement)  # as on the images' grid, where slopes are the same, at an eighth
        warped = warp(self.moving, on_level(displacement, tuple(self.moving.shape[2:])))
        return self.similarity(warped) + self.of.smoothness * smoothness + FOLDING_WEIGHT * folding_losses(displacement)


def _only(optimizer: torch.optim.Adam, velocity: Tensor, rows: Sequence[int]) -> tuple[Tensor, torch.optim.Adam]:
    """Some of the rows of a velocity, and an optimiser that goes on with them."""
    some = velocity.detach()[rows].requires_grad_(True)
    another = torch.optim.Adam([some], lr=optimizer.param_groups[0]["lr"])
    another.state[some] = {name: each[rows] if each.ndim else each for name, each in optimizer.state[velocity].items()}
    return some, another


def _similarity(fixed: Tensor, level: Level) -> LnccTo:
    window = level.window(WINDOW)
    return LnccTo(fixed, window, level.strides(window))


def displacement_of(velocity: Tensor, shape: tuple[int, ...]) -> Tensor:
    """exp(v) on a grid over the same extent, (N, 3, *shape), in its voxels."""
    return on_level(integrate(velocity, steps=squarings_for(velocity)), shape)
