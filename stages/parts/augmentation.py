"""Random changes of space and intensity. Everything random comes from the generator that is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from stages.parts.together import rand, randn
from stages.parts.warps import affine_displacement, compose, on_device, resize, voxel_grid


def uniform(size: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Drawn for each sample of the batch, which the first axis counts."""
    return low + (high - low) * rand(size, generator)


@dataclass(frozen=True)
class SpatialAugmentation:
    """Random rotation, scaling and elastic deformation, as one displacement field.

    Args:
        degrees: rotation about each axis, uniform in +- degrees.
        scale: scaling, uniform in this range, per axis if `anisotropic`.
        elastic: largest standard deviation of a smooth random displacement, drawn uniformly from 0; 0: none.
        elastic_knots: distance of the knots that it is interpolated from. Both are in the grid's finest voxels, and
            the same length along all axes.
        probability: how often a sample is deformed at all.
    """

    degrees: float = 20.0
    scale: tuple[float, float] = (0.75, 1.25)
    anisotropic: bool = False
    elastic: float = 0.0
    elastic_knots: float = 16.0
    probability: float = 1.0

    def displacement(
        self, count: int, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], generator: Generator
    ) -> Tensor:
        """(count, 3, D, H, W), voxels."""
        angles = uniform((count, 3), -self.degrees, self.degrees, generator) * (math.pi / 180)
        axes = 3 if self.anisotropic else 1
        scales = uniform((count, axes), *self.scale, generator).expand(count, 3)
        matrix = rotation_matrix(angles) @ torch.diag_embed(1 / scales)
        active = uniform((count, 1, 1), 0, 1, generator) < self.probability
        matrix = torch.where(active, matrix, torch.eye(3, device=matrix.device))
        displacement = affine_displacement(matrix, shape, spacing_mm)
        if self.elastic:
            unit = min(spacing_mm)
            apart_mm = self.elastic_knots * unit
            knots = [max(4, round((n - 1) * s / apart_mm) + 1) for n, s in zip(shape, spacing_mm, strict=True)]
            noise = randn((count, 3, *knots), generator)
            amplitude = uniform((count, 1, 1, 1, 1), 0, self.elastic * unit, generator)
            per_voxel = on_device(spacing_mm, noise).view(1, 3, 1, 1, 1)
            elastic = resize(noise * amplitude * active[..., None, None] / per_voxel, shape)
            displacement = compose(displacement, elastic)
        return displacement


@dataclass(frozen=True)
class AffineAugmentation:
    """Random affine maps, as one displacement field: the identity plus normal noise on all twelve numbers.

    Args:
        deviation: standard deviation of the noise, in coordinates that run from -1 to 1 over the grid.
        probability: how often a sample is moved at all.

    Source: the published training of OBELISK-Net, which JRSS starts from.
    """

    deviation: float
    probability: float = 0.5

    def displacement(
        self, count: int, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], generator: Generator
    ) -> Tensor:
        """(count, 3, D, H, W), voxels; the map does not depend on the voxel size."""
        noise = randn((count, 3, 4), generator) * self.deviation
        noise = noise * (uniform((count, 1, 1), 0, 1, generator) < self.probability)
        half = (on_device(shape, noise) - 1).clamp(min=1) / 2
        half = half.view(1, 3, 1, 1, 1)
        places = voxel_grid(shape, noise) / half - 1
        moved = torch.einsum("nij,mjdhw->nidhw", noise[:, :, :3], places) + noise[:, :, 3].view(count, 3, 1, 1, 1)
        return moved * half


def rotation_matrix(angles: Tensor) -> Tensor:
    """Rotations about D, then H, then W, (N, 3) radians -> (N, 3, 3)."""
    matrix = torch.eye(3, device=angles.device).expand(len(angles), 3, 3)
    for axis in range(3):
        i, j = [other for other in range(3) if other != axis]
        c, s = angles[:, axis].cos(), angles[:, axis].sin()
        turn = torch.eye(3, device=angles.device).repeat(len(angles), 1, 1)
        turn[:, i, i], turn[:, i, j], turn[:, j, i], turn[:, j, j] = c, -s, s, c
        matrix = turn @ matrix
    return matrix


