"""Drawing a batch: settings, randomness, and the interface of samplers. Everything random comes from the generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from stages.parts.augmentation import AffineAugmentation, IntensityAugmentation, SpatialAugmentation
from stages.parts.batches.scans import Scans
from stages.parts.together import Stream, per_sample, ranks_of


def pick(items: Sequence[int], count: int, generator: Generator) -> list[int]:
    """Independent uniform draws for samples, with replacement; one or several for each, group by group."""

    def draw(size: Sequence[int]) -> Tensor:
        return torch.randint(len(items), size, generator=generator, device=generator.device)

    return [items[i] for i in per_sample(draw, (count,), generator).tolist()]


def pick_whole(items: Sequence[int], count: int, generator: Generator) -> list[int]:
    """As `pick`, of which every rank keeps all: for the whole batch, or one draw that its samples share."""
    drawn = torch.randint(len(items), (count,), generator=generator, device=generator.device)
    return [items[i] for i in drawn.tolist()]


@dataclass(frozen=True)
class Draw:
    """How a batch is drawn: the run's settings and its source of randomness.

    Args:
        batch_size: of this process, where several share a batch; see `parts.together`.
    """

    batch_size: int
    space: SpatialAugmentation | AffineAugmentation | None
    intensity: IntensityAugmentation | None
    generator: Generator

    def __post_init__(self) -> None:
        if isinstance(self.generator, Stream):
            self.generator.samples = self.batch_size

    @property
    def whole(self) -> int:
        """Samples of all processes that share the batch."""
        return self.batch_size * ranks_of(self.generator)

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
