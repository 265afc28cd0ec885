"""Training of a registration network that predicts a Gaussian of velocity fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from stages.parts import losses
from stages.parts.batches.pairs import LabelledPair, LabelledPairs
from stages.parts.networks.velocity import VelocityDistribution
from stages.parts.players.registering import Registered, labelled_classes
from stages.parts.together import randn


@dataclass
class Sampled(Registered):
    """Pairs registered by one sampled velocity each."""

    mean: Tensor | None = None  # of the velocity, (N, 3, D', H', W'), in voxels of its own grid
    log_variance: Tensor | None = None


@dataclass
class RegisterBySample:
    """Forward pass of a probabilistic player: atlas to scan by one sample m + exp(s / 2) e, e ~ N(0, I).

    The sample is reparametrised, so that mean m and log-variance s get gradients through the images.
    """

    network: VelocityDistribution

    def __call__(self, batch: LabelledPair | LabelledPairs) -> Sampled:
        assert batch.draw is not None, "the samplers of pairs fill it in"
        mean, log_variance = self.network.distribution(batch.moving, batch.fixed)
        noise = randn(mean.shape, batch.draw.generator)
        velocity = mean + (log_variance / 2).exp() * noise
        displacement = self.network.displacement(velocity, tuple(batch.fixed.shape[2:]))
        result = Sampled(batch.moving, batch.fixed, displacement, 1, mean=mean, log_variance=log_variance)
        if isinstance(batch, LabelledPairs):
            result.classes = labelled_classes(batch)
        return result


def divergence(prior_lambda: float) -> Callable[[Sampled], Tensor]:
    """KL of the velocity from the smooth prior, see `velocity_kl_loss`."""

    def term(pair: Sampled) -> Tensor:
        assert pair.mean is not None and pair.log_variance is not None
        return losses.velocity_kl_loss(pair.mean, pair.log_variance, prior_lambda=prior_lambda)

    return term