@dataclass(frozen=True)
class IntensityAugmentation:
    """Random gamma, contrast, brightness, smooth bias field, blur and noise on images in [0, 1].

    Each channel of an image is changed by itself, as nnU-Net does.

    Args:
        gamma: exponent, log-uniform in this range.
        contrast: factor about the image's mean, uniform.
        brightness: offset, uniform in +- this.
        bias: standard deviation of a smooth multiplicative field's logarithm.
        noise: largest standard deviation of Gaussian noise.
        blur: largest standard deviation of a Gaussian blur, voxels.
    """

    gamma: tuple[float, float] = (0.7, 1.5)
    contrast: tuple[float, float] = (0.75, 1.25)
    brightness: float = 0.1
    bias: float = 0.1
    noise: float = 0.05
    blur: float = 1.0

    def __call__(self, image: Tensor, generator: Generator) -> Tensor:
        """(N, C, D, H, W) in [0, 1] -> the same, clipped to [0, 1.5]; background 0 stays near 0."""
        with torch.autocast(image.device.type, enabled=False):  # the blur is a convolution
            return self._change(image, generator)

    def _change(self, image: Tensor, generator: Generator) -> Tensor:
        n, channels = image.shape[:2]
        column = (n, channels, 1, 1, 1)
        low, high = self.gamma
        image = image.float().clamp(min=0) ** torch.exp(uniform(column, math.log(low), math.log(high), generator))
        mean = image.mean((2, 3, 4), keepdim=True)
        image = (image - mean) * uniform(column, *self.contrast, generator) + mean
        image = image + uniform(column, -self.brightness, self.brightness, generator)
        knots = randn((n, channels, 4, 4, 4), generator) * self.bias
        image = image * resize(knots, tuple(image.shape[2:])).exp()
        sigmas = uniform((n * channels,), 0, 2 * self.blur, generator) - self.blur  # half of the images stay sharp
        each = image.flatten(0, 1)[:, None].split(1)
        blurred = [gaussian_blur(one, sigma) for one, sigma in zip(each, sigmas.tolist(), strict=True)]
        image = torch.cat(blurred).view(image.shape)
        noise = randn(image.shape, generator)
        return (image + noise * uniform(column, 0, self.noise, generator)).clamp(0, 1.5)


def brighten(image: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Images times a factor, then spread about their means by another; clipped to [0, 1] each time.

    Args:
        image: (N, 1, D, H, W) in [0, 1].
        brightness, contrast: factors, (N, 1, 1, 1, 1).

    Source: brightness and contrast as torchvision's ColorJitter changes them.
    """
    image = (brightness * image).clamp(0, 1)
    mean = image.mean((1, 2, 3, 4), keepdim=True)
    return (mean + contrast * (image - mean)).clamp(0, 1)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur, border repeated, sigma in voxels; sigma <= 0.3 returns the image. (N, C, D, H, W)."""
    if sigma <= 0.3:
        return image
    radius = math.ceil(2.5 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=image.device) / sigma) ** 2)
    weights = weights / weights.sum()
    shape = image.shape
    image = image.flatten(0, 1)[:, None]
    for axis in range(3):
        kernel = [1, 1, 1]
        kernel[axis] = 2 * radius + 1
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        image = F.conv3d(F.pad(image, pad, mode="replicate"), weights.view(1, 1, *kernel))
    return image.view(shape)


AUGMENTATIONS: dict[str, tuple[SpatialAugmentation | AffineAugmentation | None, IntensityAugmentation | None]] = {
    "none": (None, None),
    "affine": (AffineAugmentation(0.075), None),  # JRSS, of S
    "half-affine": (AffineAugmentation(0.0375), None),  # JRSS, of R
    "rotate-scale": (SpatialAugmentation(degrees=20, scale=(0.75, 1.25)), None),  # BRBS, section IV
    "mild": (  # for scans whose rotation and scale the alignment has already matched
        SpatialAugmentation(degrees=7, scale=(0.9, 1.1), anisotropic=True, elastic=1.5, elastic_knots=7.0),
        IntensityAugmentation(),
    ),
    "strong": (
        SpatialAugmentation(degrees=20, scale=(0.8, 1.2), anisotropic=True, elastic=6.0, elastic_knots=14.0),
        IntensityAugmentation(),
    ),
}
