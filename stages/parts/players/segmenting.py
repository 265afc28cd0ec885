"""Training of segmentation networks: labelled or generated images, and their loss terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.batches.labelled import Labelled
from stages.parts.batches.pairs import Triplet
from stages.parts.batches.space_style import Mixed, SpaceStyleSampling
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.warps import one_hot, warp, warp_one_hot

NEVER = -1e4  # a logit of probability 0 whose product with 0 is 0


@dataclass
class Segmented:
    """Logits of a batch."""

    target: Tensor  # (N, C, D, H, W), sums to 1
    logits: Tensor  # of the image
    first: Tensor | None = None  # of X_A
    second: Tensor | None = None  # of X_B
    mixed: Tensor | None = None  # of gamma X_A + (1 - gamma) X_B
    gamma: Tensor | None = None
    weights: Tensor | None = None  # of the classes, (C,); None: all equal


def merged(logits: Tensor, missing: Tensor | None) -> Tensor:
    """Logits with the structures that a label may lack counted as its background: what they get is no mistake.

    Args:
        logits: (N, C, D, H, W).
        missing: (N, C) bool; None: the labels lack nothing.

    Source: the marginal loss of Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ
    segmentation", Medical Image Analysis 2021.
    """
    if missing is None:
        return logits
    missing = missing.view(*missing.shape, 1, 1, 1)
    either = missing.clone()
    either[:, 0] = True
    background = logits.float().masked_fill(~either, -torch.inf).logsumexp(1, keepdim=True)
    others = logits.float().masked_fill(missing, NEVER)[:, 1:]
    return torch.cat([background, others], 1)


@dataclass
class Segment:
    """Forward pass of a segmentation player: every image of the batch in one pass."""

    network: nn.Module

    def __call__(self, batch: Labelled) -> Segmented:
        if not isinstance(batch, Mixed):
            logits = merged(self.network(batch.image), batch.missing)
            return Segmented(batch.target, logits, weights=batch.weights)
        between = batch.gamma * batch.first + (1 - batch.gamma) * batch.second
        logits = self.network(torch.cat([batch.image, batch.first, batch.second, between]))
        image, first, second, mixed = logits.chunk(4)
        return Segmented(batch.target, merged(image, batch.missing), first, second, mixed, batch.gamma)


@dataclass
class SegmentAtlas:
    """Forward pass of BRBS's helper S in the warm-up, before R can generate: the atlas under augmentation."""

    network: nn.Module

    def __call__(self, batch: Triplet) -> Segmented:
        if batch.around is None:
            image, target = batch.atlas, one_hot(batch.label, batch.num_classes)
        else:
            image = warp(batch.atlas, batch.around, padding="zeros")
            target = warp_one_hot(batch.label, batch.around, batch.num_classes)
        return Segmented(target, merged(self.network(batch.draw.recolour(image)), batch.missing))


@dataclass
class GenerateAndSegment:
    """Forward pass of BRBS's helper S inside `train-reg`: S3P straight from the current R, then S."""

    registration: RegistrationNetwork
    sampling: SpaceStyleSampling
    network: nn.Module

    def __call__(self, batch: Triplet) -> Segmented:
        n = len(batch.atlas)
        with torch.no_grad():  # phi1: U1 to A; phi2: A to U2
            psi = None
            if self.sampling.needs_style:
                moving, fixed = torch.cat([batch.first, batch.atlas]), torch.cat([batch.atlas, batch.second])
                to_atlas, path = self.registration(moving, fixed).split(n)
                psi = warp(batch.first, to_atlas) - batch.atlas
            else:
                path = self.registration(batch.atlas, batch.second)
            couples = self.sampling(
                batch.draw,
                atlas=batch.atlas,
                label=batch.label,
                num_classes=batch.num_classes,
                path=path,
                psi=psi,
                scan=batch.second,
                around=batch.around,
                others=batch.others if self.sampling.any_pair else None,
            )
        couples.missing = batch.missing
        return Segment(self.network)(couples)


def overlap(result: Segmented) -> Tensor:
    """L_seg: soft Dice loss of BRBS."""
    return losses.dice_loss(result.logits.softmax(1), result.target)


def precise_overlap(result: Segmented) -> Tensor:
    """Soft Dice loss of JRSS, smoothed by 1e-6."""
    return losses.dice_loss(result.logits.softmax(1), result.target, smooth=1e-6)


def hardest_cross_entropy(result: Segmented) -> Tensor:
    """Weighted cross-entropy on the hardest quarter of the voxels, as OBELISK-Net is trained."""
    return losses.hardest_cross_entropy_loss(result.logits, result.target, result.weights)


def cross_entropy(result: Segmented) -> Tensor:
    """Cross-entropy, mean over voxels."""
    return losses.cross_entropy_loss(result.logits, result.target)


def rarity_weighted_cross_entropy(result: Segmented) -> Tensor:
    """Cross-entropy that weighs a class by 1 - its share of the batch, as in SST's published code."""
    return losses.rarity_weighted_cross_entropy_loss(result.logits, result.target)


def pooled_overlap(result: Segmented) -> Tensor:
    """Soft Dice loss of all classes together, as in SST's published code."""
    return losses.pooled_dice_loss(result.logits.softmax(1), result.target)


def overlap_and_cross_entropy(result: Segmented) -> Tensor:
    """Dice and cross-entropy, as nnU-Net trains."""
    return losses.dice_cross_entropy_loss(result.logits, result.target)


def mixing(result: Segmented) -> Tensor:
    """L_mix on probabilities (BRBS Eq. 13)."""
    assert result.mixed is not None and result.first is not None and result.second is not None
    assert result.gamma is not None
    return losses.mix_loss(result.mixed.softmax(1), result.first.softmax(1), result.second.softmax(1), result.gamma)


def mixing_of_logits(result: Segmented) -> Tensor:
    """L_mix on raw logits, as in the published code."""
    assert result.mixed is not None and result.first is not None and result.second is not None
    assert result.gamma is not None
    return losses.mix_loss(result.mixed, result.first, result.second, result.gamma)
