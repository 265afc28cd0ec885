"""VoxelMorph: learned registration of atlas and scan; the atlas's label follows. `lc-`: also from labels.

Balakrishnan et al., "VoxelMorph: A Learning Framework for Deformable Medical Image Registration", TMI 2019. The
label-constrained method has their auxiliary loss (section III-C): atlases are registered to each other, too, and their
labels must agree. Every step has as many pairs of atlases as of atlas and scan; the paper names no proportion.

`probabilistic` is Dalca, Balakrishnan, Guttag, Sabuncu, "Unsupervised learning of probabilistic diffeomorphic
registration for images and surfaces", MedIA 2019: R predicts a Gaussian of velocity fields at half resolution. Training
integrates a sample of it, and answers integrate its mean. The loss is the negative variational bound:

    MSE / (2 sigma^2) + KL(N(mean, variance) || N(0, (lambda (D - A))^-1))

Readings: both terms are means over voxels, the KL over those of the half grid (so the published code). lambda = 10 and
sigma = 0.02 are what the published training script recommends. Ours differs from that code in: MSE is halved as in the
paper; the prior's quadratic term is exact, see `velocity_kl_loss`; the U-Net pools and does not stride.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import TrainSettings
from stages.errors import LrlsError
from stages.methods.networks import registration_network
from stages.methods.phases import Phase, Player, Terms, WeightedSum
from stages.methods.recipe import Method, Recipe, Task, registration_alone
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import published_training, short_training
from stages.parts.batches.pairs import atlas_and_scan, scans_and_labelled_pairs
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.velocity import VelocityDistribution
from stages.parts.players.registering import RegisterLabelledPairs, RegisterPair, label_overlap
from stages.parts.players.velocity import RegisterBySample, divergence


class Settings(RegistrationSettings):
    """Settings of `voxelmorph`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {"registration_network": "light"},
        "paper": {"diffeomorphic": False, "train_reg": {"steps": 150_000}},
    }

    registration_network: Literal["voxelmorph", "voxelmorph-1", "brbs", "light"] = Field(
        "voxelmorph",
        description="R: VoxelMorph's own (published variant 2, or 1 with half as many channels at full resolution), "
        "BRBS's U-Net, or the light one.",
    )
    diffeomorphic: bool = Field(True, description="R predicts a velocity field: 7 steps at half resolution.")
    smoothness_weight: float = Field(1.0, ge=0, description="lambda, weight of L_smooth.")
    probabilistic: bool = Field(
        False,
        description="R predicts a Gaussian of velocity fields. Unless they are given, similarity is then mse, and "
        "smoothness_weight 0: the prior takes its place.",
    )
    image_sigma: float = Field(
        0.02, gt=0, description="sigma, noise of the images where probabilistic and mse: L_sim counts 1 / (2 sigma^2)."
    )
    prior_lambda: float = Field(10.0, gt=0, description="lambda of the prior where probabilistic; larger: smoother.")
    kl_weight: float = Field(
        1.0, ge=0, description="Weight of the KL term where probabilistic; 1 goes with mse, about 0.01 with lncc or mi."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_where_probabilistic(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("probabilistic") is not True:
            return values
        return {"diffeomorphic": True, "similarity": "mse", "smoothness_weight": 0.0, **values}

    @model_validator(mode="after")
    def _probabilistic_is_diffeomorphic(self) -> Self:
        if self.probabilistic and not self.diffeomorphic:
            raise ValueError("probabilistic needs a velocity field, but diffeomorphic is off; leave it out")
        return self


class LabelConstrainedSettings(Settings):
    """Settings of `lc-voxelmorph`."""

    overlap_weight: float = Field(1.0, gt=0, description="gamma, weight of the labelled pairs' Dice.")


def network(task: Task, settings: Settings) -> RegistrationNetwork:
    return registration_network(
        settings.registration_network,
        task,
        diffeomorphic=settings.diffeomorphic,
        probabilistic=settings.probabilistic,
    )


def terms(settings: Settings) -> Terms:
    """L_sim and L_smooth, or the two terms of the variational bound."""
    if not settings.probabilistic:
        return registration_terms(settings)
    precision = 1 / (2 * settings.image_sigma**2) if settings.similarity == "mse" else 1.0
    return {
        **registration_terms(settings, similarity_weight=precision),  # - log p(fixed | velocity, moving)
        "divergence": (settings.kl_weight, divergence(settings.prior_lambda)),  # KL
    }


def build(task: Task, settings: Settings) -> Recipe:
    R = network(task, settings)
    register = Player(
        "registration",
        trains=R,
        forward=RegisterBySample(R) if isinstance(R, VelocityDistribution) else RegisterPair(R),
        loss=WeightedSum(**terms(settings)),
    )
    return registration_alone(R, Phase("registration", batches=atlas_and_scan, players=[register]))


def build_label_constrained(task: Task, settings: LabelConstrainedSettings) -> Recipe:
    if task.num_atlases < 2:
        raise LrlsError(
            f"data.atlases: found {task.num_atlases}, expected at least 2, because lc-voxelmorph learns from pairs of "
            "labelled scans; list more atlases, or use voxelmorph."
        )
    R = network(task, settings)
    register = Player(
        "registration",
        trains=R,
        forward=RegisterBySample(R) if isinstance(R, VelocityDistribution) else RegisterLabelledPairs(R),
        loss=WeightedSum(**terms(settings), overlap=(settings.overlap_weight, label_overlap)),
    )
    return registration_alone(R, Phase("registration", batches=scans_and_labelled_pairs, players=[register]))


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(1000, learning_rate=1e-3)
    return published_training(30_000, augmentation="none")


METHOD = Method(
    name="voxelmorph",
    summary="learned registration, label propagation",
    source="Balakrishnan et al., TMI 2019",
    settings=Settings,
    recipe=build,
    channels=True,
    train_reg=train_reg,
)
LABEL_CONSTRAINED = Method(
    name="lc-voxelmorph",
    summary="voxelmorph that also learns from pairs of atlases and their labels; two atlases or more",
    source="Balakrishnan et al., TMI 2019",
    settings=LabelConstrainedSettings,
    recipe=build_label_constrained,
    channels=True,
    train_reg=train_reg,
)
