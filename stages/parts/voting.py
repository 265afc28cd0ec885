"""Label propagation: a scan's class probabilities from warped atlases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stages.parts.channels import as_images
from stages.parts.losses import lncc
from stages.parts.warps import one_hot, warp, warp_probabilities


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
    similarity = []
    for (image, label), field in zip(atlases, fields, strict=True):
        displacement = torch.from_numpy(field)[None]
        classes = torch.from_numpy(label.astype(np.int16))[None]
        warped.append(warp_probabilities(one_hot(classes, num_classes), displacement)[0])
        similarity.append(float(lncc(warp(as_images(image), displacement), as_images(scan)).mean()))
    if len(warped) == 1:
        return warped[0]
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
