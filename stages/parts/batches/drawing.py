"""Drawing a batch: settings, randomness, and the interface of samplers. Everything random comes from the generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from stages.parts.augmentation import AffineAugmentation, IntensityAugmentation, SpatialAugmentation
from stages.parts.batches.scans import Scans


def pick(items: Sequence[int], count: int, generator: Generator) -> list[int]:
    """Independent uniform draws, with replacement."""
    return [items[int(i)] for i in torch.randint(len(items), (count,), generator=generator, device=generator.device)]


@dataclass(frozen=True)
class Draw:
    """How a batch is drawn: the run's settings and its source of randomness."""

    batch_size: int
    space: SpatialAugmentation | AffineAugmentation | None
    intensity: IntensityAugmentation | None
    generator: Generator

    def displacement(self, data: Scans, count: int | None = None) -> Tensor | None:
        """One random displacement a sample, (N, 3, D, H, W) voxels; N is `count`, by default the batch size."""
        if self.space is None:
            return None
        return self.space.displacement(count or self.batch_size, data.shape, data.spacing_mm, self.generator)

    def recolour(self, image: Tensor) -> Tensor:
        return self.intensity(image, self.generator) if self.intensity else image


class Batch(Protocol):
    """Tensors of a step and the case ids in it."""

    scans: list[str]


class Sampler(Protocol):
    """Draws a batch."""

    def __call__(self, data: Scans, draw: Draw) -> Batch: ...
