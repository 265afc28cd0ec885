"""Label propagation: a scan's class probabilities from warped atlases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stages.parts.channels import as_images
from stages.parts.losses import lncc
from stages.parts.metrics import dice_per_class
from stages.parts.warps import one_hot, warp, warp_probabilities


def fits(
    atlases: Sequence[tuple[np.ndarray, np.ndarray]], fields: Sequence[np.ndarray], scan: np.ndarray
) -> list[Tensor]:
    """How well each warped atlas fits a scan at each voxel: LNCC, mean over the channels, (D, H, W) in [0, 1].

    Args: as of `vote`.
    """
    pairs = zip(atlases, fields, strict=True)
    warped = (warp(as_images(image), torch.from_numpy(field)[None]) for (image, _), field in pairs)
    return [lncc(image, as_images(scan)).mean(1)[0] for image in warped]


LEARNED = 0.9  # DSC of a network's answer for an atlas that it learned from, from which it has learned a structure
STEEP = 8  # how fast trust falls below that: a network that misses its own atlas misses scans by more


def learned(answers: Sequence[Tensor], labels: Sequence[Tensor], num_classes: int) -> Tensor:
    """How far a network has learned each class, from its answers for the atlases that it learned from.

        min(1, DSC / 0.9)^8, mean over the atlases that have the structure

    Args:
        answers, labels: class indices of each atlas, (D, H, W).

    Returns:
        (num_classes,) in [0, 1]; 1 for the background, and for structures that no atlas and no answer has.
    """
    pairs = zip(answers, labels, strict=True)
    dice = torch.stack([dice_per_class(answer, label.to(answer.device), num_classes) for answer, label in pairs])
    known = torch.nan_to_num(dice.nanmean(0), nan=1.0).float()
    return torch.cat([known.new_ones(1), (known / LEARNED).clamp(max=1) ** STEEP])


def fused(network: Tensor, votes: Tensor, fit: Tensor, trust: Tensor) -> Tensor:
    """A network's probabilities and propagated ones, together.

        a network + (1 - a) votes,  a(x) = (1 - fit(x) / 2) trust(x)

    Half of each where the atlases fit the scan. Where they do not, registration found no correspondence, or there is
    nothing to see, and the network has the word. Where the network or the votes see a structure that the network has
    not learned, the votes have it.

    Args:
        network, votes: (C, D, H, W).
        fit: (D, H, W) in [0, 1]; see `fits`.
        trust: (C,) in [0, 1]; see `learned`. A voxel's is the lower one of what either sees there.
    """
    of_class = trust.view(-1, 1, 1, 1)
    here = torch.minimum((network * of_class).sum(0), (votes * of_class).sum(0))
    return torch.lerp(votes, network, (1 - fit.clamp(0, 1) / 2) * here)


def vote(
    atlases: Sequence[tuple[np.ndarray, np.ndarray]],
    fields: Sequence[np.ndarray],
    scan: np.ndarray,
    num_classes: int,
) -> Tensor:
    """Class probabilities of a scan from one or several warped atlases.

    One atlas: its warped one-hot label. Several: the share of votes; ties go to the more similar atlas. An atlas that
    lacks a structure which another one has does not know where it is: it has no vote on it.

    Args:
        atlases: image and label (class indices) of each, (D, H, W); an image of several channels is (C, D, H, W).
        fields: displacement of each to the scan, (3, D, H, W), voxels.
        scan: in [0, 1], as the atlases' images. Similarity is the mean over the channels.

    Returns:
        (num_classes, D, H, W), sums to 1.
    """
    warped = []
    for (_, label), field in zip(atlases, fields, strict=True):
        classes = torch.from_numpy(label.astype(np.int16))[None]
        warped.append(warp_probabilities(one_hot(classes, num_classes), torch.from_numpy(field)[None])[0])
    if len(warped) == 1:
        return warped[0]
    similarity = [float(one.mean()) for one in fits(atlases, fields, scan)]
    ranks = np.argsort(np.argsort(similarity))
    weights = 1 + 1e-3 * torch.from_numpy(ranks).float()
    labels = (probabilities.argmax(0)[None] for probabilities in warped)
    votes = sum(w * one_hot(label, num_classes)[0] for w, label in zip(weights, labels, strict=True))
    present = torch.from_numpy(np.stack([np.bincount(y.ravel(), minlength=num_classes) > 0 for _, y in atlases]))
    present[:, 0] = True
    known = present | ~present.any(0)
    if known.all():
        return votes / weights.sum()  # type: ignore[operator]
    of_known = (weights[:, None] * known).sum(0)  # weight of the atlases that have a vote on each class
    structures = (votes / of_known.view(-1, 1, 1, 1))[1:]  # type: ignore[operator]
    background = (1 - structures.sum(0, keepdim=True)).clamp(min=0)
    together = torch.cat([background, structures])
    return together / together.sum(0)
