"""Drawing labelled scans: an atlas in a shape and a look that two variational autoencoders draw, each by itself.

Source: Ding, Yu, Yang, AAAI 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from stages.parts.batches.scans import Scans
from stages.parts.networks.variational import VariationalAutoencoder
from stages.parts.synthesis import Drawn
from stages.parts.warps import warp


@dataclass(frozen=True)
class VariationalSynthesis:
    """x_g = (x_a + D_I(z_I)) o D_S(z_S), z_I and z_S ~ N(0, spread^2), clipped to [0, 1].

    Args:
        shapes: its decoder is D_S; None: the atlas keeps its shape.
        looks: its decoder is D_I; None: the atlas keeps its look.
        spread: standard deviation of the codes; 1 is the prior.
    """

    shapes: VariationalAutoencoder | None
    looks: VariationalAutoencoder | None
    spread: float = 1.0

    @property
    def networks(self) -> list[nn.Module]:
        """All networks that it uses."""
        return [network for network in (self.shapes, self.looks) if network is not None]

    def check(self) -> None:
        """Nothing can be missing."""

    def __call__(self, data: Scans, atlas: int, generator: Generator) -> Drawn:
        """One scan.

        Args:
            data: the cohort.
            atlas: place of the atlas.
            generator: of the CPU, so that all devices draw the same.
        """
        image = data.image([atlas])
        displacement, changed = image.new_zeros(1, 3, *image.shape[2:]), image
        if self.shapes is not None:
            displacement = self._drawn(self.shapes, image, generator)
        if self.looks is not None:
            changed = image + self._drawn(self.looks, image, generator)
        own = data.names[atlas]
        return Drawn(
            warp(changed, displacement).clamp(0, 1),
            warp(image, displacement),
            displacement,
            "prior" if self.shapes else own,
            "prior" if self.looks else own,
        )

    def _drawn(self, autoencoder: VariationalAutoencoder, like: Tensor, generator: Generator) -> Tensor:
        code = self.spread * torch.randn((1, autoencoder.code), generator=generator)
        return autoencoder.outside(autoencoder.decode(code.to(like.device)))
