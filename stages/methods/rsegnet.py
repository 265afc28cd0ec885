"""RSegNet: registration both ways and segmentation, trained together to be consistent.

Qiu, Ren, "RSegNet: A Joint Learning Framework for Deformable Registration and Segmentation", IEEE T-ASE 2022. Neither
text nor code was at hand. This follows what JRSS's authors say of it, "consistency constraints of the registered
bidirectional deformation" and training on labelled data, in the few-shot setting of their comparison.

R registers pairs of any scans both ways. Its two displacements learn to be inverses, and to carry anatomies onto each
other; S's answer replaces a missing label. S learns from labels, and from labels carried either way. The
terms' weights are ours. Where the augmentation recolours, S learns from recoloured images; R sees them as they are.
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
from stages.parts.players.registering import inverse_consistency, semantic_consistency
from stages.parts.players.segmenting import Segment, overlap


class Settings(AnswerSettings, RegistrationSettings):
    """Settings of `rsegnet`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {
            "registration_network": "light", "segmentation_network": "light", "train_reg": {"steps": 900},
        },
    }  # fmt: skip

    registration_network: Literal["voxelmorph", "brbs", "light"] = Field(
        "voxelmorph", description="R: VoxelMorph's, BRBS's U-Net, or the light one."
    )
    segmentation_network: SegmentationName = Field("full", description=f"S: {SEGMENTATION_NAMES}")
    diffeomorphic: bool = Field(True, description="R predicts a velocity field, which is integrated.")
    smoothness_weight: float = Field(1.0, ge=0, description="Weight of R's smoothness, both ways.")
    inverse_weight: float = Field(0.1, ge=0, description="Weight of the two composed displacements' residual.")
    anatomy_weight: float = Field(
        1.0, ge=0, description="Weight of the anatomies' consistency, in R's loss and in S's."
    )
    alone_share: float = Field(0.2, ge=0, lt=1, description="Share of the steps in which S learns from atlases alone.")
    segmentation_learning_rate: float | None = Field(None, gt=0, description="Learning rate of S; default: R's.")


def build(task: Task, settings: Settings) -> Recipe:
    R = registration_network(settings.registration_network, task, diffeomorphic=settings.diffeomorphic)
    S = segmentation_network(settings.segmentation_network, task)
    segmentation = partial(Player, "segmentation", trains=S, learning_rate=settings.segmentation_learning_rate)
    alone = Phase(
        "segmentation-alone",
        labelled_scans,
        [segmentation(forward=Segment(S), loss=WeightedSum(overlap=(1.0, overlap)))],
        share=settings.alone_share,
    )
    together = Phase(
        "together",
        partial(any_pair, with_atlas=0.5),
        [
            Player(
                "registration",
                trains=R,
                forward=RegisterByAnswers(R, S, both_ways=True),
                loss=WeightedSum(
                    **registration_terms(settings),
                    inverse_consistency=(settings.inverse_weight, inverse_consistency),
                    anatomy=(settings.anatomy_weight, semantic_consistency),
                ),
            ),
            segmentation(
                forward=SegmentPair(S, R, both_ways=True),
                loss=WeightedSum(overlap=(1.0, supervised_overlap), anatomy=(settings.anatomy_weight, carried_anatomy)),
            ),
        ],
        share=1 - settings.alone_share,
    )
    return Recipe(
        networks={"registration": R, "segmentation": S},
        rounds=[
            [
                Train("registration", [alone, together] if settings.alone_share else [together]),
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
    name="rsegnet",
    summary="registration both ways and segmentation, trained together to be consistent",
    source="Qiu, Ren, T-ASE 2022",
    settings=Settings,
    recipe=build,
    channels=True,
    train_reg=train_reg,
)
