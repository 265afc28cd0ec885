"""Registration by structures, and what it teaches the network that perceives them (PC-Reg-RT).

Source: He et al., "PC-Reg-RT", JBHI 2022; code github.com/YutingHe-list/PC-Reg-RT (pytorch/semi_pcreg.py@3542d32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.batches.pairs import Pair
from stages.parts.batches.partly_labelled import PartlyLabelledPair
from stages.parts.networks.perceiving import PerceivingRegistration
from stages.parts.players.joint import Anatomies, where_known
from stages.parts.players.registering import Registered, register
from stages.parts.warps import one_hot, warp, warp_one_hot

Compare = Callable[[Tensor, Tensor], Tensor]  # (logits, target) of samples -> their mean loss


@dataclass
class RegisterRegions:
    """Forward pass of R: the structures of both images, as S sees them, are what is registered and compared."""

    network: PerceivingRegistration

    def __call__(self, batch: Pair) -> Registered:
        moving, fixed = self.network.regions(torch.cat([batch.moving, batch.fixed])).chunk(2)
        return register(self.network.correspondence, moving, fixed, both_ways=False)


@dataclass
class PerceiveBoth:
    """Forward pass of S: both images of a pair, recoloured, with their labels as far as known.

    Args:
        network: S.
        registration: brings the moving image and its label onto the fixed one, and stands still; None: they stay.
    """

    network: nn.Module
    registration: PerceivingRegistration | None = None

    def __call__(self, batch: PartlyLabelledPair) -> Anatomies:
        moving, label = batch.moving, one_hot(batch.moving_label, batch.num_classes)
        displacements: tuple[Tensor, ...] = ()
        if self.registration is not None:
            with torch.no_grad():
                displacements = (self.registration(batch.moving, batch.fixed),)
                moving = warp(batch.moving, displacements[0])
                label = warp_one_hot(batch.moving_label, displacements[0], batch.num_classes)
        of_moving, of_fixed = self.network(batch.draw.recolour(torch.cat([moving, batch.fixed]))).chunk(2)
        labels = (label, one_hot(batch.fixed_label, batch.num_classes))
        known = (batch.moving_counts.all(1), batch.fixed_counts.all(1))
        return Anatomies((of_moving, of_fixed), labels, known, displacements)


def own_label(result: Anatomies, compare: Compare) -> Tensor:
    """The anchor: a loss of S's answers for the images that have a label; 0 where none has."""
    logits, labels, known = (torch.cat(of_pair) for of_pair in (result.logits, result.labels, result.known))
    return where_known(lambda rows: compare(logits[rows], labels[rows]), known, logits)


def reverse_teaching(result: Anatomies, compare: Compare) -> Tensor:
    """A loss of S's answers for the images without a label and the labels of those that they are aligned with.

    0 where both images of every pair have a label, or neither has.
    """
    logits, known = torch.cat(result.logits), torch.cat(result.known)
    others, other_known = torch.cat(result.labels[::-1]), torch.cat(result.known[::-1])
    return where_known(lambda rows: compare(logits[rows], others[rows]), other_known & ~known, logits)


def overlap_and_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice of each sample, and cross-entropy."""
    return losses.dice_loss(logits.float().softmax(1), target) + losses.cross_entropy_loss(logits, target)
