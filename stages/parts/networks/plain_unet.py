"""The segmentation network of SST's published code: a wide U-Net without normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.blocks import in_float32
from stages.parts.networks.sizes import crop, derived_depth, pad_to_multiple


class PlainUNet(nn.Module):
    """32-64-128-256-512 channels; each level twice [convolution 3^3, ReLU]; 27 M parameters.

    Down by convolutions 4^3 of stride 2; up by trilinear interpolation and a 1^3 convolution to half of the channels,
    then concatenation. None of these, nor the head, has a bias. Inputs of any size are padded and cropped back.

    Args:
        inputs: image channels.
        outputs: classes.
        shape: grid (D, H, W) that the depth is derived from; small grids lack the coarsest levels.

    Source: `UNET3D` of SST's published code, which names a norm and builds none.
    """

    WIDTHS = (32, 64, 128, 256, 512)

    def __init__(self, inputs: int, outputs: int, shape: Sequence[int]) -> None:
        super().__init__()
        widths = self.WIDTHS[: derived_depth(shape, most=len(self.WIDTHS) - 1) + 1]
        levels = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Conv3d(a, a, 4, stride=2, padding=1, bias=False) for a, _ in levels)
        self.encoder = nn.ModuleList(twice(a, b) for a, b in [(inputs, widths[0]), *levels])
        self.up = nn.ModuleList(nn.Conv3d(b, a, 1, bias=False) for a, b in levels)
        self.decoder = nn.ModuleList(twice(2 * a, a) for a, _ in levels)
        self.head = nn.Conv3d(widths[0], outputs, 1, bias=False)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        shape = x.shape[2:]
        x = pad_to_multiple(x, 2 ** len(self.down)).contiguous(memory_format=torch.channels_last_3d)
        skips = [self.encoder[0](x)]
        for down, level in zip(self.down, self.encoder[1:], strict=True):
            skips.append(level(down(skips[-1])))
        x = skips.pop()
        for up, level in zip(reversed(self.up), reversed(self.decoder), strict=True):
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=True)
            x = level(torch.cat([skip, up(x)], 1))
        return crop(in_float32(self.head, x), shape)


def twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv3d(outputs, outputs, 3, padding=1), nn.ReLU()
    )
