"""Hybrid OBELISK network: a small U-Net whose coarse levels are sparse convolutions with learned offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.batch_norm import BatchNorm3d
from stages.parts.networks.blocks import in_float32, small_head
from stages.parts.warps import on_device, sample, voxel_grid


class Obelisk(nn.Module):
    """Samples an image at learned offsets from every point of a coarse grid.

    A point of the coarse grid lies at the centre of the block of voxels that it stands for; outside the image is 0.

    Args:
        count: offsets.
        factor: voxels of the image per point, an axis.
        deviation: of the offsets' initial normal distribution, in coordinates from -1 to 1 over the image.

    Source: Heinrich et al., "OBELISK-Net", MedIA 2019.
    """

    def __init__(self, count: int, factor: int, *, deviation: float = 0.05) -> None:
        super().__init__()
        self.factor = factor
        self.offsets = nn.Parameter(torch.empty(count, 3))
        nn.init.normal_(self.offsets, std=deviation)

    def forward(self, image: Tensor, coarse: Sequence[int] | None = None) -> Tensor:
        """(N, C, D, H, W) -> (N, C count, d, h, w), d = D / factor rounded up; all samples of a channel in a row.

        Args:
            coarse: the grid (d, h, w), where it does not follow from the factor.
        """
        shape = image.shape[2:]
        coarse = tuple(coarse or coarse_shape(shape, self.factor))
        count = len(self.offsets)
        sizes = on_device(shape, image).view(1, 3, 1, 1, 1)
        ratio = sizes / on_device(coarse, image).view(1, 3, 1, 1, 1)
        centres = (voxel_grid(coarse, image) + 0.5) * ratio - 0.5
        offsets = self.offsets.view(count, 3, 1, 1, 1) * sizes / 2
        points = (centres + offsets).transpose(0, 1).flatten(1, 2)[None]  # (1, 3, count d, h, w)
        samples = sample(image, points.expand(len(image), -1, -1, -1, -1), padding="zeros")
        return samples.unflatten(2, (count, coarse[0])).flatten(1, 2)


def coarse_shape(shape: Sequence[int], factor: int) -> tuple[int, ...]:
    """Voxels of a grid whose voxels are `factor` times as long, rounded up."""
    return tuple(-(-n // factor) for n in shape)


class ConvolutionBlock(nn.Sequential):
    """Convolution 3^3, BatchNorm, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, slope: float, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1), BatchNorm3d(outputs), nn.LeakyReLU(slope)
        )


class DenseBranch(nn.Module):
    """What an OBELISK layer sampled, on its coarse grid: a grouped convolution to 128 channels, then a dense block.

    All kernels are 1^3 and without bias. Three times BatchNorm, convolution to 32, concatenation; then BatchNorm and a
    convolution to the outputs.
    """

    WIDTH, GROWTH, LAYERS = 128, 32, 3

    def __init__(self, inputs: int, outputs: int, groups: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.first = nn.Conv3d(inputs, self.WIDTH, 1, groups=groups, bias=False)
        widths = [self.WIDTH + self.GROWTH * i for i in range(self.LAYERS + 1)]
        self.norms = nn.ModuleList(BatchNorm3d(width) for width in widths)
        self.layers = nn.ModuleList(
            nn.Conv3d(a, b, 1, bias=False) for a, b in zip(widths, [*[self.GROWTH] * self.LAYERS, outputs], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), self.slope)
        for place, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            added = F.leaky_relu(layer(norm(x)), self.slope)
            x = added if place == self.LAYERS else torch.cat([x, added], 1)
        return x


class HybridObelisk(nn.Module):
    """JRSS's backbone: 230 k parameters where it segments 11 classes, 258 k where it registers.

    Encoder 3^3 convolutions 4, 16 (stride 2), 16, 32 (stride 2), 32, 32. In place of coarser levels, 128 offsets on a
    grid of 1/4 sample the image smoothed once, 512 on a grid of 1/8 the image smoothed twice. Decoder 32, 12 channels.
    Takes grids of any size.

    Args:
        inputs: image channels, each of them sampled at every offset.
        outputs: classes, or 3 for a displacement.
        task: segments: all weights Xavier, zero biases; registers: the head starts at the identity, N(0, 1e-5).
        slope: of LeakyReLU.

    `down[-1]` and `up[0]` are the last layers on the way down and up, as in the other U-Nets.

    Source: Shi et al., JRSS, Fig. 2 and section 3.2; details as in the published single-task networks.
    """

    def __init__(
        self, inputs: int, outputs: int, *, task: Literal["segments", "registers"], slope: float = 0.2
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            ConvolutionBlock(a, b, slope, stride)
            for a, b, stride in (
                (inputs, 4, 1), (4, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1),
            )
        )  # fmt: skip
        self.quarter, self.eighth = Obelisk(128, 4), Obelisk(512, 8)
        self.at_quarter = DenseBranch(128 * inputs, 16, 2, slope)
        self.at_eighth = DenseBranch(512 * inputs, 32, 4, slope)
        self.up = nn.ModuleList([ConvolutionBlock(32 + 16 + 16, 12, slope), ConvolutionBlock(32 + 32, 32, slope)])
        width = outputs if task == "segments" else 16
        self.fine = ConvolutionBlock(12 + 4, width, slope)
        self.head = nn.Conv3d(width, outputs, 1) if task == "segments" else nn.Conv3d(width, outputs, 3, padding=1)
        if task == "segments":
            for module in self.modules():
                if isinstance(module, nn.Conv3d):
                    nn.init.xavier_normal_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        else:
            small_head(self.head)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        once = F.avg_pool3d(x.float(), 3, stride=1, padding=1)
        twice = F.avg_pool3d(once, 3, stride=1, padding=1)
        with torch.autocast(x.device.type, enabled=False):  # tiny grids, and trilinear sampling is float32 anyway
            at_quarter, at_eighth = self.at_quarter(self.quarter(once)), self.at_eighth(self.eighth(twice))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        full = self.down[0](x)
        half = self.down[2](self.down[1](full))
        coarse = self.down[5](self.down[4](self.down[3](half)))
        coarse = self.up[1](torch.cat([coarse, to_grid_of(at_eighth, coarse)], 1))
        finer = self.up[0](torch.cat([to_grid_of(coarse, half), to_grid_of(at_quarter, half), half], 1))
        return in_float32(self.head, self.fine(torch.cat([to_grid_of(finer, full), full], 1)))


def to_grid_of(x: Tensor, other: Tensor) -> Tensor:
    """Trilinear resampling onto another tensor's grid; voxels lie at the centres of what they stand for."""
    return F.interpolate(x, size=other.shape[2:], mode="trilinear", align_corners=False).to(other.dtype)
