"""OS-MedSeg's networks: the residual U-Net, a U-Net with a head of its own, teacher and student together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from stages.parts.networks.blocks import Block, in_float32
from stages.parts.networks.sizes import crop, derived_depth, pad_to_multiple
from stages.parts.networks.unet import LightUNet, UNet, down_and_up


class ResidualUnit(nn.Module):
    """Twice convolution 3^3, InstanceNorm, PReLU; a shortcut by the identity, or by a 1^3 convolution.

    Source: He et al., "Deep residual learning", CVPR 2016, as MONAI's `ResidualUnit` has it.
    """

    kernel = (3, 3, 3)

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_normalised(inputs, outputs), *_normalised(outputs, outputs))
        self.around = nn.Identity() if inputs == outputs else nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.around(x)


def _normalised(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs), nn.PReLU()


class ResidualUNet(nn.Module):
    """OS-MedSeg's U-Net for teacher and student: 16-32-64-128-256 channels, a residual unit per level, down and up.

    Max-pooling, trilinear upsampling and concatenation as in `UNet`. The segmentation head has a convolution of its own
    before the last one, so that the decoder's features need not be linear in the classes; the reconstruction head is
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
        self.pools = [(2, 2, 2)] * len(self.up)
        width = widths[0]
        self.before_head = nn.Identity() if reconstructs else nn.Sequential(*_normalised(width, width))
        self.head = nn.Conv3d(width, outputs, 3, padding=1) if reconstructs else nn.Conv3d(width, outputs, 1)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        """The decoder's features at each level, from the coarsest to the one that the head reads, on padded grids."""
        x = pad_to_multiple(x, 2 ** len(self.up)).contiguous(memory_format=torch.channels_last_3d)
        return down_and_up(x, self.down, self.up, self.pools)

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        return crop(in_float32(self.head, self.before_head(feature)), shape)


class OwnHead(nn.Module):
    """A U-Net with a block between decoder and head, as OS-MedSeg's student has a convolution there.

    Hints make the decoder's features reconstruct the scan; the classes need not be linear in them.

    Args:
        body: a `FeatureNetwork` whose head reads the last of its features.
    """

    def __init__(self, body: UNet | LightUNet) -> None:
        super().__init__()
        width = body.head.in_channels
        self.body, self.block = body, Block(width, width, width, body.down[0].kernel)  # type: ignore[union-attr,arg-type]
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, D, H, W) -> (N, classes, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        return self.body.features(x)

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        return self.body.answer(self.block(feature), shape)


class TeacherAndStudent(nn.Module):
    """The two networks as one, for the optimiser that moves them together; each is a `FeatureNetwork`."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student
