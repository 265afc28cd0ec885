"""The adversarial loss, for discriminators and for the networks that they judge."""

from __future__ import annotations

from torch import Tensor


def least_squares_gan_loss(judged: Tensor, answer: float) -> Tensor:
    """Mean square between what a discriminator says and an answer: 1 is real, 0 is made up.

    Source: Mao et al., "Least squares generative adversarial networks", ICCV 2017.
    """
    return (judged.float() - answer).square().mean()
