"""Spatial transforms. One convention for all of them:

a displacement field u has shape (N, 3, D, H, W), lives on the fixed grid, is in voxels,
lists its components in axis order (D, H, W), and pulls: warped(x) = moving(x + u(x)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def voxel_grid(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Voxel coordinates of a grid, (1, 3, D, H, W), in voxels, components (D, H, W)."""
    axes = [torch.arange(n, dtype=torch.float32, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def on_device(values: Sequence[float] | Sequence[bool], like: Tensor) -> Tensor:
    """A few numbers (float32) or bools as a tensor; `torch.tensor(values, device=...)` waits for what a GPU does."""
    dtype = torch.bool if isinstance(values[0], bool) else torch.float32
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)


def sample(image: Tensor, points: Tensor, *, mode: str = "bilinear", padding: str = "border") -> Tensor:
    """Values of an image at points.

    Args:
        image: (N, C, D, H, W).
        points: voxel coordinates on the image's grid, (N, 3, D', H', W'), components (D, H, W).
        mode: "bilinear" (trilinear) or "nearest".
        padding: what lies outside: "border" repeats the border, "zeros" is 0.

    Returns:
        (N, C, D', H', W'), float32.
    """
    sizes = torch.tensor(image.shape[2:], dtype=torch.float32)
    scale = (2 / (sizes - 1).clamp(min=1)).to(image.device, non_blocking=True)
    grid = (points.float().permute(0, 2, 3, 4, 1) * scale - 1).flip(-1)  # grid_sample lists (x, y, z)
    image = image.float()
    slabs = _slabs(image, grid)
    if slabs == 1:
        return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)
    # On the CPU grid_sample works on the images of a batch in parallel, not on the voxels of one image.
    n, depth, *plane = grid.shape[:4]
    grid = grid.reshape(n * slabs, depth // slabs, *plane, 3)
    image = image[:, None].expand(-1, slabs, -1, -1, -1, -1).flatten(0, 1)
    out = F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)
    return out.unflatten(0, (n, slabs)).transpose(1, 2).flatten(2, 3)


def _slabs(image: Tensor, grid: Tensor) -> int:
    # Batches fill the threads already; an image that needs a gradient would get one of full size per slab.
    if image.device.type != "cpu" or image.requires_grad or image.shape[0] > 1:
        return 1
    return math.gcd(grid.shape[1], torch.get_num_threads())


def warp(moving: Tensor, displacement: Tensor, *, mode: str = "bilinear", padding: str = "border") -> Tensor:
    """Moving image on the fixed grid: warped(x) = moving(x + u(x)).

    Args:
        moving: (N, C, D, H, W).
        displacement: (N, 3, D', H', W'), voxels.

    Returns:
        (N, C, D', H', W'), float32.
    """
    points = voxel_grid(tuple(displacement.shape[2:]), displacement) + displacement
    return sample(moving, points, mode=mode, padding=padding)


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """Integer label map (N, D, H, W) as float32 channels (N, num_classes, D, H, W)."""
    classes = torch.arange(num_classes, device=label.device).view(1, -1, 1, 1, 1)
    return (label[:, None] == classes).float()


def warp_probabilities(probabilities: Tensor, displacement: Tensor, classes: Tensor | None = None) -> Tensor:
    """Class probabilities or a one-hot label on the fixed grid.

    Outside the moving grid lies background: the missing probability goes to class 0.

    Args:
        probabilities: (N, C, D, H, W), channels sum to 1.
        displacement: (N, 3, D', H', W'), voxels.
        classes: the K classes to return; None: all.

    Returns:
        (N, C or K, D', H', W'); all channels together sum to 1.
    """
    if classes is not None:
        outside = (classes == 0).float().view(1, -1, 1, 1, 1)
        return warp(probabilities[:, classes] - outside, displacement, padding="zeros") + outside
    structures = warp(probabilities[:, 1:], displacement, padding="zeros")
    return torch.cat([1 - structures.sum(1, keepdim=True), structures], 1)


