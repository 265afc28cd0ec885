"""DeepRS: registration and segmentation complement each other, and a discriminator says where labels can be trusted.

He, Li, Yang, Kong, Chen, Shu, Coatrieux, Dillenseger, Li, "Deep Complementary Joint Model for Complex Scene
Registration and Few-shot Segmentation on Medical Images", ECCV 2020, arXiv:2008.00710. No code was found, and the text
was not at hand; the equations are those that a reader's notes quote. See docs/methods/deep-rs.md.

In every step R, S and D move in turn, on an atlas x_m and an unlabelled scan x_f:
- DSS: phi of R takes a random degree alpha ~ U(0, 1), so that warped atlases stay diverse when R has converged.
- ACM: S learns from warped atlases, and from the scan by the warped label, each voxel as far as D finds it aligned.
- DRC: R also learns that S answers alike for the warped atlas and for the scan.
- D tells the warped atlas from the scan with a little of the atlas in it; R learns to be taken for aligned.

Readings, where nothing was at hand:
- *Degrees of R's own losses*: the notes have alpha in L_drc. R would then learn to overshoot: E(alpha phi - u)^2 is
  least at 1.5 u. `default`: R's losses compare whole displacements; `paper`: as the notes have it.
- *Weights* of the terms, beta, steps and D's widths are ours.

Ours differs: S is a U-Net of ours, and R VoxelMorph's; LNCC and diffusion are those of the other methods.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.config import TrainSettings
from stages.generating.path_bank import PathBank
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, registration_network, segmentation_network
from stages.methods.phases import Phase, Player, Ramp, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Recipe, Task, Train
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import published_training, short_training
from stages.methods.settings import ANSWER, AnswerSettings
from stages.parts.batches.pairs import atlas_and_scan
from stages.parts.batches.space_style import Always, Beta, Degree
from stages.parts.networks.discriminators import AlignmentDiscriminator
from stages.parts.players.aligned import (
    JudgeAlignment,
    RegisterAndAsk,
    SegmentAligned,
    aligned,
    convincing,
    misaligned,
    region_constraint,
    trusted_cross_entropy,
    warped_cross_entropy,
    warped_overlap_and_cross_entropy,
)


class Settings(AnswerSettings, RegistrationSettings):
    """Settings of `deep-rs`; a weight of 0 switches off a term and all that only this term needs."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"perturb_registration": True},
        "light": {
            "registration_network": "light", "segmentation_network": "light", "segmentation_loss": "dice-ce",
            "segmentation_learning_rate": 3e-3,
            "warm_up": 0.5,  # untrained networks have nothing to tell one another
            "train_reg": {"steps": 900},
        },
    }  # fmt: skip
    preset: Annotated[str, ANSWER] = Field(
        "default", description="paper: alpha in R's losses, too; light: minutes on CPU cores."
    )

    registration_network: Literal["voxelmorph", "brbs", "light"] = Field(
        "voxelmorph", description="R: VoxelMorph's, BRBS's U-Net, or the light one."
    )
    segmentation_network: SegmentationName = Field("brbs", description=f"S: {SEGMENTATION_NAMES}")
    diffeomorphic: bool = Field(False, description="R predicts a velocity field, which is integrated.")
    perturb: bool = Field(True, description="DSS: displacements have a random degree alpha; off: always 1.")
    perturb_registration: bool = Field(
        False, description="R's own losses, too, compare images under alpha times the displacement."
    )
    confidence: bool = Field(True, description="ACM: D weighs L_acm voxel by voxel; off: all voxels alike.")
    similarity_weight: float = Field(1.0, ge=0, description="lambda_cc, weight of L_sim.")
    smoothness_weight: float = Field(1.0, ge=0, description="lambda_R, weight of L_smooth.")
    adversarial_weight: float = Field(0.05, ge=0, description="lambda_adv, weight of L_adv: D takes R's for aligned.")
    region_weight: float = Field(
        10.0, ge=0, description="lambda_drc, weight of L_drc: S answers alike for warped atlas and scan."
    )
    warped_weight: float = Field(1.0, gt=0, description="lambda_ce, weight of S's loss on warped atlases.")
    confident_weight: float = Field(
        0.5, ge=0, description="lambda_acm, weight of S's loss on scans by the warped labels."
    )
    segmentation_loss: Literal["ce", "dice-ce"] = Field(
        "ce", description="L_ce: cross-entropy on warped atlases, or Dice with it."
    )
    reference_share: float = Field(
        0.2, ge=0, lt=1, description="beta, share of the atlas in the image that D learns to take for aligned."
    )
    warm_up: float = Field(
        0.0, ge=0, lt=1, description="Share of the steps in which lambda_adv, lambda_drc and lambda_acm rise from 0."
    )
    segmentation_learning_rate: float | None = Field(None, gt=0, description="Learning rate of S; default: R's.")


