"""UA-MT: a student learns from its own average, where that one is sure of what it says.

Yu, Wang, Li, Fu, Heng, "Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation",
MICCAI 2019, arXiv:1907.07034; code github.com/yulequan/UA-MT (train_LA_meanteacher_certainty_unlabel.py@80d0a34).

In every step the student learns from labelled scans, and on unlabelled ones to answer as the teacher does, its moving
average. The teacher answers eight more times, each time with other noise and dropout; where the entropy of its mean
answer exceeds a threshold, nothing is learned. The threshold rises from 3/4 of the largest entropy to all of it.

Readings, where the text leaves a choice:
- *Answer*: the student, as the published evaluation has it; `answers: teacher` is the other reading.
- *Noise*: the published images have standard deviation 1, ours lie in [0, 1]; the noise is in units of each image's.
- *Average*: the teacher follows at the beginning of the next step, so it lacks the last one.
- *Dropout* acts on the deepest features and on the last ones before the head, as after L-stage 5 and R-stage 1.

Ours differs: S is a U-Net as in BRBS's comparison, not V-Net, and has no BatchNorm; Adam in place of SGD; Dice and
cross-entropy are shared with the other methods; every scan is seen whole.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.config import TrainSettings
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, segmentation_network
from stages.methods.phases import Phase, Player, Ramp, Ramped, WeightedSum
from stages.methods.recipe import Answer, Method, Recipe, Task, Train
from stages.methods.schedules import full_or_light_rate, published_training, short_training
from stages.methods.settings import ANSWER, AnswerSettings
from stages.parts.batches.half_labelled import labelled_and_unlabeled
from stages.parts.networks.mean_teacher import MeanTeacher
from stages.parts.players.segmenting import overlap_and_cross_entropy
from stages.parts.players.semi_supervised import TeachWhereSure, certain_consistency


class Settings(AnswerSettings):
    """Settings of `ua-mt`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "light": {
            "segmentation_network": "light", "passes": 4, "dropout": 0.2, "train_seg": {"steps": 600, "batch_size": 2},
        },
    }  # fmt: skip
    preset: Annotated[str, ANSWER] = Field(
        "default", description="paper: the published numbers, as the default; light: minutes on CPU cores."
    )

    segmentation_network: SegmentationName = Field("brbs", description=f"S: {SEGMENTATION_NAMES}")
    passes: int = Field(8, ge=1, le=64, description="T, answers of the teacher that its uncertainty is taken from.")
    noise: float = Field(
        0.1, ge=0, le=1, description="Noise on the teacher's images, in standard deviations of the image."
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of channels dropped in two layers of both networks.")
    decay: float = Field(0.99, ge=0, lt=1, description="alpha, decay of the moving average, the teacher.")
    consistency_weight: float = Field(
        0.1, ge=0, description="lambda at the end, after a Gaussian ramp over all steps; 0: S learns from labels alone."
    )
    first_threshold: float = Field(
        0.75, gt=0, le=1, description="H in the first step, as a share of the largest entropy; at the end it is 1."
    )
    answers: Annotated[Literal["student", "teacher"], ANSWER] = Field("student", description="Whose answer counts.")


def build(task: Task, settings: Settings) -> Recipe:
    S = segmentation_network(settings.segmentation_network, task)
    both = MeanTeacher(S, settings.decay)
    weight = settings.consistency_weight
    H = Ramp(settings.first_threshold, 1.0, gaussian=True)
    teach = Player(
        "student",
        trains=S,
        forward=TeachWhereSure(both, settings.passes if weight else 0, settings.noise, settings.dropout),
        loss=WeightedSum(
            supervised=(0.5, overlap_and_cross_entropy),  # L_s
            consistency=(  # lambda(t) L_c
                Ramp(0.0, weight, gaussian=True) if weight else 0.0,
                Ramped(H, certain_consistency),
            ),
        ),
    )
    student = Phase("student", batches=labelled_and_unlabeled, players=[teach])
    return Recipe(
        networks={"segmentation": both},
        rounds=[[Train("segmentation", [student], sees_unlabeled=True)]],
        answer=Answer(
            network=both.student if settings.answers == "student" else both.teacher, flat_borders=settings.flat_borders
        ),
    )


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network == "brbs":
        return published_training(6000, batch_size=4, learning_rate=1e-3, augmentation="rotate-scale")
    return short_training(800, batch_size=4, learning_rate=full_or_light_rate(settings.segmentation_network))


METHOD = Method(
    name="ua-mt",
    summary="a student agrees with its own average on unlabelled scans, where that one is sure",
    source="Yu et al., MICCAI 2019",
    settings=Settings,
    recipe=build,
    channels=True,
    train_seg=train_seg,
)