def warp_one_hot(label: Tensor, displacement: Tensor, num_classes: int) -> Tensor:
    """`warp_probabilities(one_hot(label, num_classes), displacement)`, in under half the time with many classes.

    Each of the eight voxels around a point adds its weight to its own class.

    Args:
        label: class indices (N, D, H, W).
        displacement: (N, 3, D', H', W'), voxels.

    Returns:
        (N, num_classes, D', H', W'), sums to 1.
    """
    n, size, shape = len(label), label.shape[1:], displacement.shape[2:]
    points = voxel_grid(tuple(shape), displacement) + displacement.float()
    low = points.floor()
    share = points - low
    low = low.long()
    corners: list[list[tuple[Tensor, Tensor]]] = []  # per axis: place and weight of the voxel below and above
    for axis, stride in enumerate((size[1] * size[2], size[2], 1)):
        corners.append([])
        for step, weight in ((0, 1 - share[:, axis]), (1, share[:, axis])):
            place = low[:, axis] + step
            inside = (place >= 0) & (place < size[axis])
            corners[axis].append((place.clamp(0, size[axis] - 1) * stride, weight * inside))
    classes = label.reshape(n, -1).long()
    out = torch.zeros(n, num_classes, shape.numel(), device=label.device)
    for plane, a in corners[0]:
        for row, b in corners[1]:
            for column, c in corners[2]:
                corner_classes = classes.gather(1, (plane + row + column).flatten(1))
                out.scatter_add_(1, corner_classes[:, None], (a * b * c).flatten(1)[:, None])
    out[:, 0] = 1 - out[:, 1:].sum(1)
    return out.unflatten(2, tuple(shape))


def warp_label(label: Tensor, displacement: Tensor) -> Tensor:
    """Integer label map (N, D, H, W) on the fixed grid by nearest neighbour, background outside; same type."""
    return warp(label[:, None], displacement, mode="nearest", padding="zeros")[:, 0].to(label.dtype)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """(u o v)(x) = v(x) + u(x + v(x)), (N, 3, D, H, W) in voxels: the inner field pulls first, then the outer one."""
    return inner + warp(outer, inner)


def integrate(velocity: Tensor, *, steps: int | Sequence[int] = 7) -> Tensor:
    """Displacement exp(v) of a stationary velocity field by scaling and squaring.

    exp(-v) is its inverse and exp(alpha v) a part of the way; all are diffeomorphic.

    Args:
        velocity: (N, 3, D, H, W), voxels per unit time.
        steps: squarings; 2^steps Euler steps. Of each field of the batch, or of all.

    Source: Arsigny et al., "A Log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006.
    """
    of_each = [steps] * len(velocity) if isinstance(steps, int) else steps
    if len(set(of_each)) == 1:
        displacement = velocity / 2 ** of_each[0]
    else:
        displacement = velocity / on_device([2.0**k for k in of_each], velocity).view(-1, 1, 1, 1, 1)
    for step in range(max(of_each)):
        squared = compose(displacement, displacement)
        if step < min(of_each):
            displacement = squared
        else:
            further = on_device([step < k for k in of_each], velocity).view(-1, 1, 1, 1, 1)
            displacement = torch.where(further, squared, displacement)
    return displacement


def squarings_for(velocity: Tensor) -> list[int]:
    """Squarings after which the first step of each field of a batch is at most half a voxel along an axis; 1 to 8."""
    largest = velocity.detach().abs().amax((1, 2, 3, 4)).tolist()
    return [min(8, max(1, math.ceil(math.log2(max(2 * each, 2.0))))) for each in largest]


def affine_displacement(matrix: Tensor, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Tensor:
    """Displacement of a linear map about the grid's centre.

    Args:
        matrix: (N, 3, 3), maps mm to mm, components (D, H, W): x moves to centre + matrix (x - centre).
        shape: voxels (D, H, W).
        spacing_mm: voxel size (D, H, W); a rotation stays one on anisotropic voxels.

    Returns:
        (N, 3, D, H, W), voxels.
    """
    spacing = on_device(spacing_mm, matrix)
    in_voxels = matrix.float() * spacing[None, None, :] / spacing[None, :, None]
    grid = voxel_grid(shape, matrix)
    centre = (on_device(shape, matrix) - 1) / 2
    offset = grid - centre.view(1, 3, 1, 1, 1)
    return torch.einsum("nij,mjdhw->nidhw", in_voxels, offset) - offset


def resize(field: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Trilinear resampling (N, C, ...) -> (N, C, *shape), corner voxels aligned; values are not rescaled."""
    return F.interpolate(field.float(), size=shape, mode="trilinear", align_corners=True)


def rescale(displacement: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A displacement or velocity field on another grid over the same extent, in voxels of that grid."""
    old = displacement.shape[2:]
    ratio = [(new - 1) / max(n - 1, 1) for new, n in zip(shape, old, strict=True)]
    return resize(displacement, shape) * on_device(ratio, displacement).view(1, 3, 1, 1, 1)


def halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The grid of half as many voxels an axis, rounded up."""
    return tuple(-(-n // 2) for n in shape)
