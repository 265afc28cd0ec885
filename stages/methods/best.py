"""BRBS's complementary learning of R and S with the parts that single measurements favour (`docs/benchmarks/`).

As a whole it is not measured on real scans yet.

Left out of BRBS: style maps (the style of a misaligned scan carries its anatomy into images under another label), MMR
(three more images a step for S) and the published networks. In: an antisymmetric, diffeomorphic R, intensity
augmentation in place of style, and an answer that is the mean of what S says and of what R propagates, whose errors
differ.

After He et al., "Learning Better Registration to Learn Better Few-Shot Medical Image Segmentation", TNNLS 2022.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pydantic import Field

from stages.config import MethodSettings, TrainSettings
from stages.methods.recipe import (
    SEGMENTATION_NAMES,
    Method,
    PathBankWriter,
    Phase,
    Player,
    Recipe,
    SegmentationName,
    Task,
    Terms,
    WeightedSum,
    registration_network,
    segmentation_network,
    short_training,
)
from stages.parts.consistency import (
    RegisterTriplet,
    inverse_consistency,
    semantic_consistency,
    similarity,
    smoothness,
)
from stages.parts.samplers import (
    Always,
    Beta,
    Degree,
    SpaceStyleSampling,
    atlas_and_two_unlabeled,
    labelled_scans,
)
from stages.parts.segmenting import GenerateAndSegment, Segment, SegmentAtlas, overlap_and_cross_entropy


class Settings(MethodSettings):
    """Settings of `best`."""

    ANSWERS: ClassVar[tuple[str, ...]] = ("fuse",)

    segmentation_network: SegmentationName = Field("light", description=f"S: {SEGMENTATION_NAMES}")
    diffeomorphic: bool = Field(True, description="R predicts a velocity field: no folds, and exact inverses.")
    space: bool = Field(True, description="S learns from atlases in other scans' shapes (S3P); off: from atlases.")
    semantic_weight: float = Field(10.0, ge=0, description="Weight of semantic consistency in R's loss; 0: off.")
    semantic_classes: int | None = Field(
        None, ge=1, description="Semantic consistency looks at this many classes, drawn anew in each step."
    )
    smoothness_weight: float = Field(1.0, ge=0, description="Of R's displacement.")
    warm_up: float = Field(0.5, ge=0, lt=1, description="Share of train-reg in which R and S learn apart.")
    segmentation_learning_rate: float | None = Field(None, gt=0, description="Of S in train-reg; default: S's own.")
    fuse: bool = Field(True, description="The answer is the mean of S's and of the propagated label; off: S's.")


def build(task: Task, settings: Settings) -> Recipe:
    R = registration_network("light", task, diffeomorphic=settings.diffeomorphic)
    S = segmentation_network(settings.segmentation_network, task)
    degree: Degree = Beta(0.3)
    s3p = SpaceStyleSampling(space=degree, style=Always(0.0), mixing=None)
    apart: Terms = {
        "similarity": (1.0, similarity),
        "smoothness": (settings.smoothness_weight, smoothness),
        "inverse_consistency": (0.1, inverse_consistency),
    }
    together: Terms = apart | {"semantic_consistency": (settings.semantic_weight, semantic_consistency)}
    register = partial(RegisterTriplet, R, both_ways=True, atlas_label=True, num_chosen=settings.semantic_classes)
    segmentation_loss = WeightedSum(overlap=(1.0, overlap_and_cross_entropy))
    helper = partial(
        Player,
        "segmentation",
        trains=S,
        loss=segmentation_loss,
        learning_rate=settings.segmentation_learning_rate or segmentation_rate(settings),
    )
    batches = partial(atlas_and_two_unlabeled, move=False)
    apart_phase = Phase(
        "apart",
        batches=batches,
        share=settings.warm_up,
        players=[
            Player("registration", trains=R, forward=register(None), loss=WeightedSum(**apart)),
            helper(forward=SegmentAtlas(S)),
        ],
    )
    together_phase = Phase(
        "together",
        batches=batches,
        share=1 - settings.warm_up,
        players=[
            Player(
                "registration",
                trains=R,
                forward=register(S if settings.semantic_weight else None),
                loss=WeightedSum(**together),
            ),
            helper(forward=GenerateAndSegment(R, s3p, S) if settings.space else SegmentAtlas(S)),
        ],
    )
    return Recipe(
        registration=R,
        helpers={"segmentation": S},
        segmentation=S,
        fuse=settings.fuse,
        train_registration=[apart_phase, together_phase] if settings.warm_up else [together_phase],
        generate=PathBankWriter(space=degree, style=Always(0.0)) if settings.space else None,
        train_segmentation=[
            Phase(
                "space" if settings.space else "atlases",
                batches=s3p.from_bank if settings.space else labelled_scans,
                players=[Player("segmentation", trains=S, forward=Segment(S), loss=segmentation_loss)],
            )
        ],
    )


def segmentation_rate(settings: Settings) -> float:
    """Peak learning rate of S."""
    return 3e-3 if settings.segmentation_network == "light" else 2e-3


def train_reg(settings: Settings) -> TrainSettings:
    return short_training(1000, learning_rate=1e-3)


def train_seg(settings: Settings) -> TrainSettings:
    return short_training(1000, batch_size=2, learning_rate=segmentation_rate(settings))


METHOD = Method(
    name="best",
    summary="from one label: R and S in alternation, space sampling, fused answers",
    source="after He et al., TNNLS 2022",
    settings=Settings,
    recipe=build,
    train_reg=train_reg,
    train_seg=train_seg,
)
