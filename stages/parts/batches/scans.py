"""The scans of a training, in memory, and what `lrls generate` made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from stages.parts.batches.pseudo_labels import PseudoLabel


@dataclass(frozen=True)
class Scans:
    """Aligned scans on one grid, in memory on the training device.

    Args:
        names: case ids.
        images: (n, C, D, H, W), float16 in [0, 1].
        labels: place in `names` -> class indices (D, H, W), for scans whose labels may be used.
        atlases: places of the atlases.
        unlabeled: places of the unlabelled scans.
        num_classes: background included.
        spacing_mm: voxel size (D, H, W).
        bank, samples: what `lrls generate` wrote, for the methods that learn from it.
        pseudo: place in `names` -> pseudo-label, if `lrls generate` wrote any.
    """

    names: Sequence[str]
    images: Tensor
    labels: dict[int, Tensor]
    atlases: Sequence[int]
    unlabeled: Sequence[int]
    num_classes: int
    spacing_mm: tuple[float, float, float]
    bank: Paths | None = None
    samples: Sequence[Sample] | None = None
    pseudo: Mapping[int, PseudoLabel] | None = None

    @cached_property
    def class_voxels(self) -> Tensor:
        """Voxels of each class in the labels that may be used, (C,)."""
        labels = torch.stack([self.labels[place] for place in sorted(self.labels)])
        return torch.bincount(labels.flatten().long(), minlength=self.num_classes)

    @cached_property
    def _missing(self) -> Tensor | None:
        """(n, C): which structures an atlas lacks that another one has; None: no atlas lacks any."""
        present = torch.zeros((len(self.names), self.num_classes), dtype=torch.bool)
        labelled = [atlas for atlas in self.atlases if atlas in self.labels]
        for atlas in labelled:
            present[atlas, self.labels[atlas].unique().long().cpu()] = True
        missing = present.any(0) & ~present
        missing[:, 0] = False
        missing[[place for place in range(len(self.names)) if place not in labelled]] = False
        return missing.to(self.images.device) if missing.any() else None

    def missing(self, names: Sequence[str]) -> Tensor | None:
        """Structures that are not known in a case's label, because it is an atlas that lacks what another one has.

        Args:
            names: case ids; others than the atlases' lack nothing.

        Returns:
            (N, C) bool; None: no atlas lacks any.
        """
        if self._missing is None:
            return None
        none = torch.zeros_like(self._missing[0])
        return torch.stack([self._missing[self.names.index(n)] if n in self.names else none for n in names])

    @property
    def shape(self) -> tuple[int, int, int]:
        d, h, w = self.images.shape[2:]
        return d, h, w

    def image(self, places: Sequence[int]) -> Tensor:
        return torch.stack([self.images[place] for place in places]).float()  # a list of indices waits for a GPU

    def label(self, places: Sequence[int]) -> Tensor:
        return torch.stack([self.labels[place] for place in places])


def on_training_device(read: Sequence[Tensor], device: torch.device) -> Tensor:
    """What was read from a file, as a batch on the device; what a GPU does meanwhile is not waited for."""
    return torch.stack(list(read)).to(device, non_blocking=True)


class Paths(Protocol):
    """Stored transformation paths of couples (atlas, scan): what `lrls generate` wrote, read couple by couple."""

    @property
    def couples(self) -> Sequence[tuple[int, int]]: ...  # places of (atlas, scan) in the cohort

    def displacement(self, couple: int) -> Tensor: ...  # (3, D, H, W) voxels: atlas to scan
    def style(self, couple: int) -> Tensor: ...  # (C, D, H, W): added to the atlas, gives it the scan's look


class Sample(Protocol):
    """A finished couple that `lrls generate` wrote."""

    @property
    def image(self) -> Tensor: ...  # (C, D, H, W)
    @property
    def label(self) -> Tensor: ...  # (D, H, W)
    @property
    def scan(self) -> str: ...
    @property
    def atlas(self) -> str: ...  # whose label it is
