"""DeepAtlas: registration and segmentation learn from each other's answers, however good these are.

Xu, Niethammer, "DeepAtlas: Joint Semi-Supervised Learning of Image Registration and Segmentation", MICCAI 2019,
arXiv:1904.08465. The published code (github.com/uncbiag/DeepAtlas) has the single networks, not the joint training.

R learns from similarity, smoothness and the overlap of warped and fixed anatomy; S's answer replaces a missing label.
S learns from labels, and from pairs of which one image has a label, carried over by R in either direction. Two images
without labels teach S nothing. R and S first learn alone, then in turn, 20 steps of R to one of S, then together.

Ours differs: LNCC, diffusion and Dice are those of the other methods, so the terms' weights are ours, too. Half of the
pairs contain an atlas; with one atlas among many scans S would hardly see a label otherwise. S is a U-Net of ours; R is
VoxelMorph's, as in the paper. Where the augmentation recolours, S learns from recoloured images; R sees them as they
are.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.config import TrainSettings
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, registration_network, segmentation_network
from stages.methods.phases import Phase, Player, WeightedSum
from stages.methods.recipe import Answer, Method, Recipe, Task, Train
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import published_training, short_training
from stages.methods.settings import AnswerSettings
from stages.parts.batches.labelled import labelled_scans
from stages.parts.batches.partly_labelled import any_pair
from stages.parts.players.joint import RegisterByAnswers, SegmentPair, carried_anatomy, supervised_overlap
from stages.parts.players.registering import RegisterPair, semantic_consistency
from stages.parts.players.segmenting import Segment, overlap


class Settings(AnswerSettings, RegistrationSettings):
    """Settings of `deep-atlas`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {
            "registration_network": "light", "segmentation_network": "light", "train_reg": {"steps": 900},
        },
    }  # fmt: skip

    registration_network: Literal["voxelmorph", "brbs", "light"] = Field(
        "voxelmorph", description="R: VoxelMorph's, BRBS's U-Net, or the light one."
    )
    segmentation_network: SegmentationName = Field("full", description=f"S: {SEGMENTATION_NAMES}")
    diffeomorphic: bool = Field(False, description="R predicts a velocity field, which is integrated.")
    smoothness_weight: float = Field(1.0, ge=0, description="Weight of R's smoothness.")
    anatomy_weight: float = Field(1.0, ge=0, description="Weight of the anatomies' overlap, in R's loss and in S's.")
    alone_share: float = Field(0.4, gt=0, lt=1, description="Share of the steps in which R, then S, learns alone.")
    alternating_share: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="Share of the other steps in which S moves every 20 steps; later it moves every step.",
    )
    segmentation_learning_rate: float | None = Field(None, gt=0, description="Learning rate of S; default: R's.")


def build(task: Task, settings: Settings) -> Recipe:
    R = registration_network(settings.registration_network, task, diffeomorphic=settings.diffeomorphic)
    S = segmentation_network(settings.segmentation_network, task)
    pairs = partial(any_pair, with_atlas=0.5)
    rate = settings.segmentation_learning_rate
    register = registration_terms(settings)
    registration = Player(
        "registration",
        trains=R,
        forward=RegisterByAnswers(R, S),
        loss=WeightedSum(**register, anatomy=(settings.anatomy_weight, semantic_consistency)),
    )
    segmentation = partial(
        Player,
        "segmentation",
        trains=S,
        forward=SegmentPair(S, R),
        loss=WeightedSum(overlap=(1.0, supervised_overlap), anatomy=(settings.anatomy_weight, carried_anatomy)),
        learning_rate=rate,
    )
    alone, alternating = settings.alone_share / 2, (1 - settings.alone_share) * settings.alternating_share
    phases = [
        Phase(
            "registration-alone",
            pairs,
            [Player("registration", trains=R, forward=RegisterPair(R), loss=WeightedSum(**register))],
            share=alone,
        ),
        Phase(
            "segmentation-alone",
            labelled_scans,
            [
                Player(
                    "segmentation", trains=S, forward=Segment(S), loss=WeightedSum(overlap=(1.0, overlap)),
                    learning_rate=rate,
                )
            ],
            share=alone,
        ),
        Phase("in-turn", pairs, [registration, segmentation(every=20)], share=alternating),
        Phase("together", pairs, [registration, segmentation()], share=1 - settings.alone_share - alternating),
    ]  # fmt: skip
    return Recipe(
        networks={"registration": R, "segmentation": S},
        rounds=[
            [
                Train("registration", [phase for phase in phases if phase.share]),
                Train("segmentation", uses=["registration"]),
            ]
        ],
        answer=Answer(network=S, registers=R, flat_borders=settings.flat_borders),
    )


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(2000, batch_size=2, learning_rate=1e-3)  # of one pair, half would tell S nothing
    return published_training(40_000, augmentation="rotate-scale")


METHOD = Method(
    name="deep-atlas",
    summary="registration and segmentation in turn, each by the other's answers",
    source="Xu, Niethammer, MICCAI 2019",
    settings=Settings,
    recipe=build,
    channels=True,
    train_reg=train_reg,
)
