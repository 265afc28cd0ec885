"""Cross-entropy of logits against labels: plain, trusted, weighted, over the hardest voxels, with Dice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts.together import evened, gathered, summed


def cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against soft labels, mean over voxels.

    Args:
        logits: (N, C, D, H, W).
        target: probabilities or one-hot labels, (N, C, D, H, W).
    """
    return -(target * logits.float().log_softmax(1)).sum(1).mean()


def trusted_cross_entropy_loss(logits: Tensor, target: Tensor, trust: Tensor) -> Tensor:
    """Cross-entropy against soft labels, each voxel by how far its label is trusted, mean over all voxels.

    Args:
        logits, target: as of `cross_entropy_loss`.
        trust: (N, 1, D, H, W), in [0, 1].

    Returns:
        Scalar >= 0; `cross_entropy_loss` where all are trusted, 0 where none is.

    Source: L_acm of He et al., "DeepRS", ECCV 2020.
    """
    return -(trust * target * logits.float().log_softmax(1)).sum(1).mean()


def weighted_cross_entropy_loss(logits: Tensor, label: Tensor, weights: Tensor, counts: Tensor | None = None) -> Tensor:
    """Cross-entropy, mean over the voxels that count, each weighted by its class.

    Args:
        logits: (N, C, D, H, W).
        label: class indices, (N, D, H, W).
        weights: of the classes, (C,).
        counts: voxels that count, (N, D, H, W), bool; None: all.

    Returns:
        Scalar >= 0; 0 where no voxel counts.

    Source: JRSS Eq. 4.
    """
    label = label.long()
    voxel_weights = weights[label] if counts is None else weights[label] * counts
    entropy = F.cross_entropy(logits.float(), label, reduction="none")
    return (voxel_weights * entropy).sum() / evened(voxel_weights.sum()).clamp(min=1e-6)


def class_weights(voxels: Tensor) -> Tensor:
    """Weights of the classes, inverse to the square root of their frequency, with mean 1; the background's becomes 0.5.

    Args:
        voxels: of each class in the labels, (C,); a class without voxels has weight 0 and does not count in the mean.

    Source: the published training of OBELISK-Net, which JRSS starts from.
    """
    present = voxels > 0
    weights = torch.where(present, voxels.clamp(min=1).float().rsqrt(), 0.0)
    weights = weights * present.sum() / weights.sum()
    weights[0] = 0.5
    return weights


def rarity_weighted_cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, mean over voxels, each weighted by 1 - the share of its class in the batch.

    Args:
        logits, target: as of `cross_entropy_loss`.

    Source: `CrossEntropyLossWeighted` of SST's published code, which divides by the sum of the weights and by all axes
    but the last.
    """
    weights = 1 - evened(target.mean((0, 2, 3, 4)))
    by_class = -target * logits.float().log_softmax(1)
    return (weights.view(1, -1, 1, 1, 1) * by_class).sum(1).mean()


def hardest_cross_entropy_loss(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, *, share: float = 0.25
) -> Tensor:
    """Cross-entropy, mean over the share of voxels where it is largest, each weighted by its class.

    Args:
        logits, target: as of `cross_entropy_loss`.
        weights: of the classes, (C,); they do not choose the voxels. None: all equal.

    Source: `OHEMLoss` of the published single-task training of JRSS (AIforMS/JRSS, utils/losses.py), which is that of
    OBELISK-Net.
    """
    by_class = -target * logits.float().log_softmax(1)
    entropy = gathered(by_class.sum(1)).flatten()
    hardest = entropy.topk(max(1, int(share * entropy.numel())))
    if weights is None:
        return hardest.values.mean()
    weigh = weights.view(1, -1, 1, 1, 1)
    weighted, weight = (gathered((weigh * each).sum(1)).flatten()[hardest.indices].sum() for each in (by_class, target))
    return weighted / weight.clamp(min=1e-6)


def dice_cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice of the structures plus cross-entropy against soft labels, as nnU-Net combines them.

    Args:
        logits: (N, C, D, H, W).
        target: probabilities or one-hot labels, (N, C, D, H, W).

    Returns:
        Scalar >= 0. Dice here has plain denominators, pools the batch and leaves out the background.

    Source: Isensee et al., "nnU-Net", Nature Methods 2021.
    """
    log_probabilities = logits.float().log_softmax(1)
    cross_entropy = -(target * log_probabilities).sum(1).mean()
    probabilities = log_probabilities[:, 1:].exp()
    overlap = summed((probabilities * target[:, 1:]).sum((0, 2, 3, 4)))
    size = summed((probabilities + target[:, 1:]).sum((0, 2, 3, 4)))
    return cross_entropy + 1 - ((2 * overlap + 1) / (size + 1)).mean()
