"""VoxelMorph's U-Net, and the lighter variant of SST (Tomar et al., WACV 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.blocks import in_float32, small_head
from stages.parts.networks.sizes import crop, derived_depth, pad_to_multiple
from stages.parts.warps import halved


class VoxelMorphUNet(nn.Module):
    """VoxelMorph's U-Net: encoder 16,32,32,32, decoder 32,32,32,32,32,16,16, LeakyReLU 0.2, max-pooling.

    Upsampling is nearest neighbour; the flow convolution starts from N(0, 1e-5). 327 k parameters for an image pair.

    Args:
        inputs: image channels.
        outputs: channels of the result.
        shape: grid (D, H, W) that the depth is derived from; small grids lack the coarsest levels.
        encoder, decoder, final: channels; an encoder's convolution is pooled, a decoder's upsampled.

    Source: Balakrishnan et al., TMI 2019; the published `voxelmorph` configuration.
    """

    ENCODER = (16, 32, 32, 32)
    DECODER = (32, 32, 32, 32)
    FINAL = (32, 16, 16)
    AT_HALF = False

    def __init__(
        self,
        inputs: int,
        outputs: int,
        shape: Sequence[int],
        encoder: Sequence[int] = ENCODER,
        decoder: Sequence[int] = DECODER,
        final: Sequence[int] = FINAL,
    ) -> None:
        super().__init__()
        depth = derived_depth(shape, most=len(encoder))
        encoder, decoder = tuple(encoder)[:depth], tuple(decoder)[:depth]
        self.encoder = nn.ModuleList(
            nn.Conv3d(a, b, 3, padding=1) for a, b in zip((inputs, *encoder[:-1]), encoder, strict=True)
        )
        self.decoder, self.final = nn.ModuleList(), nn.ModuleList()
        width = encoder[-1]
        for b, skip in zip(decoder, reversed(encoder), strict=True):
            self.decoder.append(nn.Conv3d(width, b, 3, padding=1))
            width = b + skip
        if self.AT_HALF:
            width = decoder[-1]
        for b in final:
            self.final.append(nn.Conv3d(width, b, 3, padding=1))
            width = b
        self.head = nn.Conv3d(width, outputs, 3, padding=1)
        small_head(self.head)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @property
    def down(self) -> nn.ModuleList:
        return self.encoder

    @property
    def up(self) -> Sequence[nn.Module]:
        """The decoder, finest first."""
        return [*reversed(self.final), *reversed(self.decoder)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        shape = x.shape[2:]
        return self.answer(self.features(x)[-1], halved(shape) if self.AT_HALF else shape)

    def features(self, x: Tensor) -> list[Tensor]:
        """The decoder's features, from the coarsest to those that the head reads, on padded grids."""
        x = pad_to_multiple(x, 2 ** len(self.encoder)).contiguous(memory_format=torch.channels_last_3d)
        skips, features = [], []
        for convolution in self.encoder:
            skips.append(F.leaky_relu(convolution(x), 0.2))
            x = F.max_pool3d(skips[-1], 2)
        for convolution in self.decoder:
            x = F.leaky_relu(convolution(x), 0.2)
            if self.AT_HALF and len(skips) == 1:
                break
            features.append(x)
            x = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()], 1)
        for convolution in self.final:
            x = F.leaky_relu(convolution(x), 0.2)
        return [*features, x]

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        return crop(in_float32(self.head, feature), shape)


class HalfVoxelMorphUNet(VoxelMorphUNet):
    """VoxelMorph's U-Net without its last upsampling: the final convolutions and the result are on half the grid.

    (N, inputs, D, H, W) -> (N, outputs, D / 2, H / 2, W / 2), sizes rounded up.

    Source: Dalca et al., MedIA 2019; the published `voxelmorph` configuration.
    """

    AT_HALF = True


class StridedUNet(nn.Module):
    """SST's light VoxelMorph: convolutions 5^3, of stride 2 to 16-32-32-32, then 32-32-32-16 and 16, LeakyReLU 0.2.

    Upsampling is nearest neighbour, skips concatenate, the last one the images; the head starts from N(0, 1e-3).

    Args:
        inputs: image channels.
        outputs: channels of the result.
        shape: grid (D, H, W) that the depth is derived from.
    """

    ENCODER = (16, 32, 32, 32)
    DECODER = (32, 32, 32, 16)

    def __init__(self, inputs: int, outputs: int, shape: Sequence[int]) -> None:
        super().__init__()
        depth = derived_depth(shape, most=len(self.ENCODER))
        encoder, decoder = self.ENCODER[:depth], self.DECODER[-depth:]
        self.down = nn.ModuleList(nn.Conv3d(a, b, 5, stride=2, padding=2) for a, b in pairwise((inputs, *encoder)))
        below = [encoder[-1], *(a + b for a, b in zip(decoder, reversed(encoder[:-1]), strict=False))]
        self.up = nn.ModuleList(nn.Conv3d(a, b, 5, padding=2) for a, b in zip(below, decoder, strict=True))
        self.last = nn.Conv3d(decoder[-1] + inputs, 16, 5, padding=2)
        self.head = nn.Conv3d(16, outputs, 5, padding=2)
        small_head(self.head, std=1e-3)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        shape = x.shape[2:]
        x = pad_to_multiple(x, 2 ** len(self.down)).contiguous(memory_format=torch.channels_last_3d)
        skips = []
        for convolution in self.down:
            skips.append(x)
            x = F.leaky_relu(convolution(x), 0.2)
        for convolution in self.up:
            x = F.interpolate(F.leaky_relu(convolution(x), 0.2), scale_factor=2, mode="nearest")
            x = torch.cat([x, skips.pop()], 1)
        return crop(in_float32(self.head, F.leaky_relu(self.last(x), 0.2)), shape)
