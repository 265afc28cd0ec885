"""Registration networks that encode both images by the same weights, so that their features can be compared.

As bodies of a `RegistrationNetwork` they map [fixed, moving] (N, 2, D, H, W) to a displacement (N, 3, D, H, W);
`with_embeddings` also gives a point on the unit sphere for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.batch_norm import BatchNorm3d
from stages.parts.networks.blocks import Block, in_float32, small_head
from stages.parts.networks.sizes import crop, derived_depth, doubled, pad_to_multiple, space_to_depth
from stages.parts.networks.unet import LightUNet


def apart(pair: Tensor) -> Tensor:
    """[fixed, moving] (N, 2, ...) as images (2N, 1, ...), the fixed ones first."""
    return torch.cat(pair.chunk(2, dim=1))


def together(features: Tensor) -> Tensor:
    """Features of images (2N, C, ...) as those of pairs (N, 2C, ...); the inverse of `apart` for C = 1."""
    return torch.cat(features.chunk(2), 1)


def pooled(features: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the voxels of the fixed and of the moving images' features, (N, C) each, float32."""
    of_fixed, of_moving = features.float().mean((2, 3, 4)).chunk(2)
    return of_fixed, of_moving


def on_sphere(projection: nn.Module, features: Tensor) -> Tensor:
    return F.normalize(in_float32(projection, features), dim=1)


