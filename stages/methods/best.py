"""The method that the measurements of `docs/benchmarks/` favour: accurate paths first, then S alone.

BRBS's space sampling (S3P) on paths of instance optimisation instead of a trained R. Left out: style maps (the style of
a misaligned scan carries its anatomy into images under another label), MMR, semantic consistency, and pseudo-labels of
the scans. Why: "Half an hour, one and five labels" in docs/benchmarks/LOG.md.

After He et al., "Learning Better Registration to Learn Better Few-Shot Medical Image Segmentation", TNNLS 2022.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stages.config import TrainSettings
from stages.generating.path_bank import PathBank
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, segmentation_network
from stages.methods.phases import Phase, Player, WeightedSum, coarse_to_fine
from stages.methods.recipe import Answer, Generate, Method, Recipe, Task, Train
from stages.methods.schedules import full_or_light_rate, short_training
from stages.methods.settings import ANSWER, AnswerSettings, HalfResolution
from stages.parts.batches.drawing import Sampler
from stages.parts.batches.labelled import labelled_scans
from stages.parts.batches.space_style import Always, Beta, Degree, SpaceStyleSampling
from stages.parts.instance import InstanceOptimisation
from stages.parts.players.segmenting import Segment, overlap_and_cross_entropy


class Settings(AnswerSettings):
    """Settings of `best`."""

    segmentation_network: SegmentationName = Field("light", description=f"S: {SEGMENTATION_NAMES}")
    half_resolution: HalfResolution = 0.0
    space: bool = Field(True, description="S learns from atlases in the shapes of scans (S3P); off: in their own.")
    most_paths: int | None = Field(150, ge=1, description="Most couples (atlas, scan) to register; null: all.")
    coarse_steps: int = Field(40, ge=0, description="Steps of instance optimisation on each of two coarser levels.")
    fine_steps: int = Field(15, ge=0, description="Steps of instance optimisation at full resolution.")
    smoothness_weight: float = Field(1.0, ge=0, description="Weight of the displacement's smoothness.")
    fuse: Annotated[bool, ANSWER] = Field(
        True,
        description="S's probabilities and the propagated label together; the label's weight is half of how well "
        "the warped atlas fits the scan there (LNCC), and more for what S has not learned; off: S alone.",
    )
    flat_borders: Annotated[bool, ANSWER] = Field(
        True, description="Where the atlases draw a border as one plane of voxels, the answer does, too."
    )


def build(task: Task, settings: Settings) -> Recipe:
    S = segmentation_network(settings.segmentation_network, task)
    degree: Degree = Beta(0.3)
    s3p = SpaceStyleSampling(space=degree, style=Always(0.0), mixing=None)
    space = settings.space and task.num_unlabeled > 0
    batches: Sampler = s3p.from_bank if space else labelled_scans
    segment = Player(
        "segmentation", trains=S, forward=Segment(S), loss=WeightedSum(overlap=(1.0, overlap_and_cross_entropy))
    )
    learn = Train(
        "segmentation",
        coarse_to_fine(
            Phase("space" if space else "atlases", batches=batches, players=[segment]),
            settings.half_resolution,
        ),
        uses=["generated"] if space else [],
    )
    answer = Answer(
        network=S,
        registers=InstanceOptimisation(
            settings.coarse_steps,
            settings.fine_steps,
            smoothness=settings.smoothness_weight,
            spacing_mm=task.spacing_mm,
        ),
        fuse=settings.fuse,
        flat_borders=settings.flat_borders,
    )
    generate = Generate([PathBank(space=degree, style=None, most=settings.most_paths)])
    return Recipe(
        networks={"segmentation": S},
        rounds=[[generate, learn] if space else [learn]],
        answer=answer,
    )


def train_seg(settings: Settings) -> TrainSettings:
    return short_training(2000, batch_size=2, learning_rate=full_or_light_rate(settings.segmentation_network))


METHOD = Method(
    name="best",
    summary="from one label: instance optimisation, space sampling, fused answers",
    source="after He et al., TNNLS 2022",
    settings=Settings,
    recipe=build,
    channels=True,
    train_seg=train_seg,
)
