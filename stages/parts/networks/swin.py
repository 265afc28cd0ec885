"""Swin transformer in 3D: attention within windows of tokens, which shift from block to block.

Liu et al., "Swin Transformer", ICCV 2021. Tokens are (N, D, H, W, C).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.together import rand_of_layer

Triple = tuple[int, int, int]


class SwinTransformer(nn.Module):
    """Patches become tokens; stages of blocks, with half as many tokens an axis and twice the channels from one to the
    next.

    Args:
        inputs: image channels.
        patch: voxels of a token, an axis.
        channels: of the first stage.
        depths, heads: blocks and attention heads of each stage.
        window: edges (D, H, W) in tokens; a stage with fewer tokens has smaller ones.
        shape: tokens (D, H, W) of the first stage; other shapes go as well.
        positions: attention has a learned bias for every offset between two tokens of a window.
        most_dropped: stochastic depth: a branch of a block is left out of a training step with a probability that rises
            from 0 in the first block to this in the last one.
    """

    def __init__(
        self,
        inputs: int,
        patch: int,
        channels: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: Triple,
        shape: Sequence[int],
        *,
        positions: bool = True,
        most_dropped: float = 0.3,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv3d(inputs, channels, patch, stride=patch)
        self.embed_norm = nn.LayerNorm(channels)
        rates = iter(torch.linspace(0, most_dropped, sum(depths), device="cpu").tolist())
        widths, self.stages = [channels * 2**stage for stage in range(len(depths))], nn.ModuleList()
        for width, depth, count in zip(widths, depths, heads, strict=True):
            d, h, w = (min(edge, n) for edge, n in zip(window, shape, strict=True))
            self.stages.append(
                nn.Sequential(
                    *(
                        SwinBlock(width, count, (d, h, w), shifted=i % 2 == 1, positions=positions, dropped=next(rates))
                        for i in range(depth)
                    )
                )
            )
            shape = [-(-n // 2) for n in shape]
        self.merges = nn.ModuleList(Merge(width) for width in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, inputs, D, H, W), a multiple of the patch -> each stage's features (N, C, D', H', W'), the finest first.

        From one stage to the next sizes are halved and rounded up.
        """
        tokens = self.embed_norm(self.embed(x).movedim(1, -1))
        features = []
        for place, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            tokens = stage(tokens)
            features.append(norm(tokens).movedim(-1, 1))
            if place < len(self.merges):
                tokens = self.merges[place](tokens)
        return features


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); the MLP is four times as wide.

    Args:
        shifted: windows are shifted by half of their edge, along axes that have more than one.
        dropped: probability that a branch is left out of a training step.
    """

    def __init__(
        self, channels: int, heads: int, window: Triple, *, shifted: bool, positions: bool = True, dropped: float = 0.0
    ) -> None:
        super().__init__()
        self.window, self.shifted, self.dropped = window, shifted, dropped
        self.attention_norm, self.mlp_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window, positions=positions)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._sometimes(self._attend(self.attention_norm(x)))
        return x + self._sometimes(self.mlp(self.mlp_norm(x)))

    def _sometimes(self, branch: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return branch
        kept = rand_of_layer(len(branch)) >= self.dropped
        return branch * (kept / (1 - self.dropped)).view(-1, 1, 1, 1, 1).to(branch)

    def _attend(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[1:4])
        shift = [w // 2 if self.shifted and n > w else 0 for n, w in zip(shape, self.window, strict=True)]
        missing = [-n % w for n, w in zip(shape, self.window, strict=True)]
        padded = F.pad(x, [0, 0, 0, missing[2], 0, missing[1], 0, missing[0]])
        allowed = None
        if any(shift) or any(missing):
            allowed = neighbours(shape, self.window, shift).to(x.device)
        windows, blocks = partitioned(padded.roll([-s for s in shift], (1, 2, 3)), self.window)
        out = together(self.attention(windows, allowed), blocks, self.window).roll(shift, (1, 2, 3))
        return out[:, : shape[0], : shape[1], : shape[2]]


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of each window; queries, keys and values have no bias.

    Args:
        window: edges (D, H, W), T tokens together.
    """

    offsets: Tensor  # see `offsets`

    def __init__(self, channels: int, heads: int, window: Triple, *, positions: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.to_all = nn.Linear(channels, 3 * channels, bias=False)
        self.project = nn.Linear(channels, channels)
        self.bias = None
        if positions:
            self.bias = nn.Parameter(torch.empty(math.prod(2 * w - 1 for w in window), heads))
            nn.init.trunc_normal_(self.bias, std=0.02)
        self.register_buffer("offsets", offsets(window), persistent=False)

    def forward(self, windows: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(N, windows, T, C) -> the same; `allowed` (windows, T, T): whether a query may look at a key."""
        n, count, size, channels = windows.shape
        parts = self.to_all(windows).view(n, count, size, 3, self.heads, channels // self.heads)
        queries, keys, values = parts.permute(3, 0, 1, 4, 2, 5)  # (N, windows, heads, T, C / heads)
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        if self.bias is not None:
            scores = scores + self.bias[self.offsets].permute(2, 0, 1)
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        return self.project((scores.softmax(-1) @ values).transpose(2, 3).reshape(n, count, size, channels))


class Merge(nn.Module):
    """Blocks of 2^3 tokens become one of twice the channels; zeros behind the last token of an odd axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * channels)
        self.reduce = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        odd = [n % 2 for n in x.shape[1:4]]
        x = F.pad(x, [0, 0, 0, odd[2], 0, odd[1], 0, odd[0]])
        blocks, shape = partitioned(x, (2, 2, 2))
        return self.reduce(self.norm(blocks.flatten(2))).unflatten(1, shape)


def partitioned(x: Tensor, window: Sequence[int]) -> tuple[Tensor, Triple]:
    """Tokens (N, D, H, W, C) by window: (N, windows, T, C), and how many windows (D, H, W) there are."""
    n, *sizes, channels = x.shape
    d, h, w = (size // edge for size, edge in zip(sizes, window, strict=True))
    x = x.reshape(n, d, window[0], h, window[1], w, window[2], channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(n, d * h * w, math.prod(window), channels), (d, h, w)


def together(windows: Tensor, blocks: Triple, window: Sequence[int]) -> Tensor:
    """Inverse of `partitioned`."""
    (n, _, _, channels), (d, h, w) = windows.shape, blocks
    x = windows.reshape(n, d, h, w, *window, channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(n, d * window[0], h * window[1], w * window[2], channels)


def neighbours(shape: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Which tokens of a shifted window may look at each other, (windows, T, T), bool.

    A window that is shifted over the border holds tokens from both ends of the grid. Only those of one end see each
    other, and none sees the padding behind the last token, which itself sees but itself.

    Args:
        shape: tokens (D, H, W), before they are padded to whole windows.
        window: edges.
        shift: by which the padded tokens are rolled back.
    """
    sizes = [n + -n % w for n, w in zip(shape, window, strict=True)]
    axes = [(torch.arange(size) + s) % size for size, s in zip(sizes, shift, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None]
    inside = partitioned(places, window)[0][0]  # (windows, T, 3)
    apart = (inside[:, :, None] - inside[:, None]).abs()
    near = (apart < torch.tensor(window)).all(-1)
    real = (inside < torch.tensor(shape)).all(-1)
    return near & (real[:, :, None] == real[:, None])


def offsets(window: Sequence[int]) -> Tensor:
    """A number for the offset between each two tokens of a window, (T, T), from 0 to the number of offsets - 1."""
    places = list(itertools.product(*map(range, window)))
    d, h, w = window
    return torch.tensor(
        [
            [((a - x + d - 1) * (2 * h - 1) + b - y + h - 1) * (2 * w - 1) + c - z + w - 1 for x, y, z in places]
            for a, b, c in places
        ]
    )  # numbers first: subtracted as tensors without a device they make torch load its compiler
