"""Adversarial losses, for discriminators and for the networks that they judge."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def least_squares_gan_loss(judged: Tensor, answer: float) -> Tensor:
    """Mean squared difference of a discriminator's verdict and the right answer: 1 is real, 0 is fake.

    Source: Mao et al., "Least squares generative adversarial networks", ICCV 2017.
    """
    return (judged.float() - answer).square().mean()


def cross_entropy_gan_loss(judged: Tensor, answer: float) -> Tensor:
    """Minus the logarithm of the probability that a discriminator gives the right answer: 1 is real, 0 is fake.

        -answer log D - (1 - answer) log(1 - D),  D the sigmoid of the verdict

    Args:
        judged: logits, of any shape.

    Returns:
        Scalar >= 0, mean over all verdicts; ln 2 where the discriminator does not know.

    Source: Goodfellow et al., "Generative adversarial nets", NeurIPS 2014.
    """
    logits = judged.float()
    return (F.softplus(logits) - answer * logits).mean()
