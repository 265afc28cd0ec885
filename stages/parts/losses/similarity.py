"""How alike two images are: local cross-correlation, mutual information, structural similarity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def lncc(warped: Tensor, fixed: Tensor, *, window: int = 9, eps: float = 1e-5) -> Tensor:
    """Squared local normalised cross-correlation at each voxel.

        LNCC(I, J) = cross(I, J)^2 / (var(I) var(J) + eps)

    with centred sums over a window (divisor window^3 everywhere, zeros outside the image).

    Args:
        warped: moving image resampled on the fixed grid, (N, C, D, H, W), in [0, 1], background 0.
        fixed: (N, C, D, H, W), in [0, 1]; each channel is compared with its own.
        window: edge of the cubic window in voxels; odd.

    Returns:
        (N, C, D, H, W) in [0, 1]; 1: equal up to a local gain and offset; 0 on flat regions.

    Source: Balakrishnan et al., "VoxelMorph", TMI 2019, Eq. 7.
    """
    with torch.autocast(warped.device.type, enabled=False):
        warped, fixed = warped.float(), fixed.float()
        moments = torch.cat([warped, fixed, warped * warped, fixed * fixed, warped * fixed], 1)
        sum_i, sum_j, sum_ii, sum_jj, sum_ij = box_sum(moments, window).chunk(5, dim=1)
        count = window**3
        cross = sum_ij - sum_i * sum_j / count
        var_i = sum_ii - sum_i * sum_i / count
        var_j = sum_jj - sum_j * sum_j / count
        return cross * cross / (var_i * var_j + eps)


def box_sum(image: Tensor, window: int) -> Tensor:
    """Sums over a cubic window (odd edge, voxels) around each voxel, zeros outside; (N, C, D, H, W), float32.

    A box filter is separable, and along an axis it is a product with a band matrix of ones. That takes a fifth of the
    time of average pooling on the CPU; running sums would drift in float32.
    """
    return _banded(image, [_band(n, window, image) for n in image.shape[2:]])


def _banded(image: Tensor, bands: Sequence[Tensor]) -> Tensor:
    """The product of each axis with a matrix (n', n): (N, C, D, H, W) -> (N, C, D', H', W')."""
    d, h, w = bands
    image = d @ (h @ (image @ w.T)).flatten(3)
    return image.unflatten(3, (len(h), len(w)))


def _band(size: int, window: int, like: Tensor) -> Tensor:
    places = torch.arange(size, device=like.device)
    return ((places[:, None] - places).abs() <= window // 2).to(like.dtype)


def lncc_loss(warped: Tensor, fixed: Tensor, *, window: int = 9) -> Tensor:
    """One minus the mean `lncc`: 0 for images that agree up to a local gain and offset, 1 without any relation.

    Of several channels it is the mean of theirs.
    """
    return 1 - lncc(warped, fixed, window=window).mean()


def lncc_of_means_loss(warped: Tensor, fixed: Tensor, *, window: int = 9) -> Tensor:
    """As `lncc_loss`, where moments are means over the window instead of sums, and eps is 1e-5 all the same.

    Next to means eps is as large as window^6 times that next to sums (5.3 for a window of 9): where the standard
    deviation within a window is far below 0.05 in both images, the result is about 1.

    Source: the published code of OS-MedSeg (model/losses.py, NCC), after TransMorph's.
    """
    return 1 - lncc(warped, fixed, window=window, eps=1e-5 * window**6).mean()


class LnccTo:
    """`lncc_loss` of each pair of a batch, for registration that asks it again and again: in a third of the time.

    What depends on the fixed images alone is computed once, the gradient is written out, and windows may lie on every
    second voxel only, since neighbours share most of theirs.

    Args:
        fixed: (N, C, D, H, W), in [0, 1].
        window: edges (D, H, W) in voxels; odd.
        stride: voxels between windows along each axis.
    """

    def __init__(self, fixed: Tensor, window: Sequence[int], stride: Sequence[int] = (1, 1, 1)) -> None:
        self.fixed = fixed.float()
        axes = zip(fixed.shape[2:], window, stride, strict=True)
        self.bands = [_band(n, edge, fixed)[(step - 1) // 2 :: step] for n, edge, step in axes]
        self.transposed = [band.T.contiguous() for band in self.bands]
        self.count = math.prod(window)
        self.sum_j = _banded(self.fixed, self.bands)
        self.var_j = _banded(self.fixed.square(), self.bands) - self.sum_j.square() / self.count

    def __call__(self, warped: Tensor) -> Tensor:
        """Moving images resampled on the fixed grid, (N, C, D, H, W) -> (N,) in [0, 1]; see `lncc_loss`."""
        with torch.autocast(warped.device.type, enabled=False):
            return _LnccTo.apply(warped.float(), self)

    def only(self, rows: Sequence[int]) -> LnccTo:
        """The same for some of the pairs."""
        some = copy(self)
        some.fixed, some.sum_j, some.var_j = (each[rows] for each in (self.fixed, self.sum_j, self.var_j))
        return some


class _LnccTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, warped: Tensor, to: LnccTo) -> Tensor:
        """With c = cross, v = var(I), w = var(J): d lncc = 2 c / (v w + eps) dc - lncc w / (v w + eps) dv."""
        moments = _banded(torch.cat([warped, warped.square(), warped * to.fixed], 1), to.bands)
        sum_i, sum_ii, sum_ij = moments.chunk(3, dim=1)
        cross = sum_ij - sum_i * to.sum_j / to.count
        scale = (sum_ii - sum_i.square() / to.count) * to.var_j + 1e-5
        alike = cross.square() / scale
        by_cross, by_var = 2 * cross / scale, -alike * to.var_j / scale
        by_mean = (by_cross * to.sum_j + 2 * by_var * sum_i) / -to.count
        at_voxels = _banded(torch.cat([by_cross, by_var, by_mean], 1), to.transposed)
        by_cross, by_var, by_mean = at_voxels.chunk(3, dim=1)
        ctx.save_for_backward((by_cross * to.fixed + 2 * by_var * warped + by_mean) / -alike[0].numel())
        return 1 - alike.mean((1, 2, 3, 4))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * gradient.view(-1, 1, 1, 1, 1), None


def mutual_information(first: Tensor, second: Tensor, *, bins: int = 32) -> Tensor:
    """Mutual information of two images in nats, by Parzen windows, mean over the batch and the channels.

        sum_ij p(i, j) log(p(i, j) / (p(i) p(j)))

    A voxel counts in all bins, by a Gaussian around its intensity that is as wide as a bin; its shares add up to 1.

    Args:
        first, second: (N, C, D, H, W), in [0, 1]; values outside are clipped.
        bins: their centres go from 0 to 1.

    Returns:
        Scalar >= 0 (up to rounding); 0: the intensities are independent, or an image is flat.

    Source: Pluim et al., TMI 2003; OS-MedSeg Eq. 7, bins and windows as in its published code.
    """
    with torch.autocast(first.device.type, enabled=False):
        of_first, of_second = (_shares(image, bins) for image in (first, second))
        joint = of_first @ of_second.transpose(1, 2) / of_first.shape[2]
        alone = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
        tiny = 1e-12  # an empty bin adds 0, and has a gradient
        return (joint * (joint.clamp(min=tiny) / alone.clamp(min=tiny)).log()).sum((1, 2)).mean()


def _shares(image: Tensor, bins: int) -> Tensor:
    """Share of every voxel in every bin, (N C, bins, voxels)."""
    centres = torch.linspace(0, 1, bins, device=image.device)
    distance = (image.float().clamp(0, 1).flatten(0, 1).flatten(1)[:, None] - centres[:, None]) * (bins - 1)
    return (-0.5 * distance.square()).softmax(1)


SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, from the finest scale down


def ms_ssim(first: Tensor, second: Tensor, *, window: int = 7, most_scales: int = 5) -> Tensor:
    """Multi-scale structural similarity, mean over the batch and the channels.

        product over scales k of s_k^w_k,  s_k: contrast and structure; at the coarsest scale luminance, too

    Each factor is a mean over the places where a Gaussian window (standard deviation 1.5 voxels) lies within the image.
    The image is halved as long as its shortest axis holds the window: 48 voxels give 3 scales, 128 all 5. The weights
    of these scales are normalised to add up to 1. An axis shorter than the window shortens the window.

    Args:
        first, second: (N, C, D, H, W), in [0, 1].
        window: voxels an axis; odd.
        most_scales: 1: plain SSIM.

    Returns:
        Scalar in about [-1, 1]; 1: equal images; near -1: one is the other's negative. A product has no use for
        negative factors: there it counts as 1e-4, and w_k s_k is added, so that negatives, too, have a gradient.

    Source: Wang, Simoncelli, Bovik, Asilomar 2003; a window of 7 as SST's published code.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = (image.float().flatten(0, 1)[:, None] for image in (first, second))
        shortest = min(first.shape[2:])
        window = min(window, shortest - 1 + shortest % 2)
        scales = sum(shortest >> k >= window for k in range(most_scales))
        weights = [weight / sum(SCALE_WEIGHTS[:scales]) for weight in SCALE_WEIGHTS[:scales]]
        result, below = torch.ones(len(first), device=first.device), torch.zeros(len(first), device=first.device)
        for k, weight in enumerate(weights):
            if k:
                first, second = F.avg_pool3d(first, 2), F.avg_pool3d(second, 2)
            structure, whole = _ssim(first, second, window)
            value = whole if k == scales - 1 else structure
            value = value.mean((1, 2, 3, 4))
            result, below = result * value.clamp(min=1e-4) ** weight, below + weight * value.clamp(max=0)
        return (result + below).mean()


