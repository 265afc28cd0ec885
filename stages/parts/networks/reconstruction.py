"""A second decoder on a segmentation network's encoder, which reconstructs the image without skips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.blocks import Block, in_float32
from stages.parts.networks.sizes import Triple, crop, depth_to_space
from stages.parts.networks.teacher_student import ResidualUNet, ResidualUnit
from stages.parts.networks.unet import LightUNet, UNet


class ReconstructionDecoder(nn.Module):
    """From the deepest features of a U-Net to images in [0, 1] on its grid.

    At each level nearest upsampling, then the U-Net's block with InstanceNorm. No skips: what it knows of the image has
    passed the deepest features. A sigmoid ends it.

    Args:
        network: whose encoder is shared; its widths, factors and kernels are the decoder's.
        outputs: images.

    Source: Chen et al., MICCAI 2019, published `network/ssl_3d_attention.py`.
    """

    def __init__(self, network: UNet | LightUNet | ResidualUNet, outputs: int) -> None:
        super().__init__()
        blocks = [cast(Block | ResidualUnit, block) for block in network.down]
        widths = [cast(nn.Conv3d, block.layers[0]).out_channels for block in blocks]
        self.pools: list[Triple] = list(network.pools)
        self.block = network.block if isinstance(network, LightUNet) else (1, 1, 1)
        pairs = zip(widths, widths[1:], blocks, strict=False)
        self.up = nn.ModuleList(Block(b, a, a, block.kernel) for a, b, block in pairs)
        self.head = nn.Conv3d(widths[0], outputs * self.block[0] * self.block[1] * self.block[2], 1)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, deepest: Tensor, shape: Sequence[int]) -> Tensor:
        """(N, width, d, h, w) -> (N, outputs, D, H, W), float32.

        Args:
            deepest: the first of the network's features.
            shape: the image's grid (D, H, W).
        """
        x = deepest
        for block, pool in zip(reversed(self.up), reversed(self.pools), strict=True):
            x = block(F.interpolate(x, scale_factor=[float(factor) for factor in pool], mode="nearest"))
        return crop(depth_to_space(in_float32(self.head, x), self.block), shape).sigmoid()
