"""Training of variational autoencoders of what takes an atlas to scans: its displacements, its changes of look.

Source: Ding, Yu, Yang, AAAI 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts import losses
from stages.parts.batches.pairs import OneAtlas
from stages.parts.networks.variational import VariationalAutoencoder
from stages.parts.together import randn
from stages.parts.warps import warp


@dataclass
class Encoded:
    """Fields on an autoencoder's grid, encoded, drawn and decoded."""

    field: Tensor  # (N, channels, *grid)
    rebuilt: Tensor
    mean: Tensor  # of the codes, (N, K)
    log_variance: Tensor
    atlas: Tensor  # (N, 1, D, H, W)
    autoencoder: VariationalAutoencoder


@dataclass
class EncodeFields:
    """Forward pass of a variational autoencoder; what finds the fields stands still.

    A code is drawn by m + exp(s / 2) n, n ~ N(0, I), so that gradients reach m and s. Every pair's field is found once,
    alone, and kept in float16 as far as there is room, so that a result depends neither on other pairs nor on where a
    run was resumed.

    Args:
        finds: (atlas, scan), (1, C, D, H, W) each -> the field, (1, channels, D, H, W).
        most_bytes: room for the kept fields.
    """

    finds: Callable[[Tensor, Tensor], Tensor]
    autoencoder: VariationalAutoencoder
    most_bytes: int = 2**30
    kept: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def __call__(self, batch: OneAtlas) -> Encoded:
        found = torch.stack([self._of_pair(batch, i) for i in range(len(batch.moving))]).float()
        mean, log_variance = self.autoencoder.encode(found)
        noise = randn(tuple(mean.shape), batch.draw.generator)
        rebuilt = self.autoencoder.decode(mean + (log_variance / 2).exp() * noise)
        return Encoded(found, rebuilt, mean, log_variance, batch.moving, self.autoencoder)

    @torch.no_grad()
    def _of_pair(self, batch: OneAtlas, i: int) -> Tensor:
        """(channels, *grid), float16."""
        names = batch.scans[i], batch.scans[len(batch.moving) + i]
        found = self.kept.get(names)
        if found is None:
            full_size = self.finds(batch.moving[i : i + 1], batch.fixed[i : i + 1])
            found = self.autoencoder.inside(full_size)[0].half()
            if (len(self.kept) + 1) * found.nbytes <= self.most_bytes:
                self.kept[names] = found
        return found


def field_reconstruction(encoded: Encoded) -> Tensor:
    """L_d: mean square of rebuilt field minus field; of displacements in voxels^2 of the autoencoder's grid."""
    return F.mse_loss(encoded.rebuilt, encoded.field)


def image_reconstruction(encoded: Encoded) -> Tensor:
    """L_i: mean square between the atlas under the rebuilt and under the found displacement."""
    outside = encoded.autoencoder.outside
    rebuilt, found = (warp(encoded.atlas, outside(moves)) for moves in (encoded.rebuilt, encoded.field))
    return F.mse_loss(rebuilt, found)


def divergence(encoded: Encoded) -> Tensor:
    """L_kl: of the codes from N(0, I)."""
    return losses.code_kl_loss(encoded.mean, encoded.log_variance)
