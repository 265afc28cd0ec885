"""JRSS: joint registration and segmentation self-training.

Shi, Lu, Yin, Zhong, Yang, "Joint few-shot registration and segmentation self-training of 3D medical images",
Biomedical Signal Processing and Control 80 (2023), doi:10.1016/j.bspc.2022.104294. The published code has the
single-task networks, not the self-training.

Round 0 trains R, and S on the atlases. In each later round, S labels the unlabelled scans as the teacher, and uncertain
labels are screened out. R goes on with these labels. A student goes on from the teacher's weights, with R's help. Its
moving average is the next teacher, and in the end the answer.

Readings, where the text leaves a choice (it gives no numbers of epochs):
- *Screening*: see `screen`. L_c sees trusted voxels of accepted classes alone, R's Dice accepted classes. A scan
  without an accepted structure stays unlabelled: a certain background is no label.
- *Missing classes* (ours, not in `paper`): what the teacher never predicts it labels as its neighbours, and is sure of
  it. L_c leaves out the voxels where the carried atlas label has a class that was not accepted.
- *Student*: half of a batch are atlases, half are scans with pseudo-labels. In L_d the atlas moves, so that
  "lambda_d = 1 if labeled" always holds. "A new student" starts from the teacher's weights ("we use the pre-trained
  nets to initialize"). Teacher and student see the same image, moved and recoloured (the paper does not recolour). P_t
  is computed on that image and never stored.
- *Deformation as noise*: R moves half of the scans (`input_noise`) and their pseudo-labels towards another scan. The
  paper does not say how often.
- *Dropout* acts on the last encoder layer and on the last upsampled one, in the student alone. BatchNorm's running
  statistics, which the teacher inherits, are taken without it.
- *Warm-up*: lambda_r starts ten times as high and falls linearly over R's first 300 steps (in short trainings over a
  fifth of them, which is ours). Later rounds have no warm-up. `official`: five times, constant, 100 steps.
- *Average*: decay 0.99 from the teacher on, as in the published code, so that a short round's teacher is still partly
  the old one.
- *Initialisation*: Xavier for S; torch's for R, with a head near 0.
- *Schedule*: 0.99 per epoch "throughout": it goes on over rounds. Round 0 counts as 300 epochs, whatever its number of
  steps, and a later round as its share of that. With `schedule_over_rounds: false` each round is 300 epochs of its own.
- *Augmentation*: the two images of R's pairs move each its own way, or both stand still (published code).
- Sums over voxels are means. Displacements are in voxels; images have mean 0 and standard deviation 1 inside.

Ours differs: `eval` moves the atlas to every scan, as label propagation does (the paper registers test scans to two of
them). Images and displacements sample with aligned corners. |J| is the true determinant (the published code mixes up
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
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, registration_network, segmentation_network
from stages.methods.phases import Phase, Player, Ramp, Term, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Recipe, Step, Task, Train
from stages.methods.registration_losses import SIMILARITY, RegistrationSettings, Similarity, registration_terms
from stages.methods.settings import ANSWER, LATER_ROUNDS, SEGMENT, SEGMENT_IN_LATER_ROUNDS, AnswerSettings
from stages.parts.batches.labelled import labelled_scans
from stages.parts.batches.partly_labelled import any_pair, atlases_and_scans
from stages.parts.batches.pseudo_labels import Screening
from stages.parts.networks.obelisk import HybridObelisk
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.standardised import Standardised
from stages.parts.players.segmenting import Segment, hardest_cross_entropy, overlap_and_cross_entropy, precise_overlap
from stages.parts.players.self_training import (
    RegisterPartlyLabelled,
    Teach,
    accepted_overlap,
    carried_overlap,
    uncertainty,
    weighted_cross_entropy,
)


class Settings(AnswerSettings, RegistrationSettings):
    """Settings of `jrss`; a weight of 0 switches off a term and all that only this term needs."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "abdomen": {"threshold": 0.6},
        "mono": {"rounds": 0},
        "official": {
            "slope": 0.025,
            "pretraining_loss": "hard-ce",
            "weight_decay": 1e-5,
            "registration_weight_decay": 1e-5,
            "warm_up_factor": 5.0,
            "warm_up_falls": False,
            "smoothness_warm_up": 100,
            "spare_missing": False,
        },
        "paper": {"spare_missing": False},
        "light": {
            "rounds": 2,
            "round_share": 0.5,
            "round_pace": 0.3,  # networks go on, they do not start anew
            "with_atlas": 0.5,  # in `eval` all of R's pairs have one
            "weigh_classes": False,  # the paper's weights make structures grow by round
            "dropout": 0.2,  # a short round cannot make up for the paper's 0.5
            "schedule_over_rounds": False,  # every round has a cycle of its own
            "train_reg": {"steps": 1200, "learning_rate": 2e-3, "schedule": "one-cycle"},
            "train_seg": {"steps": 300, "learning_rate": 5e-3, "schedule": "one-cycle"},
        },
    }
    preset: Annotated[str, ANSWER] = Field(
        "default",
        description="paper: the text alone; light: minutes on CPU cores; abdomen: the paper's threshold for it; "
        "official: the published code's single-task networks; mono: Mono-Seg and Mono-Reg, each network alone.",
    )
    rounds: Annotated[int, ANSWER] = Field(
        3, ge=0, le=20, description="Rounds of self-training after the first training; 0: none."
    )
    round_share: Annotated[float, LATER_ROUNDS] = Field(
        0.3333, gt=0, le=1, description="Steps of a later round's train-reg and train-seg, as a share of round 0's."
    )
    round_pace: Annotated[float, LATER_ROUNDS] = Field(
        1.0, gt=0, description="Learning rates of a later round, as a multiple of round 0's."
    )
    schedule_over_rounds: Annotated[bool, LATER_ROUNDS] = Field(
        True, description="An exponential schedule goes on from round to round; off: it starts anew in each."
    )
    registration_network: Literal["obelisk", "voxelmorph", "brbs", "light"] = Field(
        "obelisk", description="R: hybrid OBELISK, or VoxelMorph's, BRBS's U-Net, or the light one."
    )
    segmentation_network: Annotated[Literal["obelisk"] | SegmentationName, SEGMENT] = Field(
        "obelisk", description=f"S: obelisk (hybrid OBELISK), {SEGMENTATION_NAMES}"
    )
    slope: float = Field(0.2, ge=0, lt=1, description="Slope of LeakyReLU in the hybrid OBELISK networks.")
    diffeomorphic: bool = Field(False, description="R predicts a velocity field, which is integrated.")
    similarity: Similarity = Field("mse", description=SIMILARITY)
    smoothness_weight: float = Field(0.025, ge=0, description="lambda_r, weight of R's smoothness.")
    smoothness_warm_up: int = Field(
        300, ge=0, description="Steps in which lambda_r is higher; at most a fifth of round 0's."
    )
    warm_up_factor: float = Field(10.0, ge=1, description="How much higher lambda_r is at first.")
    warm_up_falls: bool = Field(True, description="lambda_r falls linearly in these steps; off: it is constant.")
    registration_weight_decay: float = Field(0.0, ge=0, description="L2 penalty of Adam for R.")
    overlap_weight: float = Field(
        0.1, ge=0, description="lambda_d of R, weight of the Dice of labels and accepted pseudo-labels."
    )
    with_atlas: float = Field(
        0.0, ge=0, le=1, description="Share of R's pairs with an atlas; the others are any two scans."
    )
    augment_apart: bool = Field(
        True, description="Augmentation moves the two images of R's pairs each its own way; off: both alike."
    )
    pretraining_loss: Annotated[Literal["dice", "hard-ce", "dice-ce"], SEGMENT] = Field(
        "dice",
        description="Loss of S on the atlases: Dice; weighted cross-entropy on the hardest quarter of voxels; or "
        "Dice-CE.",
    )
    weight_decay: Annotated[float, SEGMENT] = Field(1e-4, ge=0, description="L2 penalty of Adam for S.")
    threshold: Annotated[float, LATER_ROUNDS] = Field(
        0.7, ge=0, lt=1, description="tau: a voxel, or a structure, counts where S is surer than this."
    )
    screening: Annotated[Screening, LATER_ROUNDS] = Field(
        "mean", description="What must exceed tau for a structure: its mean or its largest probability in a scan."
    )
    spare_missing: Annotated[bool, SEGMENT_IN_LATER_ROUNDS] = Field(
        True,
        description="L_c leaves out voxels where the carried atlas label has a class without accepted pseudo-label.",
    )
    dropout: Annotated[float, SEGMENT_IN_LATER_ROUNDS] = Field(
        0.5, ge=0, lt=1, description="Share of channels that are dropped in two layers of the student."
    )
    input_noise: Annotated[float, SEGMENT_IN_LATER_ROUNDS] = Field(
        0.5, ge=0, le=1, description="Share of the student's scans that R moves to other scans."
    )
    weigh_classes: Annotated[bool, SEGMENT_IN_LATER_ROUNDS] = Field(
        True, description="L_c weighs classes by the inverse square root of their frequency; off: all equally."
    )
    kl_weight: Annotated[float, SEGMENT_IN_LATER_ROUNDS] = Field(
        0.5, ge=0, description="lambda_u, weight of the student's distance from the teacher."
    )
    carried_weight: Annotated[float, SEGMENT_IN_LATER_ROUNDS] = Field(
        1.0, ge=0, description="lambda_d of the student, weight of the Dice with atlas labels moved by R."
    )
    decay: Annotated[float, SEGMENT_IN_LATER_ROUNDS] = Field(
        0.99, ge=0, lt=1, description="Decay of the student's moving average, the next teacher; 0: no average."
    )
    decay_warm_up: Annotated[bool, SEGMENT_IN_LATER_ROUNDS] = Field(
        False, description="The average forgets early weights faster: after n steps its decay is at most n / (n + 9)."
    )


