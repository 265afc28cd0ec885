"""Networks. Bodies may run in bfloat16 (autocast); heads, velocities and displacements are float32."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stages.parts.warps import halved, integrate, rescale


def derived_depth(shape: Sequence[int], *, most: int, stem: int = 1) -> int:
    """Halvings that leave at least 3 voxels an axis on the padded grid, at most `most`.

    Below that InstanceNorm fails on 1^3, and bfloat16 convolutions of depth 2 give wrong weight gradients on the CPU.
    """
    for depth in range(most, 0, -1):
        factor = stem * 2**depth
        if all(-(-n // factor) >= 3 for n in shape):
            return depth
    raise ValueError(f"grid {tuple(shape)} is too small for a U-Net; every axis needs more than {4 * stem} voxels")


class Block(nn.Module):
    """Twice: convolution 3^3, normalisation, LeakyReLU 0.2."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for width in (inputs, outputs):
            self.layers.append(nn.Conv3d(width, outputs, 3, padding=1, bias=True))
            self.layers.append(nn.GroupNorm(groups, outputs))

    def forward(self, x: Tensor) -> Tensor:
        for convolution, normalisation in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = normalise_and_rectify(convolution(x), normalisation, 0.2)  # type: ignore[arg-type]
        return x


def normalise_and_rectify(x: Tensor, normalisation: nn.GroupNorm, slope: float) -> Tensor:
    """GroupNorm, then LeakyReLU; on the CPU with a gradient of our own, which takes a fifth of the time."""
    if x.device.type == "cpu":
        return _NormaliseAndRectify.apply(x, normalisation.weight, normalisation.bias, normalisation, slope)
    return F.leaky_relu(normalisation(x), slope, inplace=True)


class _NormaliseAndRectify(torch.autograd.Function):
    # torch's gradient of GroupNorm is a scalar loop over channels_last tensors with few channels a group. Batch norm's
    # kernels are not, sum and scale in float32 whatever the tensor, and give the same gradient sample by sample.
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


