"""CLMorph: learned registration with a contrastive encoder; the atlas's label follows.

Liu, Avilés-Rivero, Schönlieb, "Contrastive Registration for Unsupervised Medical Image Segmentation", TNNLS 2023
(code github.com/lihaoliu-cambridge/unsupervised-medical-image-segmentation).

Ours differs: the displacement is predicted, not sampled. (The published one is VoxelMorph's probabilistic model, with a
KL term instead of smoothness.) So smoothness has the weight that goes with plain MSE. The scans of a batch differ,
because a scan that came twice would be its own negative.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.config import TrainSettings
from stages.methods.phases import Phase, Player, WeightedSum
from stages.methods.recipe import Method, Recipe, Task, registration_alone
from stages.methods.registration_losses import SIMILARITY, RegistrationSettings, Similarity, registration_terms
from stages.methods.schedules import joint_training, short_training
from stages.parts.batches.pairs import atlas_and_different_scans
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.siamese import PooledSiameseUNet, batch_block, instance_block
from stages.parts.players.registering import RegisterAndEmbed, contrast_all


class Settings(RegistrationSettings):
    """Settings of `clmorph`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {"registration_network": "light", "similarity": "lncc", "smoothness_weight": 1.0},
    }

    registration_network: Literal["clmorph", "light"] = Field(
        "clmorph", description="R: CLMorph's own, or a light one that works at half resolution."
    )
    diffeomorphic: bool = Field(False, description="R predicts a velocity field, which is integrated.")
    similarity: Similarity = Field("mse", description=SIMILARITY)
    smoothness_weight: float = Field(0.01, ge=0, description="Weight of L_smooth; 0.01 goes with MSE, 1 with LNCC.")
    contrastive_weight: float = Field(0.01, gt=0, description="Weight of NT-Xent over the embeddings.")


def build(task: Task, settings: Settings) -> Recipe:
    light = settings.registration_network == "light"
    with task.initialises("registration"):
        body = PooledSiameseUNet(task.shape, instance_block if light else batch_block, light=light)
        R = RegistrationNetwork(body, diffeomorphic=settings.diffeomorphic)
    register = Player(
        "registration",
        trains=R,
        forward=RegisterAndEmbed(R),
        loss=WeightedSum(
            **registration_terms(settings),
            contrast=(settings.contrastive_weight, contrast_all),
        ),
    )
    return registration_alone(R, Phase("registration", batches=atlas_and_different_scans, players=[register]))


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(1000, batch_size=2, learning_rate=1e-3)
    return joint_training(30_000, learning_rate=3e-3)


METHOD = Method(
    name="clmorph",
    summary="learned registration with a contrastive encoder, label propagation",
    source="Liu et al., TNNLS 2023",
    settings=Settings,
    recipe=build,
    train_reg=train_reg,
)
