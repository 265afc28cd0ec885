"""BRBS: better registration, better segmentation.

He et al., "Learning Better Registration to Learn Better Few-Shot Medical Image Segmentation: Authenticity,
Diversity, and Robustness", TNNLS 2022, doi:10.1109/TNNLS.2022.3190452.

Ours differs from the published code: displacements sample with aligned corners, so that a zero field is the
identity; `default` measures inverse consistency by composition and sums both ways (which doubles L_I's weight beside
the one way of Eq. 2), where Eq. 2 warps the inverse field by itself;
MMR mixes aligned pairs; segmentation goes on after registration with the finished path bank. The presets
`paper` (the text) and `official` (the published code) have the other readings.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.config import TrainSettings
from stages.generating.path_bank import PathBank
from stages.methods.brbs_pages import show_features, show_mixing
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, registration_network, segmentation_network
from stages.methods.phases import Phase, Player, Terms, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Page, Recipe, Task, Train, segmentation_alone
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import full_or_light_rate, published_training, short_training
from stages.methods.settings import ANSWER, AnswerSettings
from stages.parts.batches.pairs import atlas_and_two_unlabeled
from stages.parts.batches.space_style import Always, Beta, Degree, SpaceStyleSampling
from stages.parts.players.registering import (
    RegisterTriplet,
    inverse_consistency,
    self_warped_inverse,
    semantic_consistency,
)
from stages.parts.players.segmenting import (
    GenerateAndSegment,
    Segment,
    SegmentAtlas,
    mixing,
    mixing_of_logits,
    overlap,
    overlap_and_cross_entropy,
)


class Settings(AnswerSettings, RegistrationSettings):
    """Settings of `brbs`; the switches are the rows of the paper's Table III."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {
            "registration_network": "light",
            "segmentation_network": "light",
            "segmentation_loss": "dice-ce",
            "augment_pairs": False,
            "warm_up": 0.5,  # R learns from the images alone until S has learned enough to help
            "helper_learning_rate": 3e-3,
            "train_reg": {"steps": 800},
            "train_seg": {"steps": 1000},
        },
        "paper": {
            "inverse": "self-warped",
            "atlas_label": False,
            "mix_any_pair": True,
            "helper_is_final": True,
        },
        "official": {"inverse": "self-warped", "mix_on": "logits", "mix_weight": 0.01, "helper_is_final": True},
    }

    preset: Annotated[str, ANSWER] = Field(
        "default", description="light: minutes on CPU cores; paper: the text; official: the published code."
    )
    registration_network: Literal["brbs", "light"] = Field("brbs", description="R: the paper's, or the light one.")
    segmentation_network: SegmentationName = Field("brbs", description=f"S: {SEGMENTATION_NAMES}")
    diffeomorphic: bool = Field(False, description="R predicts a velocity field, which is integrated.")
    bic: bool = Field(True, description="Bidirectional consistency: both directions and L_I.")
    sec: bool = Field(True, description="Semantic consistency: warped class maps agree.")
    space: bool = Field(True, description="S3P samples the degree of deformation; off: always 1.")
    style: bool = Field(True, description="S3P samples the degree of style; off: always 0.")
    mmr: bool = Field(True, description="Mix misalignment regularisation.")
    smoothness_weight: float = Field(1.0, ge=0, description="lambda_0, weight of L_smooth.")
    inverse_weight: float = Field(0.1, ge=0, description="lambda_1, weight of L_I.")
    semantic_weight: float = Field(100.0, ge=0, description="lambda_2, weight of L_SeC.")
    mix_weight: float = Field(0.1, ge=0, description="omega_0, weight of L_mix.")
    inverse: Literal["composed", "self-warped"] = Field(
        "composed", description="How L_I inverts a field; composed is summed over both ways, self-warped is one way."
    )
    atlas_label: bool = Field(True, description="SeC uses the atlas's ground truth; off: S's answers for both images.")
    semantic_classes: int | None = Field(
        None, ge=1, description="SeC uses this many classes, drawn anew in each step: cheaper, without bias."
    )
    mix_on: Literal["probabilities", "logits"] = Field("probabilities", description="What L_mix compares.")
    mix_any_pair: bool = Field(
        False, description="Mix any two training images, atlases and scans alike, instead of aligned ones."
    )
    helper_is_final: bool = Field(
        False, description="S is what was trained beside R; off: train-seg trains it further."
    )
    segmentation_loss: Literal["dice", "dice-ce"] = Field(
        "dice", description="L_seg: Dice, or Dice with cross-entropy."
    )
    augment_pairs: bool = Field(
        True, description="Augmentation also moves R's images; off: only S's, and R learns sooner."
    )
    warm_up: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of train-reg in which R learns without SeC, and S from the augmented atlases (short runs).",
    )
    helper_learning_rate: float | None = Field(None, gt=0, description="Learning rate of S in train-reg; default: R's.")


