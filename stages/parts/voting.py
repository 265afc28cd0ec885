"""Label propagation: a scan's class probabilities from warped atlases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stages.parts.channels import as_images
from stages.parts.losses import lncc
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


def fused(network: Tensor, votes: Tensor, fit: Tensor) -> Tensor:
    """A network's probabilities and propagated ones, together: half of each where the atlases fit the scan.

        (1 - fit / 2) network + fit / 2 votes

    Where they do not, registration found no correspondence, or there is nothing to see, and the network has the word.

    Args:
        network, votes: (C, D, H, W).
        fit: (D, H, W) in [0, 1]; see `fits`.
    """
    return torch.lerp(network, votes, fit.clamp(0, 1) / 2)


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
