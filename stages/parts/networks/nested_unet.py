"""U-Net++: a U-Net whose skips pass through nodes of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.blocks import Block, in_float32, initialise
from stages.parts.networks.sizes import CUBE, crop, derived_levels, pad_to_multiple, whole


class NestedUNet(nn.Module):
    """U-Net++: node (i, j) sees the nodes (i, 0) .. (i, j - 1) of its level and node (i + 1, j - 1) of the next one.

    16-32-64-128-256 channels and the blocks of `UNet` with InstanceNorm; max-pooling, trilinear upsampling,
    concatenation. The head reads the last node of the finest level; there is no deep supervision, because methods'
    losses know one output. Levels follow the voxel size as in `UNet`.

    Args:
        inputs: image channels.
        outputs: classes.
        shape, spacing_mm: grid (D, H, W) that the levels are derived from; small grids lack the coarsest levels.

    Source: Zhou, Siddiquee, Tajbakhsh, Liang, "UNet++", DLMIA 2018, and TMI 2020; half of the published channels.
    """

    WIDTHS = (16, 32, 64, 128, 256)

    def __init__(self, inputs: int, outputs: int, shape: Sequence[int], spacing_mm: Sequence[float] = CUBE) -> None:
        super().__init__()
        levels = derived_levels(shape, spacing_mm, most=len(self.WIDTHS) - 1)
        widths, kernels = self.WIDTHS[: len(levels)], [level.kernel for level in levels]
        self.pools, self.multiple = [level.pool for level in levels[1:]], whole(levels)
        pairs = zip((inputs, *widths[:-1]), widths, kernels, strict=True)
        self.down = nn.ModuleList(Block(a, b, b, kernel) for a, b, kernel in pairs)

        def node(i: int, j: int) -> Block:
            return Block(j * widths[i] + widths[i + 1], widths[i], widths[i], kernels[i])

        last = len(widths) - 1
        self.between = nn.ModuleList(  # of each level but the two coarsest: nodes 1 .. last - i - 1
            nn.ModuleList(node(i, j) for j in range(1, last - i)) for i in range(last - 1)
        )
        self.up = nn.ModuleList(node(i, last - i) for i in range(last))
        self.head = nn.Conv3d(widths[0], outputs, 1)
        initialise(self, self.head, 0.2)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, D, H, W) -> (N, outputs, D, H, W), float32."""
        return self.answer(self.features(x)[-1], x.shape[2:])

    def features(self, x: Tensor) -> list[Tensor]:
        """The last node of each level, from the coarsest to the one that the head reads, on padded grids."""
        x = pad_to_multiple(x, self.multiple).contiguous(memory_format=torch.channels_last_3d)
        nodes = [[self.down[0](x)]]
        for block, pool in zip(self.down[1:], self.pools, strict=True):
            nodes.append([block(F.max_pool3d(nodes[-1][0], pool))])
        for j in range(1, len(nodes)):
            for i in range(len(nodes) - j):
                is_last = i + j == len(nodes) - 1
                block = self.up[i] if is_last else self.between[i][j - 1]  # type: ignore[index]
                below = F.interpolate(
                    nodes[i + 1][j - 1], size=nodes[i][0].shape[2:], mode="trilinear", align_corners=True
                )
                nodes[i].append(block(torch.cat([*nodes[i], below], 1)))
        return [level[-1] for level in reversed(nodes)]

    def answer(self, feature: Tensor, shape: Sequence[int]) -> Tensor:
        """The head on the last of the features, on the image's grid."""
        return crop(in_float32(self.head, feature), shape)
