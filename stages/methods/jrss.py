"""JRSS: joint registration and segmentation self-training.

Shi, Lu, Yin, Zhong, Yang, "Joint few-shot registration and segmentation self-training of 3D medical images",
Biomedical Signal Processing and Control 80 (2023), doi:10.1016/j.bspc.2022.104294. The published code has the
single-task networks, not the self-training.

Round 0 trains R, and S on the atlases. Each later round: S as it is, the teacher, labels the unlabelled scans, and what
it is unsure of is screened out; R goes on with these labels; a student goes on from the teacher's weights with R's
help, and its moving average is the next teacher, and in the end the answer.

How the text is read, where it leaves a choice (numbers of epochs are nowhere):
- *Screening*: see `screen`. A scan without an accepted structure stays unlabelled: a sure background is no label.
- *Student*: half of a batch are atlases, half scans with pseudo-labels. In L_d the atlas is what moves, so that
  "lambda_d = 1 if labeled" always holds. "A new student" starts where the teacher stands ("we use the pre-trained nets
  to initialize"). Teacher and student see the same image, moved, recoloured (the paper does not) and all; P_t is
  computed there, and never stored.
- *Deformation as noise*: half of the scans (`input_noise`) are moved towards another scan by R, pseudo-labels along;
  how often is not said.
- *Dropout* acts on the last encoder layer and on the last one that is upsampled. It is the student's alone; running
  statistics of BatchNorm, which the teacher inherits, are taken without it.
- *Warm-up*: lambda_r is ten times as high in the first of R's 300 steps (of short trainings a fifth, which is ours),
  falls linearly, and no more in later rounds.
- *Initialisation*: Xavier for S; R as torch does it, with a head near 0.
- *Schedule*: 0.99 per epoch, where a training, and so each round's, counts as 300 epochs however many steps it has.
- Sums over voxels are means. Displacements are in voxels; images have mean 0 and standard deviation 1 inside.

Ours differs in: `eval` moves the atlas to every scan, as label propagation does (the paper registers test scans to two
of them); images and displacements sample with aligned corners; |J| is the true determinant (the published one mixes up
two axes).
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from stages.config import TrainSettings
from stages.generating.pseudo_labels import PseudoLabels
from stages.methods.networks import registration_network, segmentation_network
from stages.methods.phases import Phase, Player, Ramp, Term, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Recipe, Step, Task, Train
from stages.methods.settings import ANSWER, LATER_ROUNDS, SEGMENT, SEGMENT_IN_LATER_ROUNDS, AnswerSettings
from stages.parts.batches.labelled import labelled_scans
from stages.parts.batches.partly_labelled import any_pair, atlases_and_scans
from stages.parts.networks.obelisk import HybridObelisk
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.standardised import Standardised
from stages.parts.players.registering import mean_squares, smoothness
from stages.parts.players.segmenting import Segment, hardest_cross_entropy, overlap_and_cross_entropy, precise_overlap
from stages.parts.players.self_training import (
    RegisterPartlyLabelled,
    Teach,
    accepted_overlap,
    carried_overlap,
    uncertainty,
    weighted_cross_entropy,
)


class Settings(AnswerSettings):
    """Settings of `jrss`; a weight of 0 switches a term off, and what only that term needs is not computed."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "abdomen": {"threshold": 0.6},
        "official": {"slope": 0.025, "pretraining_loss": "hard-ce"},
        "paper": {},
        "light": {
            "rounds": 2,
            "round_share": 0.5,
            "round_pace": 0.3,  # networks go on, they do not start anew
            "with_atlas": 0.5,  # as all of R's pairs in `eval`
            "weigh_classes": False,  # the paper's weights make structures grow by round
            "dropout": 0.2,  # so short a round does not make up for the paper's 0.5
            "train_reg": {"steps": 1200, "learning_rate": 2e-3, "schedule": "one-cycle"},
            "train_seg": {"steps": 300, "learning_rate": 5e-3, "schedule": "one-cycle"},
        },
    }
    preset: Annotated[str, ANSWER] = Field(
        "paper",
        description="light: minutes on CPU cores; abdomen: the paper's threshold there; official: the published code's "
        "single-task networks.",
    )
    rounds: Annotated[int, ANSWER] = Field(
        3, ge=0, le=20, description="Of self-training, after the first training; 0: only that."
    )
    round_share: Annotated[float, LATER_ROUNDS] = Field(
        0.3333, gt=0, le=1, description="Steps of a round's train-reg and train-seg, in parts of those of round 0."
    )
    round_pace: Annotated[float, LATER_ROUNDS] = Field(
        1.0, gt=0, description="Learning rates of a round, in parts of those of round 0."
    )
    registration_network: Literal["obelisk", "voxelmorph", "brbs", "light"] = Field(
        "obelisk", description="R: hybrid OBELISK, or VoxelMorph's, BRBS's U-Net, or the light one."
    )
    segmentation_network: Annotated[Literal["obelisk", "brbs", "full", "light"], SEGMENT] = Field(
        "obelisk", description="S: hybrid OBELISK, or BRBS's U-Net (full: with InstanceNorm), or the light one."
    )
    slope: float = Field(0.2, ge=0, lt=1, description="Of LeakyReLU in the hybrid OBELISK networks.")
    diffeomorphic: bool = Field(False, description="R predicts a velocity field, which is integrated.")
    smoothness_weight: float = Field(0.025, ge=0, description="lambda_r, of R's diffusion.")
    smoothness_warm_up: int = Field(
        300, ge=0, description="Steps in which it falls to that from ten times as much; at most a fifth of round 0's."
    )
    overlap_weight: float = Field(0.1, ge=0, description="lambda_d of R: Dice of labels and accepted pseudo-labels.")
    with_atlas: float = Field(0.0, ge=0, le=1, description="Share of R's pairs that have an atlas; others: any two.")
    pretraining_loss: Annotated[Literal["dice", "hard-ce", "dice-ce"], SEGMENT] = Field(
        "dice", description="Of S on the atlases: Dice; cross-entropy on the hardest quarter of voxels; or Dice-CE."
    )
    threshold: Annotated[float, LATER_ROUNDS] = Field(
        0.7, ge=0, lt=1, description="tau: how sure of a voxel, and of a structure, S must be."
    )
    dropout: Annotated[float, SEGMENT_IN_LATER_ROUNDS] = Field(
        0.5, ge=0, lt=1, description="Share of channels that the student loses in two layers."
    )
    input_noise: Annotated[float, SEGMENT_IN_LATER_ROUNDS] = Field(
        0.5, ge=0, le=1, description="Share of the student's scans that R moves to other scans."
    )
    weigh_classes: Annotated[bool, SEGMENT_IN_LATER_ROUNDS] = Field(
        True, description="L_c weighs classes by the inverse square root of their frequency; off: all alike."
    )
    kl_weight: Annotated[float, SEGMENT_IN_LATER_ROUNDS] = Field(
        0.5, ge=0, description="lambda_u, of the student's distance from the teacher."
    )
    carried_weight: Annotated[float, SEGMENT_IN_LATER_ROUNDS] = Field(
        1.0, ge=0, description="lambda_d of the student: Dice with atlas labels moved by R."
    )
    decay: Annotated[float, SEGMENT_IN_LATER_ROUNDS] = Field(
        0.99, ge=0, lt=1, description="Of the student's moving average, the next teacher; 0: itself."
    )


