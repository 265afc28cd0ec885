"""The adversarial loss, for discriminators and for the networks that they judge."""

from __future__ import annotations

from torch import Tensor


def least_squares_gan_loss(judged: Tensor, answer: float) -> Tensor:
    """Mean squared difference of a discriminator's verdict and the right answer: 1 is real, 0 is fake.

    Source: Mao et al., "Least squares generative adversarial networks", ICCV 2017.
    """
    return (judged.float() - answer).square().mean()
