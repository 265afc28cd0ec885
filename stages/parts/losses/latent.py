"""How far codes are from the prior that they are drawn from."""

from __future__ import annotations

from torch import Tensor


def code_kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of a diagonal Gaussian of codes from N(0, I), mean over the code's numbers.

        1/2 (m^2 + exp(s) - s - 1)

    0: codes follow the prior, and say nothing of what they encode.

    Args:
        mean: m, (N, K).
        log_variance: s, (N, K), logarithms of variances.

    Returns:
        Scalar >= 0, mean over the batch, too.

    Source: Kingma, Welling, "Auto-encoding variational Bayes", ICLR 2014, appendix B, which sums over the code.
    """
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).mean()
