"""Training of an autoencoder of an atlas's displacements: rebuild them from codes that follow a prior.

Source: Tomar et al., "SST", WACV 2022, section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.batches.pairs import OneAtlas
from stages.parts.networks.discriminators import LatentDiscriminator
from stages.parts.networks.flow_autoencoder import FlowAutoencoder
from stages.parts.warps import warp


@dataclass
class Coded:
    """Displacements on the autoencoder's grid, encoded and decoded."""

    displacement: Tensor  # (N, 3, *grid)
    rebuilt: Tensor
    atlas: Tensor  # (N, 1, D, H, W)
    autoencoder: FlowAutoencoder
    judged: Tensor | None = None  # D_flow's verdict on the code, (N, 1)


@dataclass
class FlowsOfAtlas:
    """The displacements of a batch on the autoencoder's grid, mixed; the registration stands still.

    Every pair is registered once and kept in float16, as far as there is room. Pairs are registered one by one, so that
    a result depends neither on other pairs nor on where a run was resumed.

    Args:
        most_bytes: room for the kept displacements.
    """

    registration: nn.Module
    autoencoder: FlowAutoencoder
    most_bytes: int = 2 * 2**30
    kept: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def __call__(self, batch: OneAtlas) -> Tensor:
        if batch.displacement is None:
            displacements = [self._of_pair(batch, i).float() for i in range(len(batch.moving))]
            with torch.autocast(batch.moving.device.type, enabled=False):
                batch.displacement = torch.einsum("nm,mcdhw->ncdhw", batch.mixture, torch.stack(displacements))
        return batch.displacement

    @torch.no_grad()
    def _of_pair(self, batch: OneAtlas, i: int) -> Tensor:
        """(3, *grid), float16."""
        names = batch.scans[i], batch.scans[len(batch.moving) + i]
        displacement = self.kept.get(names)
        if displacement is None:
            full_size = self.registration(batch.moving[i : i + 1], batch.fixed[i : i + 1])
            displacement = self.autoencoder.inside(full_size)[0].half()
            if (len(self.kept) + 1) * displacement.nbytes <= self.most_bytes:
                self.kept[names] = displacement
        return displacement


@dataclass
class EncodeFlows:
    """Forward pass of the autoencoder.

    Args:
        discriminator: D_flow; None: no discriminator.
    """

    flows: FlowsOfAtlas
    autoencoder: FlowAutoencoder
    discriminator: LatentDiscriminator | None

    def __call__(self, batch: OneAtlas) -> Coded:
        displacement = self.flows(batch)
        code = self.autoencoder.encode(displacement)
        judged = self.discriminator(code) if self.discriminator else None
        return Coded(displacement, self.autoencoder.decode(code), batch.moving[: len(code)], self.autoencoder, judged)


def flow_reconstruction(coded: Coded) -> Tensor:
    """Mean absolute difference of the displacements, in voxels of the autoencoder's grid."""
    return (coded.rebuilt - coded.displacement).abs().mean()


def image_reconstruction(coded: Coded) -> Tensor:
    """1 - SSIM of the atlas under the rebuilt and under the true displacement."""
    outside = coded.autoencoder.outside
    rebuilt, true = (warp(coded.atlas, outside(field)) for field in (coded.rebuilt, coded.displacement))
    return 1 - losses.ms_ssim(rebuilt, true, most_scales=1)


def adversarial(coded: Coded) -> Tensor:
    """The flow encoder's share of the adversarial loss: 0 where D_flow takes the codes for the prior's."""
    assert coded.judged is not None
    return losses.least_squares_gan_loss(coded.judged, 1.0)
