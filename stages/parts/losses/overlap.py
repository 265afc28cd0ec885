"""Soft Dice of label maps."""

from __future__ import annotations

from torch import Tensor


def dice_loss(prediction: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """One minus the soft multi-class Dice with squared denominators, mean over classes (background included) and batch.

        (2 sum p q + smooth) / (sum p^2 + sum q^2 + smooth)

    Args:
        prediction: probabilities, (N, C, D, H, W).
        target: probabilities or one-hot labels, (N, C, D, H, W).

    Returns:
        Scalar in [0, 1]; 0: equal one-hot maps. A class that is absent from both counts as right.

    Source: Milletari et al., "V-Net", 3DV 2016, as BRBS uses it.
    """
    return 1 - soft_dice(prediction, target, smooth=smooth).mean()


def soft_dice(prediction: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice with squared denominators of each sample and class, (N, C) in [0, 1]; arguments as of `dice_loss`."""
    prediction, target = prediction.float().flatten(2), target.float().flatten(2)
    overlap = (prediction * target).sum(-1)
    size = prediction.square().sum(-1) + target.square().sum(-1)
    return (2 * overlap + smooth) / (size + smooth)


def pooled_dice_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Dice of all classes together: one minus the mean probability of the right class.

    Args:
        prediction: probabilities, (N, C, D, H, W).
        target: probabilities or one-hot labels, (N, C, D, H, W).

    Source: `DiceLoss3D` of SST's published code, whose sums run over classes and voxels.
    """
    return 1 - (prediction.float() * target).sum(1).mean()


def counted_dice_loss(prediction: Tensor, target: Tensor, counts: Tensor, *, smooth: float = 1e-6) -> Tensor:
    """`dice_loss` over the classes that count; a sample without such a class adds 0.

    Args:
        prediction, target: (N, C, D, H, W).
        counts: (N, C), bool.

    Source: JRSS Eq. 7, where "L_d = 0" without an acceptable label.
    """
    dice = soft_dice(prediction, target, smooth=smooth)
    return (((1 - dice) * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()