class UNet(nn.Module):
    """The U-Net that BRBS uses for both networks: 16-32-64-128-256 channels, skips back to 16; about 5.9 M parameters.

    Each level: twice [convolution 3^3, GroupNorm with 4 channels a group, LeakyReLU 0.2]; max-pooling; trilinear
    upsampling, then concatenation. Inputs of any size are padded to a multiple of 2^depth and cropped back.

    Args:
        inputs: image channels.
        outputs: channels of the result: classes, or 3 for a displacement.
        shape: grid (D, H, W) that the depth is derived from.
        per_group: channels that are normalised together; 1 is InstanceNorm, with which it learns faster.

    Source: He et al., BRBS (TNNLS 2022), published networks.
    """

    WIDTHS = (16, 32, 64, 128, 256)

    def __init__(self, inputs: int, outputs: int, shape: Sequence[int], per_group: int = 4) -> None:
        super().__init__()
        widths = self.WIDTHS[: derived_depth(shape, most=len(self.WIDTHS) - 1) + 1]
        pairs = zip((inputs, *widths[:-1]), widths, strict=True)
        self.down = nn.ModuleList(Block(a, b, b // per_group) for a, b in pairs)
        self.up = nn.ModuleList(Block(a + b, a, a // per_group) for a, b in pairwise(widths))
        self.head = nn.Conv3d(widths[0], outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d) and module is not self.head:
                nn.init.kaiming_normal_(module.weight)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        """What the decoder says at each level, from the coarsest to the one that the head reads, on padded grids."""
        x = pad_to_multiple(x, 2 ** len(self.up)).contiguous(memory_format=torch.channels_last_3d)
        return down_and_up(x, self.down, self.up)

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        return crop(in_float32(self.head, feature), shape)


def down_and_up(x: Tensor, down: nn.ModuleList, up: nn.ModuleList) -> list[Tensor]:
    """A U-Net's levels with max-pooling and trilinear upsampling: the deepest, then each that the decoder adds."""
    skips = []
    for level, block in enumerate(down):
        x = block(F.max_pool3d(x, 2) if level else x)
        skips.append(x)
    features = [x]
    for skip, block in zip(reversed(skips[:-1]), reversed(up), strict=True):
        x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=True)
        x = block(torch.cat([skip, x], 1))
        features.append(x)
    return features


class FeatureNetwork(Protocol):
    """A U-Net whose decoder can be looked into."""

    def features(self, x: Tensor) -> list[Tensor]: ...
    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor: ...


class LightUNet(nn.Module):
    """A lighter U-Net: the finest level works on 2^3 blocks of voxels, in and out.

    A stride-2 stem (space to depth, then convolution), levels 32-64-128-256 with InstanceNorm, and a head that goes
    back to full resolution: the network never convolves there, which is where a U-Net spends its time.

    Args:
        inputs: image channels.
        outputs: channels of the result.
        shape: grid (D, H, W) that the depth is derived from.
        widths: channels of the levels, from half resolution down.
        smooth: the head interpolates (displacements, in units of `UNIT` voxels: Adam moves every weight alike, and by
            hundredths of a voxel training would last ten times as long); otherwise it writes every voxel of a block.
    """

    UNIT = 10.0

    def __init__(
        self,
        inputs: int,
        outputs: int,
        shape: Sequence[int],
        widths: Sequence[int] = (32, 64, 128, 256),
        smooth: bool = False,
    ) -> None:
        super().__init__()
        self.smooth = smooth
        widths = tuple(widths)[: derived_depth(shape, most=len(widths) - 1, stem=2) + 1]
        self.down = nn.ModuleList(Block(a, b, b) for a, b in zip((8 * inputs, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(Block(a + b, a, a) for a, b in pairwise(widths))
        self.head = nn.Conv3d(widths[0], outputs if smooth else 8 * outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d) and module is not self.head:
                nn.init.kaiming_normal_(module.weight, a=0.2)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        """What the decoder says at each level, from the coarsest to the one that the head reads, on padded grids."""
        x = space_to_depth(pad_to_multiple(x, 2 ** (len(self.up) + 1)))
        return down_and_up(x.contiguous(memory_format=torch.channels_last_3d), self.down, self.up)

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        x = in_float32(self.head, feature)
        return crop(self.UNIT * doubled(x) if self.smooth else depth_to_space(x), shape)


class ResidualUnit(nn.Module):
    """Twice convolution 3^3, InstanceNorm, PReLU; around them the identity, or a convolution 1^3 to as many channels.

    Source: He et al., "Deep residual learning", CVPR 2016, as MONAI's `ResidualUnit` has it.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_normalised(inputs, outputs), *_normalised(outputs, outputs))
        self.around = nn.Identity() if inputs == outputs else nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.around(x)


def _normalised(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs), nn.PReLU()


class ResidualUNet(nn.Module):
    """OS-MedSeg's U-Net for teacher and student: 16-32-64-128-256 channels, a residual unit a level, both ways.

    Max-pooling, trilinear upsampling and concatenation as in `UNet`. The segmentation head has a convolution of its own
    before the last one, so that what the decoder says need not be linear in the classes; the reconstruction head is
    one plain convolution.

    Args:
        inputs: image channels.
        outputs: classes, or image channels to reconstruct.
        shape: grid (D, H, W) that the depth is derived from.
        reconstructs: which of the two heads.

    Source: Zhou et al., OS-MedSeg, section III-B and Fig. 3; InstanceNorm, PReLU and the head as in its published code
    (Fig. 3 says layer normalisation).
    """

    WIDTHS = (16, 32, 64, 128, 256)

    def __init__(self, inputs: int, outputs: int, shape: Sequence[int], *, reconstructs: bool = False) -> None:
        super().__init__()
        widths = self.WIDTHS[: derived_depth(shape, most=len(self.WIDTHS) - 1) + 1]
        self.down = nn.ModuleList(ResidualUnit(a, b) for a, b in zip((inputs, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(ResidualUnit(a + b, a) for a, b in pairwise(widths))
        width = widths[0]
        self.before_head = nn.Identity() if reconstructs else nn.Sequential(*_normalised(width, width))
        self.head = nn.Conv3d(width, outputs, 3, padding=1) if reconstructs else nn.Conv3d(width, outputs, 1)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        """What the decoder says at each level, from the coarsest to the one that the head reads, on padded grids."""
        x = pad_to_multiple(x, 2 ** len(self.up)).contiguous(memory_format=torch.channels_last_3d)
        return down_and_up(x, self.down, self.up)

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        return crop(in_float32(self.head, self.before_head(feature)), shape)


class VoxelMorphUNet(nn.Module):
    """VoxelMorph's U-Net: encoder 16,32,32,32, decoder 32,32,32,32,32,16,16, LeakyReLU 0.2, max-pooling.

    Upsampling is nearest neighbour; the flow convolution starts from N(0, 1e-5). 327 k parameters for an image pair.

    Args:
        inputs: image channels.
        outputs: channels of the result.
        shape: grid (D, H, W) that the depth is derived from; the coarsest levels fall away on small grids.
        encoder, decoder, final: channels; an encoder's convolution is pooled, a decoder's upsampled.

    Source: Balakrishnan et al., TMI 2019; the published `voxelmorph` configuration.
    """

    ENCODER = (16, 32, 32, 32)
    DECODER = (32, 32, 32, 32)
    FINAL = (32, 16, 16)

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
        for b in final:
            self.final.append(nn.Conv3d(width, b, 3, padding=1))
            width = b
        self.head = nn.Conv3d(width, outputs, 3, padding=1)
        small_head(self.head)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        shape = x.shape[2:]
        x = pad_to_multiple(x, 2 ** len(self.encoder)).contiguous(memory_format=torch.channels_last_3d)
        skips = []
        for convolution in self.encoder:
            skips.append(F.leaky_relu(convolution(x), 0.2))
            x = F.max_pool3d(skips[-1], 2)
        for convolution in self.decoder:
            x = F.leaky_relu(convolution(x), 0.2)
            x = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()], 1)
        for convolution in self.final:
            x = F.leaky_relu(convolution(x), 0.2)
        return crop(in_float32(self.head, x), shape)


class PatchDiscriminator(nn.Module):
    """A 3D PatchGAN: says of each patch of an image whether it is real.

    Convolutions 4^3 of stride 2 to 32-64-128-256 channels with LeakyReLU 0.2 and, but for the first, InstanceNorm;
    then one 4^3 of stride 1 to one channel. Four levels see patches of 94^3 voxels, three 46^3, two 22^3: there are
    as many, up to four, as leave a patch smaller than three quarters of the grid's shortest axis (the paper's grid is
    160 x 160 x 128). Where a patch is the whole crop, what tells is where the crop ends. A grid is padded with zeros
    to a multiple of 2^levels.

    Source: Isola et al., "pix2pix", CVPR 2017, in 3D as LT-Net (CVPR 2020) uses it; widths as common implementations.
    """

    WIDTHS = (32, 64, 128, 256)

    def __init__(self, inputs: int, shape: Sequence[int]) -> None:
        super().__init__()
        within = [n for n in range(1, len(self.WIDTHS) + 1) if 6 * 2**n - 2 <= 0.75 * min(shape)]
        widths = self.WIDTHS[: derived_depth(shape, most=max(within, default=1))]
        pairs = zip((inputs, *widths[:-1]), widths, strict=True)
        self.down = nn.ModuleList(nn.Conv3d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(width, width) for width in widths[1:])
        self.head = nn.Conv3d(widths[-1], 1, 4)
        for convolution in self.down:
            nn.init.kaiming_normal_(convolution.weight, a=0.2)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, 1, D / 2^levels, ...), rounded up, float32; trained towards 1: real, 0: not."""
        x = pad_to_multiple(x, 2 ** len(self.down)).contiguous(memory_format=torch.channels_last_3d)
        x = F.leaky_relu(self.down[0](x), 0.2)
        for convolution, norm in zip(self.down[1:], self.norms, strict=True):
            x = normalise_and_rectify(convolution(x), norm, 0.2)  # type: ignore[arg-type]
        return in_float32(self.head, F.pad(x, (1, 2, 1, 2, 1, 2)))


class RegistrationNetwork(nn.Module):
    """A network over [fixed, moving] as a map of image pairs to displacements.

    Args:
        body: (N, 2, D, H, W) -> (N, 3, D, H, W).
        diffeomorphic: the body's output is a stationary velocity field, integrated at half resolution in 7 steps.
        antisymmetric: the output is half the difference of what the body says of the pair and of the swapped pair, so
            that it changes sign with the roles: the body cannot spend its first steps on shifts that are the same for
            every pair. With `diffeomorphic` the two directions are each other's inverse.
    """

    def __init__(self, body: nn.Module, *, diffeomorphic: bool = False, antisymmetric: bool = False) -> None:
        super().__init__()
        self.body = body
        self.diffeomorphic = diffeomorphic
        self.antisymmetric = antisymmetric

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (N, 1, D, H, W) -> displacement (N, 3, D, H, W), voxels, float32."""
        if self.antisymmetric:
            return self._displacement(self._half_difference(moving, fixed))
        return self._displacement(self.body(torch.cat([fixed, moving], 1)))

    def with_embeddings(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The displacement, and the embeddings (N, K) of the moving and of the fixed image; of a Siamese body."""
        raw, of_fixed, of_moving = self.body.with_embeddings(torch.cat([fixed, moving], 1))  # type: ignore[operator]
        return self._displacement(raw), of_moving, of_fixed

    def both_ways(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacements of both directions, (2N, 3, D, H, W), voxels: moving to fixed, then fixed to moving."""
        if self.antisymmetric:
            raw = self._half_difference(moving, fixed)
            return self._displacement(torch.cat([raw, -raw]))
        return self(torch.cat([moving, fixed]), torch.cat([fixed, moving]))

    def _half_difference(self, moving: Tensor, fixed: Tensor) -> Tensor:
        pairs = torch.cat([torch.cat([fixed, moving], 1), torch.cat([moving, fixed], 1)])
        forward, backward = self.body(pairs).chunk(2)
        return (forward - backward) / 2

    def _displacement(self, raw: Tensor) -> Tensor:
        if not self.diffeomorphic:
            return raw
        with torch.autocast(raw.device.type, enabled=False):
            shape = tuple(raw.shape[2:])
            return rescale(integrate(rescale(raw, halved(shape))), shape)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros behind the last voxel of each axis up to a multiple; `crop` undoes it."""
    missing = [-n % multiple for n in x.shape[2:]]
    return F.pad(x, [0, missing[2], 0, missing[1], 0, missing[0]]) if any(missing) else x


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x[:, :, : shape[0], : shape[1], : shape[2]]


def space_to_depth(x: Tensor) -> Tensor:
    """(N, C, 2D, 2H, 2W) -> (N, 8C, D, H, W): each 2^3 block of voxels becomes channels."""
    n, c, d, h, w = x.shape
    x = x.reshape(n, c, d // 2, 2, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(n, 8 * c, d // 2, h // 2, w // 2)


def depth_to_space(x: Tensor) -> Tensor:
    """Inverse of `space_to_depth`: (N, 8C, D, H, W) -> (N, C, 2D, 2H, 2W)."""
    n, c, d, h, w = x.shape
    x = x.reshape(n, c // 8, 2, 2, 2, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(n, c // 8, 2 * d, 2 * h, 2 * w)


def doubled(x: Tensor) -> Tensor:
    """Twice as many voxels an axis, trilinear; the coarse voxels lie at the centres of their blocks of 2^3."""
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)


def in_float32(head: nn.Module, x: Tensor) -> Tensor:
    """A head outside autocast: bfloat16 would round a displacement of 10 voxels to 1/16."""
    with torch.autocast(x.device.type, enabled=False):
        return head(x.float())


def small_head(head: nn.Conv3d, std: float = 1e-5) -> None:
    """A displacement head that starts at the identity: N(0, std), no bias."""
    nn.init.normal_(head.weight, std=std)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
