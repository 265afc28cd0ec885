"""Batches at half of the grid's resolution, where a step costs a fraction and a network learns where structures lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts.batches.drawing import Batch, Draw, Sampler
from stages.parts.batches.scans import Paths, Scans
from stages.parts.warps import one_hot

THICK = 1.5  # axes whose voxels are this many times the finest ones stay as they are
LEAST = 16  # so do axes of fewer voxels


@dataclass
class AtHalfResolution:
    """Draws a sampler's batches from scans, labels and paths at half of their resolution."""

    batches: Sampler
    _made: tuple[Scans, Scans] | None = field(default=None, init=False)

    def __call__(self, data: Scans, draw: Draw) -> Batch:
        if self._made is None or self._made[0] is not data:
            self._made = data, halved(data)
        return self.batches(self._made[1], draw)


def factors(shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """2 along each axis (D, H, W) that is halved, 1 along thick slices and short axes."""
    finest = min(spacing_mm)
    d, h, w = (
        2 if mm < THICK * finest and voxels >= LEAST else 1 for voxels, mm in zip(shape, spacing_mm, strict=True)
    )
    return d, h, w


def halved(data: Scans) -> Scans:
    """Scans at half of their resolution: mean intensities, the class that most of a block's voxels have, mean paths.

    Generated samples and pseudo-labels are left out. A last voxel of an odd axis is, too.
    """
    blocks = factors(data.shape, data.spacing_mm)
    images = torch.cat([F.avg_pool3d(image[None].float(), blocks) for image in data.images]).to(data.images.dtype)
    labels = {
        place: F.avg_pool3d(one_hot(label[None], data.num_classes), blocks).argmax(1)[0].to(label.dtype)
        for place, label in data.labels.items()
    }
    d, h, w = (mm * block for mm, block in zip(data.spacing_mm, blocks, strict=True))
    bank = None if data.bank is None else HalvedPaths(data.bank, blocks)
    return replace(data, images=images, labels=labels, spacing_mm=(d, h, w), bank=bank, samples=None, pseudo=None)


@dataclass
class HalvedPaths:
    """Paths at half of their resolution, in its voxels; each is read once."""

    of: Paths
    blocks: tuple[int, int, int]
    _displacements: dict[int, Tensor] = field(default_factory=dict, init=False)

    @property
    def couples(self) -> Sequence[tuple[int, int]]:
        return self.of.couples

    def displacement(self, couple: int) -> Tensor:
        if couple not in self._displacements:
            mean = F.avg_pool3d(self.of.displacement(couple).float()[None], self.blocks)[0]
            self._displacements[couple] = (mean / torch.tensor(self.blocks).view(3, 1, 1, 1)).half()
        return self._displacements[couple]

    def style(self, couple: int) -> Tensor:
        return F.avg_pool3d(self.of.style(couple).float()[None], self.blocks)[0]
