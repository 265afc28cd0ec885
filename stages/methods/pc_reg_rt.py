"""PC-Reg-RT: S perceives, R finds correspondence within what S perceives, and the aligned pairs teach S in reverse.

He, Li, Ge, Yang, Kong, Zhu, Shu, Yang, Li, "Few-Shot Learning for Deformable Medical Image Registration With
Perception-Correspondence Decoupling and Reverse Teaching", JBHI 26 (2022), doi:10.1109/JBHI.2021.3095409; code
github.com/YutingHe-list/PC-Reg-RT (pytorch/semi_pcreg.py@3542d32, to which numbers refer). The text was not at hand.

R sees each structure of both images as an image of its own, the rest is 0; it learns local correlation, summed over the
structures, and smoothness. Half of the steps S learns from labels alone. Then it sees the moving image aligned with the
fixed one: each of the two that has a label is an anchor, and one that has none learns the other's, at half the weight.

Readings, where code and abstract leave a choice:
- *Masks*: hard in the published training and soft in its test; the earlier code's are soft. Here hard in both.
- *Pairs*: half hold a labelled image; the other half are any two scans (published: two without labels). Of two labelled
  images both are anchors, as in the earlier code; the later one leaves them out.

Ours differs: S is a U-Net of ours, and R VoxelMorph's, as in the earlier code; LNCC and diffusion are those of the
other methods; no mirroring. Where the augmentation recolours, S learns from recoloured images; R, and S as it perceives
for R, see them as they are.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.config import TrainSettings
from stages.generating.path_bank import PathBank
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, registration_network, segmentation_network
from stages.methods.phases import Phase, Player, Terms, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Recipe, Task, Train
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import published_training, short_training
from stages.methods.settings import ANSWER, AnswerSettings
from stages.parts import losses
from stages.parts.batches.labelled import labelled_scans
from stages.parts.batches.partly_labelled import any_pair
from stages.parts.batches.space_style import Always
from stages.parts.networks.perceiving import PerceivingRegistration
from stages.parts.players.perceiving import (
    Compare,
    PerceiveBoth,
    RegisterRegions,
    overlap_and_cross_entropy,
    own_label,
    reverse_teaching,
)
from stages.parts.players.segmenting import Segment
from stages.parts.players.segmenting import cross_entropy as atlas_cross_entropy
from stages.parts.players.segmenting import overlap_and_cross_entropy as atlas_overlap_and_cross_entropy


class Settings(AnswerSettings, RegistrationSettings):
    """Settings of `pc-reg-rt`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "light": {
            "registration_network": "light", "segmentation_network": "light", "segmentation_loss": "dice-ce",
            "segmentation_learning_rate": 3e-3,
            "alone_share": 0.3,  # R sees nothing before S does
            "train_reg": {"steps": 900},
        },
    }  # fmt: skip
    preset: Annotated[str, ANSWER] = Field(
        "default", description="paper: the published numbers, as the default; light: minutes on CPU cores."
    )

    registration_network: Literal["voxelmorph", "brbs", "light"] = Field(
        "voxelmorph", description="R: VoxelMorph's, BRBS's U-Net, or the light one; a channel for each structure."
    )
    segmentation_network: SegmentationName = Field("brbs", description=f"S: {SEGMENTATION_NAMES}")
    diffeomorphic: bool = Field(False, description="R predicts a velocity field, which is integrated.")
    masks: Literal["hard", "soft"] = Field(
        "hard", description="Structures that R sees: of the voxels' likeliest class, or weighted by its probability."
    )
    smoothness_weight: float = Field(1.0, ge=0, description="Weight of R's smoothness.")
    reverse_weight: float = Field(
        0.5, ge=0, description="Weight of what an image without label learns from the one that it is aligned with."
    )
    reverse_share: float = Field(0.5, ge=0, lt=1, description="Share of the steps with both in which R teaches S.")
    alone_share: float = Field(0.0, ge=0, lt=1, description="Share of all steps, the first ones, of S alone.")
    segmentation_loss: Literal["ce", "dice-ce"] = Field("ce", description="Cross-entropy, or Dice with it.")
    segmentation_learning_rate: float | None = Field(None, gt=0, description="Learning rate of S; default: R's.")


def build(task: Task, settings: Settings) -> Recipe:
    S = segmentation_network(settings.segmentation_network, task)
    structures = task.num_classes - 1
    of_regions = replace(task, channels=structures * task.channels)
    correspondence = registration_network(
        settings.registration_network, of_regions, diffeomorphic=settings.diffeomorphic
    )
    R = PerceivingRegistration(S, correspondence, hard=settings.masks == "hard")
    ce = settings.segmentation_loss == "ce"
    compare: Compare = losses.cross_entropy_loss if ce else overlap_and_cross_entropy
    anchors: Terms = {"anchors": (1.0, partial(own_label, compare=compare))}
    segmentation = partial(Player, "segmentation", trains=S, learning_rate=settings.segmentation_learning_rate)
    register = Player(
        "registration",
        trains=correspondence,
        forward=RegisterRegions(R),
        loss=WeightedSum(**registration_terms(settings, similarity_weight=structures)),  # a sum over the structures
    )
    perceive = segmentation(forward=PerceiveBoth(S), loss=WeightedSum(**anchors))
    taught = segmentation(
        forward=PerceiveBoth(S, R),
        loss=WeightedSum(**anchors, reverse=(settings.reverse_weight, partial(reverse_teaching, compare=compare))),
    )
    on_atlases = atlas_cross_entropy if ce else atlas_overlap_and_cross_entropy
    alone = segmentation(forward=Segment(S), loss=WeightedSum(atlases=(1.0, on_atlases)))
    pairs = partial(any_pair, with_atlas=0.5)
    both, reverse = 1 - settings.alone_share, settings.reverse_share
    phases = [
        Phase("perception-alone", labelled_scans, [alone], share=settings.alone_share),
        Phase("decoupled", pairs, [perceive, register], share=both * (1 - reverse)),
        Phase("reverse-teaching", pairs, [register, taught], share=both * reverse),
    ]
    return Recipe(
        networks={"registration": R, "segmentation": S},
        rounds=[
            [
                Train("registration", [phase for phase in phases if phase.share]),
                Generate([PathBank(space=Always(1.0), style=None)]),
                Train("segmentation", uses=["registration"]),
            ]
        ],
        answer=Answer(network=S, registers=R, flat_borders=settings.flat_borders),
    )


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(2000, batch_size=2, learning_rate=1e-3)  # of one pair, half would tell S nothing
    return published_training(80_000, augmentation="rotate-scale")  # 2 stages of 200 epochs of 200


METHOD = Method(
    name="pc-reg-rt",
    summary="registration within the structures that S perceives, which teaches S in reverse",
    source="He et al., JBHI 2022",
    settings=Settings,
    recipe=build,
    channels=True,
    train_reg=train_reg,
)
