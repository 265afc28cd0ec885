"""A start for registration that sees far: dense displacement costs and coupled convex optimisation.

Gradient descent finds the nearest minimum. Here every displacement within reach is tried at every place of a coarse
grid, so that an organ that lies far from the atlas's, or beside another one that looks alike, is found as well.

Heinrich, Papież, Schnabel, Handels, "Non-parametric discrete registration with convex optimisation", WBIR 2014;
Siebert, Hansen, Heinrich, "Fast 3D registration with accurate optimisation and little learning for Learn2Reg 2021".
"""

from __future__ import annotations

from itertools import combinations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts.pyramid import levels_of, shrunk
from stages.parts.warps import integrate, rescale, squarings_for, warp

HALVINGS = 2  # of the images, to the grid of the search
REACH = 3  # voxels of that grid, along each axis
COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # weights that tie the choices to their smooth mean, one after another
ROUNDS = 10  # of making the two directions inverses, and of taking the logarithm

# The pairs of neighbours that lie at right angles seen from the voxel: 12 of the 15 pairs of six.
SIX = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
PAIRS = [(a, b) for a, b in combinations(SIX, 2) if a != tuple(-step for step in b)]


def mind_ssc(image: Tensor) -> Tensor:
    """MIND-SSC: how unlike one another a voxel's neighbours are; equal for any monotone or inverted contrast.

        exp(-(D_k - min D) / mean(D - min D)),  D_k: mean squared difference of a pair's patches of 3^3

    Args:
        image: (N, C, D, H, W); at least 2 voxels an axis.

    Returns:
        (N, 12 C, D, H, W) in (0, 1].

    Source: Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using
    self-similarities", MICCAI 2013.
    """
    n, channels, *shape = image.shape
    image = image.flatten(0, 1)[:, None]
    padded = F.pad(image, [1] * 6, mode="replicate")

    def seen_from(step: tuple[int, ...]) -> Tensor:
        d, h, w = (slice(1 + way, 1 + way + n) for way, n in zip(step, shape, strict=True))
        return padded[..., d, h, w]

    differences = torch.cat([(seen_from(a) - seen_from(b)).square() for a, b in PAIRS], 1)
    distance = patch_mean(differences)
    distance = distance - distance.amin(1, keepdim=True)
    spread = distance.mean(1, keepdim=True).unflatten(0, (n, channels))
    usual = spread.mean((1, 2, 3, 4, 5), keepdim=True)
    spread = spread.clamp(1e-3 * usual, 1e3 * usual).flatten(0, 1)
    features = torch.exp(-distance / spread).reshape(n, -1, *shape)
    return torch.where(usual[:, 0] > 0, features, 1.0)  # 1: a flat image


def patch_mean(image: Tensor) -> Tensor:
    """Mean over 3^3 voxels, border repeated; (N, C, D, H, W)."""
    return F.avg_pool3d(F.pad(image, [1] * 6, mode="replicate"), 3, stride=1)


def convex_displacement(moving: Tensor, fixed: Tensor, *, reach: int = REACH) -> Tensor:
    """The smooth displacement that suits the costs of all displacements within reach.

        alternately  d(x) = argmin_k cost(x, k) + theta |k - u(x)|^2,  u = smooth(d),  theta rising

    Args:
        moving, fixed: features (N, C, D, H, W).
        reach: voxels along each axis.

    Returns:
        (N, 3, D, H, W), voxels.
    """
    n, shape = len(fixed), tuple(fixed.shape[2:])
    padded = F.pad(moving, [reach] * 6, mode="replicate")
    axis = torch.arange(2 * reach + 1, device=fixed.device)
    places = torch.cartesian_prod(axis, axis, axis)
    costs = torch.empty(n, len(places), *shape, device=fixed.device)
    for place, (d, h, w) in enumerate(product(range(2 * reach + 1), repeat=3)):
        there = padded[..., d : d + shape[0], h : h + shape[1], w : w + shape[2]]
        torch.mean((there - fixed).square(), dim=1, out=costs[:, place])
    costs = patch_mean(costs).flatten(2)
    costs = costs / costs.std(1).mean(1).clamp(min=1e-12).view(-1, 1, 1)
    steps = (places - reach).float()  # (K, 3)

    def smooth(choice: Tensor) -> Tensor:
        return patch_mean(patch_mean(steps[choice].transpose(1, 2).reshape(n, 3, *shape)))

    displacement = smooth(costs.argmin(1))
    for theta in COUPLINGS:
        along = torch.stack([2 * steps @ each for each in displacement.flatten(2)])
        away = steps.square().sum(1, keepdim=True) - along  # |k - u|^2 - |u|^2
        displacement = smooth((costs + theta * away).argmin(1))
    return displacement


def start_velocity(moving: Tensor, fixed: Tensor, spacing: tuple[float, float, float]) -> Tensor:
    """Stationary velocity of a discrete registration, on the search's coarse grid, in its voxels.

    Both directions are searched and made inverses of each other.

    Args:
        moving, fixed: images (N, C, D, H, W).
        spacing: of their voxels, (D, H, W).

    Returns:
        (N, 3, D', H', W').
    """
    with torch.no_grad():
        levels = levels_of(moving.shape[2:], spacing, HALVINGS + 1)
        for level in levels[1:-1]:
            moving, fixed = (shrunk(image, level.shape) for image in (moving, fixed))
        features = [shrunk(mind_ssc(image), levels[-1].shape) for image in (moving, fixed)]
        there, back = convex_displacement(*features), convex_displacement(*features[::-1])
        for _ in range(ROUNDS):
            there, back = (there - warp(back, there)) / 2, (back - warp(there, back)) / 2
        velocity = there
        for _ in range(ROUNDS):
            velocity = velocity + 0.7 * (there - integrate(velocity, steps=squarings_for(velocity)))
        return velocity


def on_level(velocity: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A velocity on another grid over the same extent."""
    return velocity if tuple(velocity.shape[2:]) == shape else rescale(velocity, shape)
