"""DataAug: labelled images from learned changes of space and appearance.

Zhao, Balakrishnan, Durand, Guttag, Dalca: "Data Augmentation Using Learned Transformations for One-Shot Medical Image
Segmentation", CVPR 2019. Where the text is silent, the published code (xamyzhao/brainstorm) decides: VoxelMorph's
U-Net without integration both ways, trained apart, 50 000 steps; an appearance U-Net of 16,32,32,32,32,32 /
64,64,32,32,32,16,16 channels, 1 000 steps; the weights 50 and 1, which are the paper's lambda_a = 0.02; contours that
only mask the loss, not inputs of the network; Adam, 1e-4.

Ours differs: S is the 3D U-Net of the other methods, with Dice and cross-entropy; theirs looks at slices. Shapes and
looks come from unlabelled scans; theirs may also come from an atlas. Decoders upsample after their convolution, as
VoxelMorph's. The appearance network starts from no change. The paper's best row adds random augmentation in every other
step; `train_seg.augmentation` adds it in every step.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from stages.config import TrainSettings
from stages.generating.path_bank import PathBank
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, registration_network, segmentation_network
from stages.methods.phases import Phase, Player, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Recipe, Task, Train
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import full_or_light_rate, published_training, short_training
from stages.parts.batches.pairs import atlas_and_scan
from stages.parts.batches.space_style import Always, SpaceStyleSampling
from stages.parts.networks.appearance import AppearanceChange
from stages.parts.networks.blocks import small_head
from stages.parts.networks.unet import LightUNet
from stages.parts.networks.voxelmorph import VoxelMorphUNet
from stages.parts.players.appearance import Recolour, appearance_smoothness, reconstruction
from stages.parts.players.registering import RegisterPair
from stages.parts.players.segmenting import Segment, overlap_and_cross_entropy

CHANNELS: dict[str, tuple[int, ...]] = {  # of the appearance network
    "encoder": (16, 32, 32, 32, 32, 32),
    "decoder": (64, 64, 32, 32, 32, 16),
    "final": (16,),
}


class Settings(RegistrationSettings):
    """Settings of `data-aug`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {"registration_network": "light", "segmentation_network": "light", "appearance_share": 0.3},
    }

    registration_network: Literal["voxelmorph", "light"] = Field(
        "voxelmorph", description="Spatial and appearance networks: the published ones, or light ones."
    )
    segmentation_network: SegmentationName = Field("brbs", description=f"S: {SEGMENTATION_NAMES}")
    diffeomorphic: bool = Field(False, description="The spatial networks predict velocity fields, integrated.")
    space: bool = Field(True, description="Samples take the shape of a scan; off: the atlas keeps its own.")
    appearance: bool = Field(True, description="Samples take the look of a scan; off: the atlas keeps its own.")
    independent: bool = Field(
        True, description="Shape and look come from two scans, drawn independently; off: from one (coupled)."
    )
    smoothness_weight: float = Field(1.0, ge=0, description="Weight of the displacements' smoothness.")
    reconstruction_weight: float = Field(
        50.0, ge=0, description="Weight of the mean square that the appearance network fits."
    )
    appearance_smoothness_weight: float = Field(
        1.0, ge=0, description="Weight of its change's smoothness, contours masked."
    )
    appearance_share: float = Field(
        0.02, gt=0, lt=1, description="Share of train-reg that trains the appearance network (short runs: 0.3)."
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if not (self.space or self.appearance):
            raise ValueError("space and appearance are both off, which leaves the atlas as it is: that is `unet`")
        return self


def build(task: Task, settings: Settings) -> Recipe:
    spatial = partial(registration_network, settings.registration_network, task, diffeomorphic=settings.diffeomorphic)
    forward, backward = spatial(name="registration"), spatial(name="backward")  # atlas to scan, scan to atlas
    change = AppearanceChange(appearance_network(settings.registration_network, task), backward)  # psi_a
    S = segmentation_network(settings.segmentation_network, task)
    alpha = Always(1.0 if settings.space else 0.0)
    beta = Always(1.0 if settings.appearance else 0.0)
    coupled = not settings.independent
    registration_loss = WeightedSum(**registration_terms(settings))
    space = Phase(
        "space",
        batches=atlas_and_scan,
        share=1 - settings.appearance_share * settings.appearance,
        players=[
            Player("forward", trains=forward, forward=RegisterPair(forward), loss=registration_loss),
            Player("backward", trains=backward, forward=RegisterPair(backward, swapped=True), loss=registration_loss),
        ][: 1 + settings.appearance],  # only the appearance network needs the way back
    )
    appearance = Phase(
        "appearance",
        batches=atlas_and_scan,
        share=settings.appearance_share,
        players=[
            Player(
                "appearance",
                trains=change.network,
                forward=Recolour(change, forward),
                loss=WeightedSum(
                    reconstruction=(settings.reconstruction_weight, reconstruction),
                    smoothness=(settings.appearance_smoothness_weight, appearance_smoothness),  # lambda_a
                ),
            )
        ],
    )
    sampling = SpaceStyleSampling(space=alpha, style=beta, mixing=None, coupled=coupled)
    segment = Player(
        "segmentation",
        trains=S,
        forward=Segment(S),
        loss=WeightedSum(overlap=(1.0, overlap_and_cross_entropy)),
    )
    both = {"backward": backward, "appearance": change.network} if settings.appearance else {}
    return Recipe(
        networks={"registration": forward, "segmentation": S, **both},
        rounds=[
            [
                Train("registration", [space, appearance] if settings.appearance else [space]),
                Generate(
                    [
                        PathBank(
                            space=alpha,
                            style=beta if settings.appearance else None,
                            style_map=change if settings.appearance else None,
                            coupled=coupled,
                        )
                    ]
                ),
                Train(
                    "segmentation",
                    [Phase("transformed", batches=sampling.from_bank, players=[segment])],
                    uses=["registration", "generated"],
                ),
            ]
        ],
        answer=Answer(network=S, registers=forward),
    )


def appearance_network(name: str, task: Task) -> nn.Module:
    """[atlas, scan brought to it] -> change of intensity; starts from no change."""
    with task.initialises("appearance"):
        if name == "light":
            light = LightUNet(2, 1, task.shape, spacing_mm=task.spacing_mm)
            small_head(light.head)
            return light
        return VoxelMorphUNet(2, 1, task.shape, **CHANNELS)


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(1000, learning_rate=1e-3)
    return published_training(51_000, augmentation="none")


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network == "brbs":
        return published_training(10_000, augmentation="none")
    return short_training(1000, learning_rate=full_or_light_rate(settings.segmentation_network))


METHOD = Method(
    name="data-aug",
    summary="labelled images from learned changes of space and appearance",
    source="Zhao et al., CVPR 2019",
    settings=Settings,
    recipe=build,
    train_reg=train_reg,
    train_seg=train_seg,
)
