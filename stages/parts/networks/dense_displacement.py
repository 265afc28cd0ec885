"""PDD-Net: registration by a probability for each of many displacements, at every point of a coarse control grid.

Heinrich, "Closing the gap between deep and conventional image registration using probabilistic dense displacement
networks", MICCAI 2019. Points and displacements are in voxels of the images, components (D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stages.parts.networks.batch_norm import BatchNorm3d
from stages.parts.networks.obelisk import Obelisk, coarse_shape
from stages.parts.warps import resize

FEATURE_FACTOR = 3  # voxels of the images per voxel of the features, an axis
LEAST_POINTS = 3  # of the control grid, an axis: second differences need them


class ObeliskFeatures(nn.Module):
    """Features of an image on a grid of a third: differences of samples at learned pairs of offsets.

    Mean of 3^3 with stride 2; convolution 5^3 with stride 2 to 4 channels, BatchNorm, ReLU; 32 pairs of offsets, the
    samples at the second subtracted from those at the first; convolutions 1^3 to 64, 3^3 to 64, with BatchNorm and
    ReLU, and 1^3 to the features. All weights Xavier.

    Args:
        inputs: image channels.
        outputs: features.

    Source: Heinrich, MICCAI 2019; widths as in the published code.
    """

    def __init__(self, inputs: int, outputs: int = 16) -> None:
        super().__init__()
        offsets, width = 2 * outputs, 4 * outputs
        self.first = nn.Sequential(nn.Conv3d(inputs, 4, 5, stride=2, padding=2, bias=False), BatchNorm3d(4), nn.ReLU())
        self.ahead, self.behind = Obelisk(offsets, 1), Obelisk(offsets, 1)
        self.last = nn.Sequential(
            nn.Conv3d(4 * offsets, width, 1, bias=False), BatchNorm3d(width), nn.ReLU(),
            nn.Conv3d(width, width, 3, padding=1, bias=False), BatchNorm3d(width), nn.ReLU(),
            nn.Conv3d(width, outputs, 1),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D / 3, H / 3, W / 3), sizes rounded up, float32."""
        grid = coarse_shape(image.shape[2:], FEATURE_FACTOR)
        with torch.autocast(image.device.type, enabled=False):
            x = self.first(F.avg_pool3d(image.float(), 3, stride=2, padding=1))
            return self.last(self.ahead(x, grid) - self.behind(x, grid))


