"""TransMorph: registration by a network whose encoder is a Swin transformer; the atlas's label follows.

Chen, Frey, He, Segars, Li, Du, "TransMorph: Transformer for unsupervised medical image registration", MedIA 2022; code
github.com/junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration. One of OS-MedSeg's rivals, there with the
similarity and smoothness of all others.

Loss: LNCC + 1 * diffusion, as in the paper's atlas-to-patient registration. The encoder sees both images; patches of
4^3; four stages; windows that are a 32nd of the grid, so 5 x 6 x 7 tokens on 160 x 192 x 224. The published sizes are
settings.

Ours differs in: windows have at least 4 tokens an axis and at most 7, and small grids fewer stages; tokens of padding
are never looked at (in the published code they are); Adam's rate is constant (there it falls, and AMSGrad keeps the
largest moments). `diffeomorphic` integrates the network's output as a velocity, under the same loss; the published
diffeomorphic variant has the prior of Dalca et al. instead, which `voxelmorph` with `probabilistic` has.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.config import TrainSettings
from stages.methods.phases import Phase, Player, WeightedSum
from stages.methods.recipe import Method, Recipe, Task, registration_alone
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import published_training, short_training
from stages.parts.batches.pairs import atlas_and_scan
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.transmorph import TransMorph, Widths
from stages.parts.players.registering import RegisterPair

SIZES = {
    "published": Widths(96, (2, 2, 4, 2), (4, 4, 8, 8)),
    "large": Widths(128, (2, 2, 12, 2), (4, 4, 8, 16)),
    "small": Widths(48, (2, 2, 4, 2), (4, 4, 4, 4)),
    "tiny": Widths(6, (2, 2, 4, 2), (2, 2, 4, 4)),
}


class Settings(RegistrationSettings):
    """Settings of `transmorph`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {"size": "tiny", "most_dropped": 0.0},
        "paper": {"train_reg": {"steps": 201_500}},  # 500 epochs of the 403 scans of IXI
    }

    size: Literal["published", "large", "small", "tiny"] = Field(
        "published", description="Channels of the first stage: 96, 128, 48 or 6, with the published blocks and heads."
    )
    convolution_skips: bool = Field(True, description="Skips from the images at full and at half resolution.")
    transformer_skips: bool = Field(True, description="Skips from the encoder's stages.")
    positions: bool = Field(True, description="Attention has a learned bias for the offset of two tokens.")
    most_dropped: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="Stochastic depth: the last block's probability to leave out a branch in a step; the first one's "
        "is 0.",
    )
    diffeomorphic: bool = Field(False, description="R predicts a velocity field, which is integrated.")


def build(task: Task, settings: Settings) -> Recipe:
    with task.initialises("registration"):
        body = TransMorph(
            2 * task.channels,
            task.shape,
            SIZES[settings.size],
            convolution_skips=settings.convolution_skips,
            transformer_skips=settings.transformer_skips,
            positions=settings.positions,
            most_dropped=settings.most_dropped,
        )
        R = RegistrationNetwork(body, diffeomorphic=settings.diffeomorphic)
    register = Player(
        "registration",
        trains=R,
        forward=RegisterPair(R),
        loss=WeightedSum(**registration_terms(settings)),  # L_sim + lambda L_smooth
    )
    return registration_alone(R, Phase("registration", batches=atlas_and_scan, players=[register]))


def train_reg(settings: Settings) -> TrainSettings:
    if settings.size in ("small", "tiny"):
        return short_training(1000, learning_rate=1e-3)
    return published_training(30_000, augmentation="none")


METHOD = Method(
    name="transmorph",
    summary="learned registration with a Swin transformer, label propagation",
    source="Chen et al., MedIA 2022",
    settings=Settings,
    recipe=build,
    channels=True,
    train_reg=train_reg,
)