def build(task: Task, settings: Settings) -> Recipe:
    R, S = registration(task, settings), segmentation(task, settings)
    teacher = deepcopy(S)
    loss = {"dice": precise_overlap, "hard-ce": hardest_cross_entropy, "dice-ce": overlap_and_cross_entropy}

    def register(smoothness_weight: float | Ramp, pace: float = 1.0) -> Player:
        terms: dict[str, Term] = {
            "similarity": (1.0, mean_squares),  # L_i
            "smoothness": (smoothness_weight, smoothness),  # lambda_r L_r
            "overlap": (settings.overlap_weight, accepted_overlap),  # lambda_d L_d; S stands still
        }
        loss = WeightedSum(**terms)
        return Player("registration", trains=R, forward=RegisterPartlyLabelled(R), loss=loss, paces=[(R, pace)])

    weight = settings.smoothness_weight
    warm_up = Ramp(10 * weight, weight, settings.smoothness_warm_up, most=0.2)
    pretrain = Player(
        "segmentation",
        trains=S,
        forward=Segment(S),
        loss=WeightedSum(overlap=(1.0, loss[settings.pretraining_loss])),
        weight_decay=1e-4,
    )
    student = Player(
        "student",
        trains=S,
        forward=Teach(
            S,
            teacher if settings.kl_weight else None,
            R,
            carries=bool(settings.carried_weight),
            dropout=settings.dropout,
        ),
        loss=WeightedSum(
            cross_entropy=(1.0, weighted_cross_entropy),  # L_c
            uncertainty=(settings.kl_weight, uncertainty),  # lambda_u L_u
            carried=(settings.carried_weight, carried_overlap),  # lambda_d L_d
        ),
        weight_decay=1e-4,
        ema=settings.decay,
        paces=[(S, settings.round_pace)],
    )
    any_two = partial(any_pair, with_atlas=settings.with_atlas)
    taught = partial(atlases_and_scans, moved=settings.input_noise, weigh_classes=settings.weigh_classes)
    again = register(settings.smoothness_weight, settings.round_pace)
    share = settings.round_share
    first: list[Step] = [
        Train("registration", [Phase("registration", any_two, [register(warm_up if weight else 0.0)])]),
        Train("segmentation", [Phase("atlases", labelled_scans, [pretrain])], uses=["registration"]),
    ]
    later: list[Step] = [
        Generate([PseudoLabels(settings.threshold)]),
        Train("registration", [Phase("registration", any_two, [again], share=share)], uses=["generated"]),
        Train(
            "segmentation",
            [Phase("student", taught, [student], share=share)],
            uses=["registration", "generated"],
            as_before={"segmentation": teacher},
        ),
    ]
    return Recipe(
        networks={"registration": R, "segmentation": S},
        rounds=[first, *[later] * settings.rounds],
        answer=Answer(network=S, registers=R, flat_borders=settings.flat_borders),
    )


