"""TransMorph: a Swin transformer as the encoder of a registration U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.blocks import in_float32, small_head
from stages.parts.networks.sizes import crop, doubled, pad_to_multiple
from stages.parts.networks.swin import SwinTransformer, Triple

PATCH = 4  # voxels of a token, an axis
WIDTH = 16  # channels at full resolution


@dataclass(frozen=True)
class Widths:
    """Size of a TransMorph: channels of the first stage, and blocks and heads of all stages."""

    channels: int
    depths: Sequence[int]
    heads: Sequence[int]


class TransMorph(nn.Module):
    """Swin encoder of the image pair, and a convolutional decoder with skips from the encoder and from the images.

    Each level of the decoder: trilinear upsampling, the skip, twice (convolution 3^3, InstanceNorm, LeakyReLU 0.01).
    The skips of the two finest levels are one such convolution of the images at half and at full resolution. The head
    starts from N(0, 1e-5).

    Args:
        inputs: channels of both images together.
        shape: grid (D, H, W); small grids lack the coarsest stages.
        widths: channels, blocks and heads.
        convolution_skips: skips from the images.
        transformer_skips: skips from the encoder's stages.
        positions, most_dropped: as of `SwinTransformer`.

    Source: Chen et al., "TransMorph", MedIA 2022; details as in its published code.
    """

    def __init__(
        self,
        inputs: int,
        shape: Sequence[int],
        widths: Widths,
        *,
        convolution_skips: bool = True,
        transformer_skips: bool = True,
        positions: bool = True,
        most_dropped: float = 0.3,
    ) -> None:
        super().__init__()
        self.transformer_skips = transformer_skips
        count, channels = stages_of(shape, len(widths.depths)), widths.channels
        self.transformer = SwinTransformer(
            inputs, PATCH, channels, widths.depths[:count], widths.heads[:count], window_of(shape),
            [-(-n // PATCH) for n in shape], positions=positions, most_dropped=most_dropped,
        )  # fmt: skip
        wide = [WIDTH, channels // 2, *(channels * 2**stage for stage in range(count))]  # from full resolution down
        skips = [convolution_skips] * 2 + [transformer_skips] * (count - 1)
        self.up = nn.ModuleList(
            nn.Sequential(Convolution(below + skip * own, own), Convolution(own, own))
            for own, below, skip in zip(wide, wide[1:], skips, strict=False)
        )
        self.of_images = nn.ModuleList(Convolution(inputs, own) for own in wide[:2] if convolution_skips)
        self.head = nn.Conv3d(WIDTH, 3, 3, padding=1)
        small_head(self.head)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, pair: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, 3, D, H, W), float32."""
        images = pad_to_multiple(pair, PATCH).contiguous(memory_format=torch.channels_last_3d)
        smaller = F.avg_pool3d(images, 3, stride=2, padding=1)
        *finer, x = self.transformer(images)
        seen = [level(image) for level, image in zip(self.of_images, (images, smaller), strict=False)]
        skips = [*(seen or [None, None]), *(finer if self.transformer_skips else [None] * len(finer))]
        shapes = [grid.shape[2:] for grid in (images, smaller, *finer)]
        for level, shape, skip in reversed(list(zip(self.up, shapes, skips, strict=True))):
            x = crop(doubled(x), shape)
            x = level(x if skip is None else torch.cat([x, skip], 1))
        return crop(in_float32(self.head, x), pair.shape[2:])


class Convolution(nn.Sequential):
    """Convolution 3^3 without bias, InstanceNorm, LeakyReLU 0.01."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, padding=1, bias=False), nn.InstanceNorm3d(outputs), nn.LeakyReLU(0.01)
        )


def stages_of(shape: Sequence[int], most: int) -> int:
    """Stages of the encoder: the coarsest has at least two tokens an axis (InstanceNorm needs more than one voxel)."""
    shortest, count = -(-min(shape) // PATCH), 1
    while count < most and shortest > 2:
        shortest, count = -(-shortest // 2), count + 1
    return count


def window_of(shape: Sequence[int]) -> Triple:
    """Edges (D, H, W) of the windows in tokens: a 32nd of the voxels, as 5 x 6 x 7 for 160 x 192 x 224; 4 to 7."""
    d, h, w = (min(7, max(4, round(n / 32))) for n in shape)
    return d, h, w
