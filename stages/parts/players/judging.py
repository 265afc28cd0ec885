"""Training of discriminators: on real and warped images, or on codes from the prior and from an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.batches.pairs import OneAtlas, Pair, TwoScans
from stages.parts.networks.discriminators import LatentDiscriminator
from stages.parts.networks.flow_autoencoder import FlowAutoencoder
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.style import style_prior
from stages.parts.players.flow import FlowsOfAtlas
from stages.parts.together import randn
from stages.parts.warps import warp

Own = Literal["moving", "fixed"]  # which scan of a pair a style's code is learned of


@dataclass
class Judged:
    """The discriminator's verdicts, patch by patch, (N, 1, d, h, w)."""

    real: Tensor  # of scans
    fake: Tensor  # of warped atlases


@dataclass
class JudgeWarped:
    """Forward pass of the discriminator: real scans, and atlases that the current G_F warps to them.

    G_F stands still: no gradient goes back to it.
    """

    registration: RegistrationNetwork
    discriminator: nn.Module

    def __call__(self, batch: Pair) -> Judged:
        with torch.no_grad():
            warped = warp(batch.moving, self.registration(batch.moving, batch.fixed))
        return Judged(*self.discriminator(torch.cat([batch.fixed, warped])).chunk(2))


@dataclass
class JudgeStyles:
    """Forward pass of D_style: the prior's codes, and those of scans; the encoder stands still.

    Args:
        own: which scan of a pair is encoded.
    """

    encoder: nn.Module
    discriminator: LatentDiscriminator
    own: Own = "moving"

    def __call__(self, batch: TwoScans) -> Judged:
        with torch.no_grad():
            encoded = self.encoder(batch.moving if self.own == "moving" else batch.fixed)
        prior = style_prior(len(encoded), batch.draw.generator)
        return Judged(*self.discriminator(torch.cat([prior, encoded])).chunk(2))


@dataclass
class JudgeFlows:
    """Forward pass of D_flow: the prior's codes, and those of displacements; the autoencoder stands still."""

    flows: FlowsOfAtlas
    autoencoder: FlowAutoencoder
    discriminator: LatentDiscriminator

    def __call__(self, batch: OneAtlas) -> Judged:
        with torch.no_grad():
            encoded = self.autoencoder.encode(self.flows(batch))
        prior = randn(encoded.shape, batch.draw.generator)
        return Judged(*self.discriminator(torch.cat([prior, encoded])).chunk(2))


def real(judged: Judged) -> Tensor:
    """The discriminator's share of L_GAN on scans: 0 where it says 1."""
    return losses.least_squares_gan_loss(judged.real, 1.0)


def fake(judged: Judged) -> Tensor:
    """The discriminator's share of L_GAN on warped atlases: 0 where it says 0."""
    return losses.least_squares_gan_loss(judged.fake, 0.0)