def build(task: Task, settings: Settings) -> Recipe:
    R, S = registration(task, settings), segmentation(task, settings)
    teacher = deepcopy(S)
    loss = {"dice": precise_overlap, "hard-ce": hardest_cross_entropy, "dice-ce": overlap_and_cross_entropy}

    def register(smoothness_weight: float | Ramp, pace: float = 1.0) -> Player:
        terms: dict[str, Term] = {
            **registration_terms(settings, smoothness_weight=smoothness_weight),  # L_i, lambda_r L_r
            "overlap": (settings.overlap_weight, accepted_overlap),  # lambda_d L_d; S stands still
        }
        loss = WeightedSum(**terms)
        return Player(
            "registration",
            trains=R,
            forward=RegisterPartlyLabelled(R, standardised=settings.similarity == "mse"),
            loss=loss,
            paces=[(R, pace)],
            weight_decay=settings.registration_weight_decay,
        )

    weight, higher = settings.smoothness_weight, settings.warm_up_factor * settings.smoothness_weight
    warm_up = Ramp(higher, weight, settings.smoothness_warm_up, most=0.2, jumps=not settings.warm_up_falls)
    pretrain = Player(
        "segmentation",
        trains=S,
        forward=Segment(S),
        loss=WeightedSum(overlap=(1.0, loss[settings.pretraining_loss])),
        weight_decay=settings.weight_decay,
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
            spares_missing=settings.spare_missing,
        ),
        loss=WeightedSum(
            cross_entropy=(1.0, weighted_cross_entropy),  # L_c
            uncertainty=(settings.kl_weight, uncertainty),  # lambda_u L_u
            carried=(settings.carried_weight, carried_overlap),  # lambda_d L_d
        ),
        weight_decay=settings.weight_decay,
        ema=settings.decay,
        ema_warms_up=settings.decay_warm_up,
        paces=[(S, settings.round_pace)],
    )
    any_two = partial(any_pair, with_atlas=settings.with_atlas, apart=settings.augment_apart)
    atlases = partial(labelled_scans, weigh_classes=settings.pretraining_loss == "hard-ce")
    taught = partial(atlases_and_scans, moved=settings.input_noise, weigh_classes=settings.weigh_classes)
    again = register(settings.smoothness_weight, settings.round_pace)
    share = settings.round_share
    first: list[Step] = [
        Train("registration", [Phase("registration", any_two, [register(warm_up if weight else 0.0)])]),
        Train("segmentation", [Phase("atlases", atlases, [pretrain])], uses=["registration"]),
    ]

    def later(number: int) -> list[Step]:
        before = 1 + (number - 1) * share
        schedule = (before, before + share) if settings.schedule_over_rounds else (0.0, 1.0)
        return [
            Generate([PseudoLabels(settings.threshold, settings.screening)]),
            Train(
                "registration", [Phase("registration", any_two, [again], share, schedule=schedule)], uses=["generated"]
            ),
            Train(
                "segmentation",
                [Phase("student", taught, [student], share, schedule=schedule)],
                uses=["registration", "generated"],
                as_before={"segmentation": teacher},
            ),
        ]

    return Recipe(
        networks={"registration": R, "segmentation": S},
        rounds=[first, *(later(number) for number in range(1, settings.rounds + 1))],
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
    """S, which sees images of mean 0 and standard deviation 1."""
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
