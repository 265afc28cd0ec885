"""Joint training of registration and segmentation on each other's current answers, as in DeepAtlas and RSegNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.batches.partly_labelled import PartlyLabelledPair
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.players.registering import Registered, register
from stages.parts.together import evened
from stages.parts.warps import one_hot, warp_probabilities


@dataclass
class RegisterByAnswers:
    """Forward pass of a registration player that takes S's answer where there is no label; S stands still.

    Args:
        both_ways: register the pair both ways.
    """

    network: RegistrationNetwork
    segmentation: nn.Module
    both_ways: bool = False

    def __call__(self, batch: PartlyLabelledPair) -> Registered:
        registered = register(self.network, batch.moving, batch.fixed, both_ways=self.both_ways)
        with torch.no_grad():
            answers = self.segmentation(torch.cat([batch.moving, batch.fixed])).float().softmax(1).chunk(2)
        known = (batch.moving_counts.all(1), batch.fixed_counts.all(1))
        labels = (batch.moving_label, batch.fixed_label)
        moving, fixed = (
            torch.where(has_label.view(-1, 1, 1, 1, 1), one_hot(label, batch.num_classes), answer)
            for has_label, label, answer in zip(known, labels, answers, strict=True)
        )
        registered.classes = (moving, fixed)
        return registered


@dataclass
class Anatomies:
    """S's answers for a pair, its labels, and the displacements between them."""

    logits: tuple[Tensor, Tensor]  # of (moving, fixed), (N, C, D, H, W)
    labels: tuple[Tensor, Tensor]  # one-hot, (N, C, D, H, W)
    known: tuple[Tensor, Tensor]  # whether an image has a label, (N,), bool
    displacements: tuple[Tensor, ...]  # moving to fixed, and with `both_ways` back, (N, 3, D, H, W)


@dataclass
class SegmentPair:
    """Forward pass of a segmentation player that learns through R's displacement, on recoloured images; R stands still.

    Args:
        both_ways: also through the displacement from fixed to moving.
    """

    network: nn.Module
    registration: RegistrationNetwork
    both_ways: bool = False

    def __call__(self, batch: PartlyLabelledPair) -> Anatomies:
        with torch.no_grad():
            if self.both_ways:
                ways = self.registration.both_ways(batch.moving, batch.fixed).chunk(2)
            else:
                ways = (self.registration(batch.moving, batch.fixed),)
        first, second = self.network(batch.draw.recolour(torch.cat([batch.moving, batch.fixed]))).chunk(2)
        labels = (one_hot(batch.moving_label, batch.num_classes), one_hot(batch.fixed_label, batch.num_classes))
        return Anatomies((first, second), labels, (batch.moving_counts.all(1), batch.fixed_counts.all(1)), ways)


def supervised_overlap(result: Anatomies) -> Tensor:
    """Soft Dice loss of S's answers over the images of the batch that have a label; 0 where none has."""
    logits, labels, known = (torch.cat(of_pair) for of_pair in (result.logits, result.labels, result.known))
    return where_known(lambda rows: losses.dice_loss(logits[rows].softmax(1), labels[rows]), known, logits)


def carried_anatomy(result: Anatomies) -> Tensor:
    """Soft Dice loss between one image's classes, warped to the other, and the other's: labels, or else S's answers.

    Only pairs with exactly one label count: without labels S learns nothing, with two there is nothing to predict. Mean
    over the directions.

    Source: DeepAtlas, Eqs. 4 and 5 (the anatomy loss of S).
    """
    first, second = (
        torch.where(known.view(-1, 1, 1, 1, 1), label, logits.float().softmax(1))
        for known, label, logits in zip(result.known, result.labels, result.logits, strict=True)
    )
    one_known = result.known[0] ^ result.known[1]
    pairs = zip(((first, second), (second, first)), result.displacements, strict=False)
    total = torch.zeros((), device=first.device)
    for (moving, fixed), displacement in pairs:
        total = total + where_known(_overlap_of(moving, fixed, displacement), one_known, result.logits[0])
    return total / len(result.displacements)


def _overlap_of(moving: Tensor, fixed: Tensor, displacement: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: losses.dice_loss(warp_probabilities(moving[rows], displacement[rows]), fixed[rows])


def where_known(loss: Callable[[Tensor], Tensor], known: Tensor, like: Tensor) -> Tensor:
    """The loss of the rows that are known, a mean over them; without such rows 0, with a gradient of 0."""
    rows = known.nonzero()[:, 0]
    on_average = evened(known.sum())
    return loss(rows) * (len(rows) / on_average) if len(rows) else 0 * like.float().sum()
