"""U-Net on labelled scans alone, with augmentation: the baseline (`unet`) and the upper bound (`supervised`).

Ronneberger et al., MICCAI 2015; Çiçek et al., MICCAI 2016; Dice and cross-entropy as Isensee et al., "nnU-Net", 2021.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.config import TrainSettings
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, segmentation_network
from stages.methods.phases import Phase, Player, WeightedSum, coarse_to_fine
from stages.methods.recipe import Answer, Method, Recipe, Task, Train
from stages.methods.schedules import full_or_light_rate, published_training, short_training
from stages.methods.settings import AnswerSettings, HalfResolution
from stages.parts.batches.labelled import labelled_scans
from stages.parts.players.segmenting import Segment, overlap, overlap_and_cross_entropy


class Settings(AnswerSettings):
    """Settings of `unet` and `supervised`."""

    segmentation_network: SegmentationName = Field("light", description=f"S: {SEGMENTATION_NAMES}")
    half_resolution: HalfResolution = 0.0
    segmentation_loss: Literal["dice", "dice-ce"] = Field(
        "dice-ce", description="L_seg: Dice, or Dice with cross-entropy."
    )


def build(task: Task, settings: Settings) -> Recipe:
    S = segmentation_network(settings.segmentation_network, task)
    loss = overlap if settings.segmentation_loss == "dice" else overlap_and_cross_entropy
    segment = Player("segmentation", trains=S, forward=Segment(S), loss=WeightedSum(overlap=(1.0, loss)))
    labelled = Phase("labelled", batches=labelled_scans, players=[segment])
    return Recipe(
        networks={"segmentation": S},
        rounds=[[Train("segmentation", coarse_to_fine(labelled, settings.half_resolution))]],
        answer=Answer(network=S, flat_borders=settings.flat_borders),
    )


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network == "brbs":
        return published_training(10_000, batch_size=2, augmentation="strong")
    return short_training(800, batch_size=2, learning_rate=full_or_light_rate(settings.segmentation_network))


UNET = Method(
    name="unet",
    summary="3D U-Net on the atlases with strong augmentation",
    source="Çiçek et al., MICCAI 2016",
    settings=Settings,
    recipe=build,
    channels=True,
    train_seg=train_seg,
)
SUPERVISED = Method(
    name="supervised",
    summary="upper bound: the same U-Net on the labels of data.supervised",
    source="Çiçek et al., MICCAI 2016",
    settings=Settings,
    recipe=build,
    channels=True,
    train_seg=train_seg,
    cohort="supervised",
)