class DenseDisplacements(nn.Module):
    """A map of image pairs to probabilities of displacements, and to their mean.

    The squared difference of the features is the cost of a displacement. Costs are smoothed twice, each time over the
    displacements by an approximate min-convolution and over the control grid by a mean-field step; the second time
    what was smoothed is added to the costs. Softmax over the displacements gives probabilities. Four weights are
    learned besides the features. (The published code has two more, constants that softmax does not see.)

    Args:
        inputs: channels of an image.
        spacing: voxels between control points, about.
        count: displacements along an axis, odd.
        reach: the largest displacement, as a share of half of the grid.
    """

    def __init__(self, inputs: int, *, spacing: int = 6, count: int = 15, reach: float = 0.4) -> None:
        super().__init__()
        self.spacing, self.count, self.reach = spacing, count, reach
        self.features = ObeliskFeatures(inputs)
        # Of the costs; of the costs and of what was smoothed, the second time; of the softmax.
        self.weights = nn.Parameter(torch.ones(4))

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (N, C, D, H, W) -> displacement (N, 3, D, H, W), voxels, float32."""
        shape = tuple(fixed.shape[2:])
        return resize(self.mean(self.probabilities(moving, fixed), shape), shape)

    def probabilities(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(N, d, h, w, K): for each control point the probabilities of all displacements; they add up to 1."""
        shape = tuple(fixed.shape[2:])
        of_moving, of_fixed = self.features(moving), self.features(fixed)
        with torch.autocast(fixed.device.type, enabled=False):
            costs = dense_costs(of_moving, of_fixed, self.points(shape, fixed), self.steps(shape, fixed), shape)
            return recomputed(self._decide, costs, self.weights)

    def _decide(self, costs: Tensor, weights: Tensor) -> Tensor:
        cost, again, smoothed, sharpness = weights
        costs = cost * costs
        smooth = mean_field(min_convolution(costs, self.count))
        smooth = mean_field(min_convolution(again * costs + smoothed * smooth, self.count))
        return (-sharpness * smooth).softmax(-1)

    def mean(self, probabilities: Tensor, shape: Sequence[int]) -> Tensor:
        """The mean displacement at each control point, (N, 3, d, h, w), voxels."""
        return (probabilities @ torch.cartesian_prod(*self.steps(shape, probabilities))).movedim(-1, 1)

    def expected(self, probabilities: Tensor, image: Tensor) -> Tensor:
        """What the displacements bring to each control point, on average: sum_k p_k image(x + u_k), (N, C, d, h, w).

        Args:
            image: the moving image or features of it on its grid, (N, C, D, H, W); no gradient.
        """
        shape = tuple(image.shape[2:])
        along = displaced(self.points(shape, image), self.steps(shape, image), shape)

        def of_slab(probability: Tensor, across: Tensor) -> Tensor:
            shares = probability.unflatten(-1, (self.count,) * 3).permute(0, 3, 1, 4, 2, 5)  # (N, k, h, k, w, k)
            return (slab(image, across, along) * shares[:, None]).sum((2, 4, 6))

        slabs = zip(probabilities.unbind(1), along[0].unbind(0), strict=True)
        return torch.stack([recomputed(of_slab, *each) for each in slabs], 2)

    def points(self, shape: Sequence[int], like: Tensor) -> list[Tensor]:
        """Coordinates of the control points along D, H and W: the ends, and points at equal distances between them."""
        counts = [max(LEAST_POINTS, -(-n // self.spacing)) for n in shape]
        return [torch.linspace(0, n - 1, count, device=like.device) for n, count in zip(shape, counts, strict=True)]

    def steps(self, shape: Sequence[int], like: Tensor) -> list[Tensor]:
        """Displacements along D, H and W, `count` each; the middle one is 0. All combinations are compared."""
        unit = torch.linspace(-1, 1, self.count, device=like.device)
        return [self.reach * (n - 1) / 2 * unit for n in shape]


def dense_costs(
    moving: Tensor, fixed: Tensor, points: Sequence[Tensor], steps: Sequence[Tensor], shape: Sequence[int]
) -> Tensor:
    """Squared distances |fixed(x) - moving(x + u_k)|^2 of features, for every control point and displacement.

    Args:
        moving, fixed: features (N, C, D', H', W'), of which each voxel stands for a block of the images' voxels.
        points: coordinates of the control points x along D, H and W, voxels of the images.
        steps: displacements u_k along each axis, voxels of the images; all K combinations are meant.
        shape: the images' grid (D, H, W).

    Returns:
        (N, d, h, w, K).
    """
    sizes = tuple(fixed.shape[2:])
    ratios = [own / n for own, n in zip(sizes, shape, strict=True)]
    points = [(place + 0.5) * ratio - 0.5 for place, ratio in zip(points, ratios, strict=True)]
    steps = [step * ratio for step, ratio in zip(steps, ratios, strict=True)]
    here, along = interpolated(fixed, points), displaced(points, steps, sizes)

    def of_slab(moving: Tensor, here: Tensor, across: Tensor) -> Tensor:
        apart = slab(moving, across, along) - here[:, :, None, :, None, :, None]
        return apart.square().sum(1).permute(0, 2, 4, 1, 3, 5).flatten(3)

    slabs = zip(here.unbind(2), along[0].unbind(0), strict=True)
    return torch.stack([recomputed(of_slab, moving, *each) for each in slabs], 1)


def interpolation(places: Tensor, size: int) -> Tensor:
    """Linear interpolation along an axis as a matrix (places, size); the border is repeated."""
    distance = places.clamp(0, size - 1)[..., None] - torch.arange(size, device=places.device)
    return (1 - distance.abs()).clamp(min=0)


def interpolated(image: Tensor, points: Sequence[Tensor]) -> Tensor:
    """Values of an image (N, C, D, H, W) at the points of a grid, (N, C, d, h, w)."""
    d, h, w = (interpolation(place, size) for place, size in zip(points, image.shape[2:], strict=True))
    return (d @ (h @ (image.float() @ w.T)).flatten(3)).unflatten(3, (len(h), len(w)))


def displaced(points: Sequence[Tensor], steps: Sequence[Tensor], shape: Sequence[int]) -> list[Tensor]:
    """For each axis the interpolation at all points, displaced by all steps, (points, steps, size).

    Points and displacements are grids, so that interpolation at all of them is three products with matrices. That takes
    a tenth of the time of looking every value up.
    """
    axes = zip(points, steps, shape, strict=True)
    return [interpolation(place[:, None] + step, size) for place, step, size in axes]


def slab(image: Tensor, across: Tensor, along: Sequence[Tensor]) -> Tensor:
    """Values at all displacements from the control points of one plane.

    Args:
        image: (N, C, D, H, W).
        across: one plane's row of `displaced` along D, (k, D).
        along: all of it.

    Returns:
        (N, C, k, h, k, w, k): displacement along D, point and displacement along H, and along W.
    """
    _, h, w = along
    image = (across @ image.float().flatten(3)).unflatten(3, image.shape[3:])
    values = h.flatten(0, 1) @ (image @ w.flatten(0, 1).T)
    return values.unflatten(4, w.shape[:2]).unflatten(3, h.shape[:2])


def min_convolution(costs: Tensor, count: int) -> Tensor:
    """Costs (N, d, h, w, K) smoothed over the displacements: the least cost within 3^3, then twice the mean of 3^3.

    An approximate lower envelope of the costs plus a penalty for the distance between displacements: a displacement
    becomes cheap beside a cheap one. The border is repeated.
    """
    spread = F.pad(costs.reshape(len(costs), -1, count, count, count), [3] * 6, mode="replicate")
    spread = -F.max_pool3d(-spread, 3, stride=1)
    for _ in range(2):
        spread = F.avg_pool3d(spread, 3, stride=1)
    return spread.reshape(costs.shape)


def mean_field(costs: Tensor) -> Tensor:
    """Costs (N, d, h, w, K) smoothed over the control grid: twice the mean of 3^3 points, border repeated."""
    spread = F.pad(costs.movedim(-1, 1), [2] * 6, mode="replicate")
    for _ in range(2):
        spread = F.avg_pool3d(spread, 3, stride=1)
    return spread.movedim(1, -1)


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A function's result, whose intermediate tensors are not kept for the gradient but computed once more.

    As `torch.utils.checkpoint`, which would load torch's compiler for it.

    Args:
        tensors: all that need a gradient, in the order of the function's arguments.
    """
    return _Recomputed.apply(function, *tensors)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        tensors = [each.detach().requires_grad_(needs) for each, needs in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            result = ctx.function(*tensors)
        gradients = iter(torch.autograd.grad(result, [each for each in tensors if each.requires_grad], gradient))
        return None, *(next(gradients) if needs else None for needs in needed)
