"""Building blocks of networks: the convolution block, its normalisation with a fast gradient, heads in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Block(nn.Module):
    """Twice: convolution, 3^3 or as `kernel` says (1 or 3 an axis), normalisation, LeakyReLU 0.2."""

    def __init__(self, inputs: int, outputs: int, groups: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__()
        self.kernel, self.layers = kernel, nn.ModuleList()
        d, h, w = (edge // 2 for edge in kernel)
        for width in (inputs, outputs):
            self.layers.append(nn.Conv3d(width, outputs, kernel, padding=(d, h, w), bias=True))
            self.layers.append(nn.GroupNorm(groups, outputs))

    def forward(self, x: Tensor) -> Tensor:
        for convolution, normalisation in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = normalise_and_rectify(convolution(x), normalisation, 0.2)  # type: ignore[arg-type]
        return x


def initialise(network: nn.Module, head: nn.Module, slope: float = 0.0) -> None:
    """He's weights for every convolution but the head; `slope` is that of the LeakyReLU behind them."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module is not head:
            nn.init.kaiming_normal_(module.weight, a=slope)


def normalise_and_rectify(x: Tensor, normalisation: nn.GroupNorm, slope: float) -> Tensor:
    """GroupNorm, then LeakyReLU; on the CPU with a gradient of our own, which takes a fifth of the time."""
    if x.device.type == "cpu":
        return _NormaliseAndRectify.apply(x, normalisation.weight, normalisation.bias, normalisation, slope)
    return F.leaky_relu(normalisation(x), slope, inplace=True)


class _NormaliseAndRectify(torch.autograd.Function):
    # torch's gradient of GroupNorm is a scalar loop for channels_last tensors with few channels a group. Batch norm's
    # kernels are not, compute in float32 for any tensor, and give the same gradient sample by sample.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.GroupNorm, slope: float) -> Tensor:
        n, c = x.shape[:2]
        y, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, x[0, 0].numel(), norm.num_groups, norm.eps)
        y = F.leaky_relu_(y, slope)
        ctx.save_for_backward(x, y, weight, mean, rstd)
        ctx.slope = slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With z = (x - mean) rstd and m the mean over a group: dx = rstd (w g - m(w g) - z m(w g z))."""
        x, y, weight, mean, rstd = ctx.saved_tensors
        gradient = torch.ops.aten.leaky_relu_backward(gradient, y, ctx.slope, True)
        n, c, groups = x.shape[0], x.shape[1], mean.shape[1]
        mean, rstd = (s.repeat_interleave(c // groups, 1) for s in (mean, rstd))
        sums = [_sums_over_voxels(g, z, m, r) for g, z, m, r in zip(gradient, x, mean, rstd, strict=True)]
        weight_gradient, bias_gradient = (torch.stack(s) for s in zip(*sums, strict=True))  # sum g z, sum g; (N, C)
        dx = None
        if ctx.needs_input_grad[0]:
            of_gz, of_g = (
                (weight * s).view(n, groups, -1).sum(2).repeat_interleave(c // groups, 1) / (x[0].numel() // groups)
                for s in (weight_gradient, bias_gradient)
            )
            to_x = -rstd.square() * of_gz
            dx = torch.empty_like(x)
            for i in range(n):
                dx[i] = _affine(gradient[i], rstd[i] * weight, -rstd[i] * of_g[i])
                dx[i] += _affine(x[i], to_x[i], -to_x[i] * mean[i])
        return dx, weight_gradient.sum(0), bias_gradient.sum(0), None, None


def _sums_over_voxels(gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the voxels of g (x - mean) rstd and of g, (C,), float32; g and x are (C, D, H, W)."""
    _, of_gz, of_g = torch.ops.aten.native_batch_norm_backward(
        gradient[None], x[None], None, None, None, mean, rstd, True, 0.0, [False, True, True]
    )
    return of_gz, of_g


def _affine(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """scale x + offset, channel by channel; computed in float32, (C, D, H, W) of x's type."""
    return F.batch_norm(x[None], torch.zeros_like(scale), torch.ones_like(scale), scale, offset, eps=0)[0]


def in_float32(head: nn.Module, x: Tensor) -> Tensor:
    """A head outside autocast: bfloat16 would round a displacement of 10 voxels to 1/16."""
    with torch.autocast(x.device.type, enabled=False):
        return head(x.float())


def small_head(head: nn.Conv3d, std: float = 1e-5) -> None:
    """A displacement head that starts at the identity: N(0, std), no bias."""
    nn.init.normal_(head.weight, std=std)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
