"""Half of the resolution: what scans, labels and paths become there, and how a training goes on from there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from stages.artifacts.store import Draft
from stages.config import TrainSettings
from stages.device import Device
from stages.methods.phases import Phase, Player, WeightedSum, coarse_to_fine
from stages.parts.batches.drawing import Draw
from stages.parts.batches.halved import AtHalfResolution, factors, halved
from stages.parts.batches.labelled import labelled_scans
from stages.parts.batches.scans import Scans
from stages.parts.batches.space_style import Always, SpaceStyleSampling
from stages.parts.warps import warp
from stages.training import loop
from stages.training.schedules import learning_rate

SHAPE = (16, 20, 24)


class OnePath:
    couples = ((0, 1),)

    def __init__(self, displacement: torch.Tensor) -> None:
        self.stored, self.read = displacement, 0

    def displacement(self, couple: int) -> torch.Tensor:
        self.read += 1
        return self.stored

    def style(self, couple: int) -> torch.Tensor:
        return torch.ones(1, *SHAPE)


def two_scans(shape: tuple[int, int, int] = SHAPE, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Scans:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((2, 1, *shape), generator=generator).half()
    label = torch.zeros(shape, dtype=torch.uint8)
    label[4:8, 4:12, 6:14] = 1
    return Scans(("atlas", "scan"), images, {0: label}, [0], [1], 2, spacing_mm)


def draw() -> Draw:
    return Draw(1, None, None, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "expected"),
    [
        ((32, 32, 32), (1.0, 1.0, 1.0), (2, 2, 2)),
        ((32, 96, 96), (4.0, 1.0, 1.0), (1, 2, 2)),  # thick slices
        ((12, 96, 96), (1.0, 1.0, 1.0), (1, 2, 2)),  # few of them
        ((64, 64, 64), (1.2, 0.15, 0.15), (1, 2, 2)),
    ],
)
def test_axes_that_are_coarse_or_short_are_not_halved(shape, spacing_mm, expected):
    assert factors(shape, spacing_mm) == expected


def test_a_block_has_the_mean_intensity_and_the_class_of_most_of_its_voxels():
    data = two_scans()
    coarse = halved(data)
    assert (coarse.shape, coarse.spacing_mm) == ((8, 10, 12), (2.0, 2.0, 2.0))
    block = data.images[1, 0, 2:4, 4:6, 6:8].float()
    assert float(coarse.images[1, 0, 1, 2, 3]) == pytest.approx(float(block.mean()), abs=1e-3)
    assert torch.equal(coarse.labels[0], data.labels[0][::2, ::2, ::2])  # its borders lie between blocks
    assert coarse.labels[0].dtype == data.labels[0].dtype


def test_a_path_at_half_resolution_leads_as_far():
    far = torch.zeros(3, *SHAPE)
    far[2] = 4.0  # voxels along W
    data = two_scans()
    bank = OnePath(far.half())
    coarse = halved(Scans(**{**vars(data), "bank": bank}))
    assert coarse.bank is not None
    path = coarse.bank.displacement(0).float()
    assert torch.equal(path[2], torch.full((8, 10, 12), 2.0))
    there = warp(data.image([0]), far[None])[..., ::2, ::2, ::2]
    also = warp(data.image([0])[..., ::2, ::2, ::2], path[None])
    torch.testing.assert_close(there[..., :-3], also[..., :-3])  # away from the border
    coarse.bank.displacement(0)
    assert bank.read == 1


def test_samplers_draw_from_it_as_from_the_whole():
    data = two_scans()
    batch: Any = AtHalfResolution(labelled_scans)(data, draw())
    assert batch.image.shape == (1, 1, 8, 10, 12) and batch.scans == ["atlas"]
    s3p = SpaceStyleSampling(space=Always(1.0), style=Always(0.0), mixing=None)
    with_bank = Scans(**{**vars(data), "bank": OnePath(torch.zeros(3, *SHAPE).half())})
    sampler = AtHalfResolution(s3p.from_bank)
    batch = sampler(with_bank, draw())
    torch.testing.assert_close(batch.image, halved(data).image([0]))
    assert torch.equal(batch.target.argmax(1), halved(data).label([0]).long())
    assert sampler._made is not None and sampler(with_bank, draw()) and sampler._made[0] is with_bank


# Training


@dataclass
class Seen:
    """A forward pass that notes the shape of each batch."""

    network: nn.Module
    shapes: list[tuple[int, ...]]

    def __call__(self, batch: Any) -> torch.Tensor:
        self.shapes.append(tuple(batch.image.shape[2:]))
        return self.network(batch.image)


def test_no_share_is_the_phase_itself():
    phase = Phase("p", labelled_scans, [])
    assert coarse_to_fine(phase, 0.0) == [phase]


def test_the_first_steps_are_coarse_and_the_rate_goes_on_where_they_left_it(tmp_path, monkeypatch):
    network, shapes, rates = nn.Conv3d(1, 1, 1), [], []
    player = Player("s", network, Seen(network, shapes), WeightedSum(total=(1.0, lambda out: out.square().mean())))
    settings = TrainSettings(
        steps=20, batch_size=1, learning_rate=1.0, schedule="one-cycle", optimizer="adamw", ema=0.0,
        augmentation="none",
    )  # fmt: skip
    phases = coarse_to_fine(Phase("p", labelled_scans, [player]), 0.75)
    assert [phase.share for phase in phases] == [0.75, 0.25]

    def noted(*arguments: Any) -> float:
        rates.append(learning_rate(*arguments))
        return rates[-1]

    monkeypatch.setattr(loop, "learning_rate", noted)
    cpu = Device(torch.device("cpu"), torch.float32)
    loop.train(loop.Run(phases, {"segmentation": network}, two_scans(), settings, cpu, 0, Draft(tmp_path)))
    assert shapes == [(8, 10, 12)] * 15 + [SHAPE] * 5
    whole = [learning_rate(1.0, step, 25, settings) for step in range(25)]  # 15 steps are its first 60 %
    assert rates[:15] == whole[:15]
    assert rates[15] == pytest.approx(learning_rate(1.0, 6, 10, settings), abs=0.1)  # the last 40 % in 5 steps
    assert all(later < earlier for earlier, later in pairwise(rates[14:]))