def registration(task: Task, settings: Settings) -> RegistrationNetwork:
    """R, which sees images of mean 0 and standard deviation 1."""
    if settings.registration_network == "obelisk":
        with task.initialises("registration"):
            body: nn.Module = HybridObelisk(2, 3, task="registers", slope=settings.slope)
            return RegistrationNetwork(Standardised(body), diffeomorphic=settings.diffeomorphic)
    R = registration_network(settings.registration_network, task, diffeomorphic=settings.diffeomorphic)
    R.body = Standardised(R.body)
    return R


def segmentation(task: Task, settings: Settings) -> nn.Module:
    """S, likewise."""
    if settings.segmentation_network == "obelisk":
        with task.initialises("segmentation"):
            return Standardised(HybridObelisk(1, task.num_classes, task="segments", slope=settings.slope))
    return Standardised(segmentation_network(settings.segmentation_network, task))


def training(steps: int, rate: float, augmentation: Literal["affine", "half-affine"]) -> TrainSettings:
    return TrainSettings(
        steps=steps, batch_size=2, learning_rate=rate, schedule="exponential", epochs=300, optimizer="adam",
        ema=0.0, augmentation=augmentation,
    )  # fmt: skip


def train_reg(settings: Settings) -> TrainSettings:
    return training(21_000, 4e-4, "half-affine")  # 5 epochs for each of S's


def train_seg(settings: Settings) -> TrainSettings:
    return training(4200, 1e-3, "affine")  # 300 epochs of the 28 scans of LPBA40


METHOD = Method(
    name="jrss",
    summary="self-training in rounds: R learns from screened pseudo-labels, a student from R and its teacher",
    source="Shi et al., BSPC 2023",
    settings=Settings,
    recipe=build,
    train_reg=train_reg,
    train_seg=train_seg,
)
