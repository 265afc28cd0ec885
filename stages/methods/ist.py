"""IST: S learns from warped atlases that look like the scans they are aligned with; R learns from S, in rounds.

Lv, Zeng, Wang, Duan, Wang, Li, "Robust One-shot Segmentation of Brain Tissues via Image-aligned Style Transformation",
AAAI 2023, arXiv:2211.14521.

In each round R is trained first, then warps the atlases to all scans; S learns from them with the phase of the warped
atlas's spectrum and a random share of the scan's amplitudes, so that image and label fit whatever R does. From the
second round on R also looks at what S says of the scan, and S, at a tenth of the weight, learns from the real scans
with what it said of them itself.

How the text is read, where it leaves a choice:
- *Style transformation*: whole spectra; the share is drawn anew for every sample of every step, from U(0, 1).
- *Content consistency*: one minus the cosine of the first level's features, voxel by voxel. R has one encoder for both
  images, so that a single image has features; their weights stand still in this term, or they would agree by saying
  nothing.
- *Pseudo-labels* are stored unscreened (threshold 0), once a round.
- *Rounds*: both networks go on from the round before. Which round is the best cannot be told without labels: the last.
- *Numbers*: epochs and weights of the published training were not at hand; steps, the weights of smoothness, content
  and overlap are ours.

Ours differs in: LNCC and smoothness are shared with the other methods; R is a Siamese U-Net; several atlases take
turns.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from stages.config import TrainSettings
from stages.generating.pseudo_labels import PseudoLabels
from stages.generating.warped_atlases import WarpedAtlases
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, segmentation_network
from stages.methods.phases import Phase, Player, Terms, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Recipe, Step, Task, Train
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import full_or_light_rate, published_training, short_training
from stages.methods.settings import ANSWER, GENERATE, LATER_ROUNDS, SEGMENT, AnswerSettings, ReadBy
from stages.parts.batches.pairs import atlas_and_scan
from stages.parts.batches.styled import styled_warps
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.siamese import PooledSiameseUNet, instance_block
from stages.parts.players.image_aligned import (
    RegisterAndCompare,
    SegmentStyled,
    content,
    pseudo_overlap_and_cross_entropy,
)
from stages.parts.players.registering import semantic_consistency
from stages.parts.players.segmenting import overlap_and_cross_entropy


class Settings(AnswerSettings, RegistrationSettings):
    """Settings of `ist`; a weight of 0 switches a term off."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {
            "registration_network": "light", "segmentation_network": "light", "diffeomorphic": True, "rounds": 1,
            "train_reg": {"steps": 600}, "train_seg": {"steps": 600, "batch_size": 1},
        },
    }  # fmt: skip

    rounds: Annotated[int, ANSWER] = Field(2, ge=0, le=20, description="After the first training; 0: only that.")
    round_share: Annotated[float, LATER_ROUNDS] = Field(
        0.5, gt=0, le=1, description="Steps of a later round, in multiples of those of the first."
    )
    registration_network: Literal["siamese", "light"] = Field(
        "siamese", description="R: one encoder for both images, at full resolution or (light) at half."
    )
    segmentation_network: Annotated[SegmentationName, SEGMENT] = Field("brbs", description=f"S: {SEGMENTATION_NAMES}")
    diffeomorphic: bool = Field(False, description="R predicts a velocity field, which is integrated.")
    smoothness_weight: float = Field(1.0, ge=0, description="Of R's smoothness.")
    content_weight: float = Field(0.1, ge=0, description="Of the features' cosine distance.")
    overlap_weight: Annotated[float, LATER_ROUNDS] = Field(
        1.0, ge=0, description="Of R's Dice with what S says of the scan."
    )
    pseudo_weight: Annotated[float, ReadBy("generate", round=1)] = Field(
        0.1, ge=0, description="Of what S learns from real scans; 0: styled warps alone."
    )
    most_samples: Annotated[int | None, GENERATE] = Field(
        None, ge=1, description="Warped atlases to write at most; null: all couples of atlas and scan."
    )


def build(task: Task, settings: Settings) -> Recipe:
    with task.initialises("registration"):
        body = PooledSiameseUNet(task.shape, instance_block, light=settings.registration_network == "light")
        body.projection = nn.Identity()  # type: ignore[assignment]  # nothing is embedded here
        R = RegistrationNetwork(body, diffeomorphic=settings.diffeomorphic)
    S = segmentation_network(settings.segmentation_network, task)
    align: Terms = {
        **registration_terms(settings),
        "content": (settings.content_weight, content),
    }
    warps = WarpedAtlases(most=settings.most_samples)

    def round_of(number: int) -> list[Step]:
        asks_S, share = number > 0 and settings.overlap_weight > 0, settings.round_share if number else 1.0
        sees_scans = number > 0 and settings.pseudo_weight > 0
        register = Player(
            "registration",
            trains=R,
            forward=RegisterAndCompare(R, S if asks_S else None),
            loss=WeightedSum(**align, overlap=(settings.overlap_weight * asks_S, semantic_consistency)),
        )
        segment = Player(
            "segmentation",
            trains=S,
            forward=SegmentStyled(S),
            loss=WeightedSum(
                overlap=(1.0, overlap_and_cross_entropy),
                pseudo=(settings.pseudo_weight * sees_scans, pseudo_overlap_and_cross_entropy),
            ),
        )
        styled = partial(styled_warps, pseudo=sees_scans)
        return [
            Train(
                "registration", [Phase("registration", atlas_and_scan, [register], share)], ["segmentation"] * asks_S
            ),
            Generate([warps, PseudoLabels(threshold=0.0)] if sees_scans else [warps]),
            Train("segmentation", [Phase("styled", styled, [segment], share)], ["generated"]),
        ]

    return Recipe(
        networks={"registration": R, "segmentation": S},
        rounds=[round_of(number) for number in range(settings.rounds + 1)],
        answer=Answer(network=S, registers=R, flat_borders=settings.flat_borders),
    )


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(1000, learning_rate=1e-3)
    return published_training(30_000, augmentation="none")


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network == "brbs":
        return published_training(10_000, augmentation="rotate-scale")
    return short_training(1000, learning_rate=full_or_light_rate(settings.segmentation_network))


METHOD = Method(
    name="ist",
    summary="warped atlases in the look of the scans they are aligned with; registration and segmentation in rounds",
    source="Lv et al., AAAI 2023",
    settings=Settings,
    recipe=build,
    train_reg=train_reg,
    train_seg=train_seg,
)