def build(task: Task, settings: Settings) -> Recipe:
    R = registration_network(settings.registration_network, task, diffeomorphic=settings.diffeomorphic)
    S = segmentation_network(settings.segmentation_network, task)
    alpha: Degree = Beta(0.3) if settings.space else Always(1.0)
    beta: Degree = Beta(0.3) if settings.style else Always(0.0)
    s3p = SpaceStyleSampling(
        space=alpha, style=beta, mixing=Beta(0.3) if settings.mmr else None, any_pair=settings.mix_any_pair
    )
    segmentation_loss = WeightedSum(
        overlap=(1.0, overlap if settings.segmentation_loss == "dice" else overlap_and_cross_entropy),  # L_seg
        mixing=(  # omega_0 L_mix
            settings.mix_weight * settings.mmr,
            mixing if settings.mix_on == "probabilities" else mixing_of_logits,
        ),
    )
    if not task.num_unlabeled:
        loss = WeightedSum(overlap=segmentation_loss.terms["overlap"])
        return segmentation_alone(S, loss, Answer(network=S, flat_borders=settings.flat_borders))
    bidirectional: Terms = {
        **registration_terms(settings),  # L_sim, lambda_0 L_smooth
        "inverse_consistency": (  # lambda_1 L_I
            settings.inverse_weight * settings.bic,
            inverse_consistency if settings.inverse == "composed" else self_warped_inverse,
        ),
    }
    register = partial(RegisterTriplet, R, both_ways=settings.bic, atlas_label=settings.atlas_label)
    helper = partial(Player, "helper", trains=S, learning_rate=settings.helper_learning_rate)
    batches = partial(atlas_and_two_unlabeled, move=settings.augment_pairs)
    mixes_any = settings.mmr and settings.mix_any_pair
    # In a short run an untrained S misleads R more than the images guide it; the paper's long runs recover.
    warm_up = Phase(
        "warm-up",
        batches=batches,
        share=settings.warm_up,
        players=[
            Player("registration", trains=R, forward=register(None), loss=WeightedSum(**bidirectional)),
            helper(forward=SegmentAtlas(S), loss=WeightedSum(overlap=segmentation_loss.terms["overlap"])),
        ],
    )
    kcc = Phase(
        "kcc",
        batches=partial(batches, others=mixes_any),
        share=1 - settings.warm_up,
        players=[
            Player(
                "registration",
                trains=R,
                forward=register(
                    S if settings.sec and settings.semantic_weight else None, num_chosen=settings.semantic_classes
                ),
                loss=WeightedSum(
                    **bidirectional,
                    semantic_consistency=(settings.semantic_weight * settings.sec, semantic_consistency),  # lambda_2
                ),
            ),
            helper(forward=GenerateAndSegment(R, s3p, S), loss=segmentation_loss),
        ],
    )
    pages: dict[str, Page] = {"features": partial(show_features, R, S, s3p), "mixing": partial(show_mixing, R, S)}
    learn = Train(
        "segmentation",
        [
            Phase(
                "s3p",
                batches=s3p.from_bank,
                players=[Player("segmentation", trains=S, forward=Segment(S), loss=segmentation_loss)],
            )
        ],
        uses=["registration", "generated"],
        pages=pages,
    )
    return Recipe(
        networks={"registration": R, "segmentation": S},
        rounds=[
            [
                Train(
                    "registration",
                    [warm_up, kcc] if settings.warm_up else [kcc],
                    pages=pages if settings.helper_is_final else {},
                ),
                Generate([PathBank(space=alpha, style=beta)]),
                Train("segmentation", uses=["registration"]) if settings.helper_is_final else learn,
            ]
        ],
        answer=Answer(network=S, registers=R, flat_borders=settings.flat_borders),
    )


def train_reg(settings: Settings) -> TrainSettings:
    if "brbs" not in (settings.registration_network, settings.segmentation_network):
        return short_training(1000, learning_rate=1e-3)
    return published_training(40_000, augmentation="rotate-scale")  # 200 epochs of 200


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network == "brbs":
        return published_training(10_000, augmentation="rotate-scale")
    return short_training(1000, learning_rate=full_or_light_rate(settings.segmentation_network))


METHOD = Method(
    name="brbs",
    summary="few-shot segmentation from learned registration: KCC, S3P and MMR",
    source="He et al., TNNLS 2022",
    settings=Settings,
    recipe=build,
    channels=True,
    train_reg=train_reg,
    train_seg=train_seg,
)