class SiameseUNet(nn.Module):
    """OS-MedSeg's R: VoxelMorph's first U-Net with twice the filters and one encoder for both images.

    Encoder: convolutions 3^3 of stride 2 to 32, 64, 64, 64 channels, LeakyReLU 0.2. Decoder: convolutions to 64 with
    nearest upsampling, each followed by the skips of both images, at full resolution the images themselves; then
    convolutions to 64, 32, 32 and the flow, which starts from N(0, 1e-5). Embeddings: the deepest features' mean
    through a linear map, one for each role. 1.6 M parameters.

    Args:
        shape: grid (D, H, W) that the depth is derived from; any grid goes.

    Source: Zhou et al., OS-MedSeg, section III-A; widths and embeddings as in its published code.
    """

    ENCODER = (32, 64, 64, 64)
    WIDTH = 64
    FINAL = (64, 32, 32)

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        encoder = self.ENCODER[: derived_depth(shape, most=len(self.ENCODER))]
        self.encoder, self.decoder, self.final = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for a, b in zip((1, *encoder[:-1]), encoder, strict=True):
            self.encoder.append(nn.Conv3d(a, b, 3, stride=2, padding=1))
        width = 2 * encoder[-1]
        for skip in (*reversed(encoder[:-1]), 1):
            self.decoder.append(nn.Conv3d(width, self.WIDTH, 3, padding=1))
            width = self.WIDTH + 2 * skip
        for b in self.FINAL:
            self.final.append(nn.Conv3d(width, b, 3, padding=1))
            width = b
        self.head = nn.Conv3d(width, 3, 3, padding=1)
        small_head(self.head)
        self.of_fixed = nn.Linear(encoder[-1], encoder[-1])
        self.of_moving = nn.Linear(encoder[-1], encoder[-1])
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, pair: Tensor) -> Tensor:
        """(N, 2, D, H, W) -> (N, 3, D, H, W), float32."""
        return self._decode(self._encode(pair), pair.shape[2:])

    def with_embeddings(self, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, and the embeddings of the fixed and of the moving image, (N, K), float32."""
        levels = self._encode(pair)
        fixed, moving = pooled(levels[-1])
        raw = self._decode(levels, pair.shape[2:])
        return raw, on_sphere(self.of_fixed, fixed), on_sphere(self.of_moving, moving)

    def _encode(self, pair: Tensor) -> list[Tensor]:
        x = pad_to_multiple(apart(pair), 2 ** len(self.encoder)).contiguous(memory_format=torch.channels_last_3d)
        levels = [x]
        for convolution in self.encoder:
            levels.append(F.leaky_relu(convolution(levels[-1]), 0.2))
        return levels

    def _decode(self, levels: list[Tensor], shape: Sequence[int]) -> Tensor:
        *skips, deepest = map(together, levels)
        x = deepest
        for convolution, skip in zip(self.decoder, reversed(skips), strict=True):
            x = F.interpolate(F.leaky_relu(convolution(x), 0.2), scale_factor=2, mode="nearest")
            x = torch.cat([x, skip.to(x.dtype)], 1)
        for convolution in self.final:
            x = F.leaky_relu(convolution(x), 0.2)
        return crop(in_float32(self.head, x), shape)


def batch_block(inputs: int, outputs: int) -> nn.Sequential:
    """Twice: convolution 3^3, BatchNorm, ReLU."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv3d(width, outputs, 3, padding=1), BatchNorm3d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def instance_block(inputs: int, outputs: int) -> Block:
    """Twice: convolution 3^3, InstanceNorm, LeakyReLU 0.2."""
    return Block(inputs, outputs, outputs)


class PooledSiameseUNet(nn.Module):
    """CLMorph's registration network, and a light one for CPUs: encoder 16-32-64 with max-pooling, bottleneck 128.

    The decoder takes the skips of both images; trilinear upsampling. Embeddings: the deepest features' mean through a
    perceptron of two layers, the same for both roles.

    Args:
        shape: grid (D, H, W) that the depth is derived from.
        block: makes a level: `batch_block` (CLMorph) or `instance_block`.
        light: the finest level works on 2^3 blocks of voxels and the output is interpolated, as in `LightUNet`. It is
            half the difference of the decoder's outputs for the pair and for the swapped pair (see antisymmetric in
            `RegistrationNetwork`). InstanceNorm leaves little in a mean over voxels that tells images apart, so the
            contrastive loss has less effect here.

    Source: Liu et al., CLMorph (TNNLS 2023), published network, with upsampling in place of transposed convolutions and
    without the sampled displacement.
    """

    WIDTHS = (16, 32, 64)

    def __init__(self, shape: Sequence[int], block: Callable[[int, int], nn.Module], *, light: bool = False) -> None:
        super().__init__()
        self.light = light
        stem = 2 if light else 1
        widths = self.WIDTHS[: derived_depth(shape, most=len(self.WIDTHS), stem=stem)]
        self.encoder = nn.ModuleList(block(a, b) for a, b in zip((stem**3, *widths[:-1]), widths, strict=True))
        self.bottom = block(2 * widths[-1], 2 * widths[-1])
        self.decoder = nn.ModuleList()
        below = 2 * widths[-1]
        for width in reversed(widths):
            self.decoder.append(block(below + 2 * width, 2 * width))
            below = 2 * width
        self.head = nn.Conv3d(below, 3, 3, padding=1)
        deepest = widths[-1]
        self.projection = nn.Sequential(nn.Linear(deepest, deepest), nn.ReLU(), nn.Linear(deepest, deepest))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=0.2 if light else 0.0)
        small_head(self.head)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, pair: Tensor) -> Tensor:
        """(N, 2, D, H, W) -> (N, 3, D, H, W), float32."""
        return self._decode(self._encode(pair), pair.shape[2:])

    def with_embeddings(self, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, and the embeddings of the fixed and of the moving image, (N, K), float32."""
        levels = self._encode(pair)
        fixed, moving = (on_sphere(self.projection, features) for features in pooled(levels[-1]))
        return self._decode(levels, pair.shape[2:]), fixed, moving

    def _encode(self, pair: Tensor) -> list[Tensor]:
        x = pad_to_multiple(apart(pair), 2 ** (len(self.encoder) + self.light))
        x = (space_to_depth(x) if self.light else x).contiguous(memory_format=torch.channels_last_3d)
        levels = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool3d(x, 2) if level else x)
            levels.append(x)
        return levels

    def _decode(self, levels: list[Tensor], shape: Sequence[int]) -> Tensor:
        skips = [together(level) for level in levels]
        if self.light:  # the pairs, then the swapped pairs
            skips = [torch.cat([skip, torch.cat(skip.chunk(2, dim=1)[::-1], 1)]) for skip in skips]
        x = self.bottom(F.max_pool3d(skips[-1], 2))
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=True)
            x = block(torch.cat([skip, x], 1))
        x = in_float32(self.head, x)
        if self.light:
            forward, backward = x.chunk(2)
            x = LightUNet.UNIT * doubled((forward - backward) / 2)
        return crop(x, shape)