def _ssim(first: Tensor, second: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Contrast and structure, and SSIM, at every place of the window; values from 0 to 1."""
    moments = torch.cat([first, second, first * first, second * second, first * second], 1)
    d, h, w = (_gaussian_band(n, window, first) for n in first.shape[2:])
    blurred = (d @ (h @ (moments @ w.T)).flatten(3)).unflatten(3, (len(h), len(w)))
    m1, m2, m11, m22, m12 = blurred.split(1, dim=1)
    structure = (2 * (m12 - m1 * m2) + 0.03**2) / (m11 - m1 * m1 + m22 - m2 * m2 + 0.03**2)
    return structure, structure * (2 * m1 * m2 + 0.01**2) / (m1 * m1 + m2 * m2 + 0.01**2)


def _gaussian_band(size: int, window: int, like: Tensor) -> Tensor:
    """The filter along an axis as a matrix, (size - window + 1, size), see `box_sum`."""
    offset = torch.arange(size, device=like.device) - torch.arange(size - window + 1, device=like.device)[:, None]
    weight = (-0.5 * ((offset - window // 2) / 1.5) ** 2).exp() * ((offset >= 0) & (offset < window))
    return weight / weight.sum(1, keepdim=True)


def structural_loss(first: Tensor, second: Tensor) -> Tensor:
    """L_SSIM-L1: mean absolute difference plus 1 - `ms_ssim`; 0 for equal images.

    Args:
        first, second: (N, 1, D, H, W), in [0, 1]. SST's run from -1 to 1, with differences twice as large.

    Source: SST Eq. 4.
    """
    return 2 * (first.float() - second.float()).abs().mean() + 1 - ms_ssim(first, second)