def build(task: Task, settings: Settings) -> Recipe:
    R = registration_network(settings.registration_network, task, diffeomorphic=settings.diffeomorphic)
    S = segmentation_network(settings.segmentation_network, task)
    trusts = settings.confidence and settings.confident_weight > 0
    with task.initialises("discriminator"):
        judges = trusts or settings.adversarial_weight > 0
        D = AlignmentDiscriminator(2 * task.channels, task.shape) if judges else None
    alpha: Degree = Beta(1.0) if settings.perturb else Always(1.0)  # Beta(1, 1) is U(0, 1)

    def rising(weight: float) -> float | Ramp:
        return Ramp(0.0, weight, most=settings.warm_up) if weight and settings.warm_up else weight

    register = Player(
        "registration",
        trains=R,
        forward=RegisterAndAsk(
            R,
            S if settings.region_weight else None,
            D if settings.adversarial_weight else None,
            alpha if settings.perturb_registration else Always(1.0),
        ),
        loss=WeightedSum(
            **registration_terms(settings, similarity_weight=settings.similarity_weight),  # L_cc, lambda_R L_R
            adversarial=(rising(settings.adversarial_weight), convincing),  # lambda_adv L_adv
            regions=(rising(settings.region_weight), region_constraint),  # lambda_drc L_drc
        ),
    )
    on_warped = warped_cross_entropy if settings.segmentation_loss == "ce" else warped_overlap_and_cross_entropy
    segment = Player(
        "segmentation",
        trains=S,
        forward=SegmentAligned(S, R, D if trusts else None, alpha, scans=settings.confident_weight > 0),
        loss=WeightedSum(
            warped=(settings.warped_weight, on_warped),  # lambda_ce L_ce
            confident=(rising(settings.confident_weight), trusted_cross_entropy),  # lambda_acm L_acm
        ),
        learning_rate=settings.segmentation_learning_rate,
    )
    players = [register, segment]
    if D is not None:
        players.append(
            Player(
                "discriminator",
                trains=D,
                forward=JudgeAlignment(R, D, alpha, settings.reference_share),
                loss=WeightedSum(aligned=(1.0, aligned), misaligned=(1.0, misaligned)),  # L_D
                learning_rate=2e-4,  # even in short trainings, as that of lt-net
            )
        )
    return Recipe(
        networks={"registration": R, "segmentation": S} | ({} if D is None else {"discriminator": D}),
        rounds=[
            [
                Train("registration", [Phase("together", batches=atlas_and_scan, players=players)]),
                Generate([PathBank(space=alpha, style=None)]),
                Train("segmentation", uses=["registration"]),
            ]
        ],
        answer=Answer(network=S, registers=R, flat_borders=settings.flat_borders),
    )


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(1000, learning_rate=1e-3)
    return published_training(40_000, augmentation="rotate-scale")


METHOD = Method(
    name="deep-rs",
    summary="registration and segmentation together; a discriminator says where warped labels can be trusted",
    source="He et al., ECCV 2020",
    settings=Settings,
    recipe=build,
    channels=True,
    train_reg=train_reg,
)
