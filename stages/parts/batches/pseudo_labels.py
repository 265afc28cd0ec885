"""A network's answer for a scan, and which of its voxels and classes count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class PseudoLabel:
    """A network's answer for a scan, screened."""

    label: Tensor  # class indices, (D, H, W)
    trusted: Tensor  # whether a voxel counts, (D, H, W), bool
    accepted: Tensor  # whether a class counts, (C,), bool

    @cached_property
    def counts(self) -> bool:
        """Whether a structure was accepted; the background alone makes no label."""
        return bool(self.accepted[1:].any())

    @property
    def counted(self) -> Tensor:
        """Voxels that teach: trusted ones of accepted classes, (D, H, W), bool; none where no structure counts."""
        return self.trusted & self.accepted[self.label.long()] & self.counts


@dataclass
class Screened:
    """A network's answer for a scan, and how certain it is.

    `voxels` and `confidence` are per class: the number of voxels predicted as the class, and its mean or its largest
    probability over them (nan without any).
    """

    label: Tensor  # most probable class, (D, H, W)
    certainty: Tensor  # its probability, (D, H, W)
    trusted: Tensor  # whether that exceeds the threshold, (D, H, W), bool
    voxels: Tensor  # (C,)
    confidence: Tensor  # (C,)
    accepted: Tensor  # whether that exceeds the threshold, (C,), bool


Screening = Literal["mean", "max"]


def screen(probabilities: Tensor, threshold: float, by: Screening = "mean") -> Screened:
    """Keep the voxels, and the classes, of which a network is certain.

    Args:
        probabilities: of a scan, (C, D, H, W).
        threshold: tau.
        by: what must exceed tau for a class to be accepted: its mean probability over the voxels predicted as it, or
            its largest.

    Source: JRSS section 3.3 says max(P_c) > tau "class-level". `max` is that to the letter; a single sure voxel then
    accepts a class. For a voxel it is read as: its largest probability exceeds tau.
    """
    certainty, label = probabilities.float().max(0)
    flat = label.flatten()
    voxels = torch.bincount(flat, minlength=len(probabilities))
    if by == "mean":
        sums = torch.zeros(len(probabilities), device=label.device, dtype=torch.float64)
        confidence = (sums.index_add(0, flat, certainty.flatten().double()) / voxels).float()  # 0 / 0: nan
    else:
        nothing = torch.full((len(probabilities),), torch.nan, device=label.device)
        confidence = nothing.scatter_reduce(0, flat, certainty.flatten(), "amax", include_self=False)
    return Screened(label, certainty, certainty > threshold, voxels, confidence, confidence > threshold)
