"""MASSL: a second decoder reconstructs unlabelled scans by parts, and S says which part covers what.

Chen, Bortsova, García-Uceda Juárez, van Tulder, de Bruijne, "Multi-Task Attention-Based Semi-Supervised Learning for
Medical Image Segmentation", MICCAI 2019, arXiv:1907.12303; code github.com/ShuaiChenBIGR/MASSL-segmentation-framework
(Network_training_SSL_epoch_attention_BraTS18.py@6f779b4). The paper's text was not at hand: numbers are the code's.

Two players move in every step, the alternating training that the paper found better than the joint one. The first
trains encoder and segmentation decoder on labelled scans, by Dice. The second trains encoder and reconstruction
decoder on unlabelled scans: of each class, the scan times that class's probability. The segmentation decoder stands
still meanwhile, but the gradient passes through it to the encoder, as in the published code.

Readings, where the code leaves a choice:
- *Classes*: the code has foreground and background; here each structure and the background is a part.
- *Reconstruction*: the published loop compares the attended unlabelled scan with the reconstruction of the labelled
  one, which it computed before. Here both are the unlabelled scan's.
- *Rates*: the reconstruction's is a tenth of the segmentation's (1e-3, 1e-2).

Ours differs: a U-Net as in BRBS's comparison; soft Dice is shared with the other methods.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field
from torch import nn

from stages.config import TrainSettings
from stages.methods.networks import segmentation_network
from stages.methods.phases import Phase, Player, WeightedSum
from stages.methods.recipe import Answer, Method, Recipe, Task, Train
from stages.methods.schedules import full_or_light_rate, published_training, short_training
from stages.methods.settings import ANSWER, AnswerSettings
from stages.parts.batches.half_labelled import labelled_and_unlabeled
from stages.parts.networks.reconstruction import ReconstructionDecoder
from stages.parts.networks.teacher_student import ResidualUNet
from stages.parts.networks.unet import LightUNet, UNet
from stages.parts.players.segmenting import Segment, overlap, overlap_and_cross_entropy
from stages.parts.players.semi_supervised import (
    ReconstructParts,
    reconstruction,
    reconstruction_of_equal_parts,
)


class Settings(AnswerSettings):
    """Settings of `massl`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "light": {
            "segmentation_network": "light", "segmentation_loss": "dice-ce",
            "train_seg": {"steps": 600, "batch_size": 2},
        },
    }  # fmt: skip
    preset: Annotated[str, ANSWER] = Field(
        "default", description="paper: the published numbers, as the default; light: minutes on CPU cores."
    )

    segmentation_network: Literal["brbs", "full", "light", "small", "residual"] = Field(
        "brbs",
        description="S, whose encoder is shared: BRBS's U-Net (full: InstanceNorm), light, small, or residual "
        "(OS-MedSeg's).",
    )
    segmentation_loss: Literal["dice", "dice-ce"] = Field("dice", description="L_S: Dice, or Dice with cross-entropy.")
    reconstructs: bool = Field(True, description="Off: S learns from labels alone.")
    attention: bool = Field(True, description="Parts by S's answers; off: the whole scan is reconstructed.")
    weigh_by_share: bool = Field(True, description="A part's weight is its share of the attention; off: all alike.")
    reconstruction_pace: float = Field(
        0.1, gt=0, description="Learning rate of the reconstruction, as a multiple of the segmentation's."
    )


def build(task: Task, settings: Settings) -> Recipe:
    S = cast(UNet | LightUNet | ResidualUNet, segmentation_network(settings.segmentation_network, task))
    with task.initialises("reconstruction"):
        D_R = ReconstructionDecoder(S, task.channels * (task.num_classes if settings.attention else 1))
    encoder_and_D_R = nn.ModuleList([S.down, D_R])
    segment = Player(
        "segmentation",
        trains=S,
        forward=Segment(S),
        loss=WeightedSum(overlap=(1.0, overlap if settings.segmentation_loss == "dice" else overlap_and_cross_entropy)),
    )
    reconstruct = Player(
        "reconstruction",
        trains=encoder_and_D_R,
        forward=ReconstructParts(S, D_R, settings.attention),
        loss=WeightedSum(
            parts=(1.0, reconstruction if settings.weigh_by_share else reconstruction_of_equal_parts),  # L_R
        ),
        paces=[(encoder_and_D_R, settings.reconstruction_pace)],
    )
    players = [segment, reconstruct] if settings.reconstructs else [segment]
    alternating = Phase("alternating", batches=labelled_and_unlabeled, players=players)
    return Recipe(
        networks={"segmentation": S, "reconstruction": D_R} if settings.reconstructs else {"segmentation": S},
        rounds=[[Train("segmentation", [alternating], sees_unlabeled=True)]],
        answer=Answer(network=S, flat_borders=settings.flat_borders),
    )


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network == "brbs":
        return published_training(10_000, batch_size=4, learning_rate=1e-2, augmentation="rotate-scale")
    return short_training(800, batch_size=4, learning_rate=full_or_light_rate(settings.segmentation_network))


METHOD = Method(
    name="massl",
    summary="a second decoder reconstructs unlabelled scans, part by part as S divides them",
    source="Chen et al., MICCAI 2019",
    settings=Settings,
    recipe=build,
    channels=True,
    train_seg=train_seg,
)
