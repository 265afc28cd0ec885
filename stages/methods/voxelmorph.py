"""VoxelMorph: learned registration of atlas and scan; the atlas's label follows. `lc-`: also from labels.

Balakrishnan et al., "VoxelMorph: A Learning Framework for Deformable Medical Image Registration", TMI 2019. The
label-constrained method has their auxiliary loss (section III-C): atlases are registered to each other, too, and their
labels must agree. Every step has as many pairs of atlases as of atlas and scan; the paper names no proportion.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.config import TrainSettings
from stages.errors import LrlsError
from stages.methods.networks import registration_network
from stages.methods.phases import Phase, Player, WeightedSum
from stages.methods.recipe import Method, Recipe, Task, registration_alone
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import published_training, short_training
from stages.parts.batches.pairs import atlas_and_scan, scans_and_labelled_pairs
from stages.parts.players.registering import RegisterLabelledPairs, RegisterPair, label_overlap


class Settings(RegistrationSettings):
    """Settings of `voxelmorph`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"light": {"registration_network": "light"}}

    registration_network: Literal["voxelmorph", "brbs", "light"] = Field(
        "voxelmorph", description="R: VoxelMorph's own, BRBS's U-Net, or the light one."
    )
    diffeomorphic: bool = Field(True, description="R predicts a velocity field: 7 steps at half resolution.")
    smoothness_weight: float = Field(1.0, ge=0, description="lambda, weight of L_smooth.")


class LabelConstrainedSettings(Settings):
    """Settings of `lc-voxelmorph`."""

    overlap_weight: float = Field(1.0, gt=0, description="gamma, weight of the labelled pairs' Dice.")


def build(task: Task, settings: Settings) -> Recipe:
    R = registration_network(settings.registration_network, task, diffeomorphic=settings.diffeomorphic)
    register = Player(
        "registration",
        trains=R,
        forward=RegisterPair(R),
        loss=WeightedSum(**registration_terms(settings)),
    )
    return registration_alone(R, Phase("registration", batches=atlas_and_scan, players=[register]))


def build_label_constrained(task: Task, settings: LabelConstrainedSettings) -> Recipe:
    if task.num_atlases < 2:
        raise LrlsError(
            f"data.atlases: found {task.num_atlases}, expected at least 2, because lc-voxelmorph learns from pairs of "
            "labelled scans; list more atlases, or use voxelmorph."
        )
    R = registration_network(settings.registration_network, task, diffeomorphic=settings.diffeomorphic)
    register = Player(
        "registration",
        trains=R,
        forward=RegisterLabelledPairs(R),
        loss=WeightedSum(**registration_terms(settings), overlap=(settings.overlap_weight, label_overlap)),
    )
    return registration_alone(R, Phase("registration", batches=scans_and_labelled_pairs, players=[register]))


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(1000, learning_rate=1e-3)
    return published_training(30_000, augmentation="none")


METHOD = Method(
    name="voxelmorph",
    summary="learned registration, label propagation",
    source="Balakrishnan et al., TMI 2019",
    settings=Settings,
    recipe=build,
    channels=True,
    train_reg=train_reg,
)
LABEL_CONSTRAINED = Method(
    name="lc-voxelmorph",
    summary="voxelmorph that also learns from pairs of atlases and their labels; two atlases or more",
    source="Balakrishnan et al., TMI 2019",
    settings=LabelConstrainedSettings,
    recipe=build_label_constrained,
    channels=True,
    train_reg=train_reg,
)
