"""VAE augmentation: labelled scans in shapes and looks that two variational autoencoders draw. VAEAug of BRBS's tables.

Ding, Yu, Yang, "Modeling the Probabilistic Distribution of Unlabeled Data for One-shot Medical Image Segmentation",
AAAI 2021, arXiv:2102.02033; github.com/dyh127/Modeling-the-Probabilistic-Distribution-of-Unlabeled-Data (its README;
the code goes out on request). The paper's text was not at hand: losses and numbers are those that a published reading
note quotes (L_srn, L_irn, L_S, L_I, beta 0.1, sigma 10).

Two spatial networks, atlas to scan and scan to atlas, and one of intensities, as DataAug's; then one autoencoder of the
atlas's displacements and one of its changes of intensity, both with little KL. Codes from N(0, sigma^2) draw new shapes
and new looks, each by itself: x_g = (x_a + I_g) o S_g, y_g = y_a o S_g. S learns from such couples.

Readings, where nothing is said:
- *Sizes*: L_d is a mean square, of displacements in voxels; images' mean squares weigh 400, which counts intensities in
  units of 0.05; L_kl is a mean over the code's 128 numbers, of which the autoencoders' layers are ours, too.
- *sigma*: how far codes spread depends on how beta goes with the sizes above. Here they come to follow the prior, so
  sigma is 1; 10 (`paper`) leads far beyond all scans that were seen.
- *Intensities* are learned as DataAug's are, weight and masked smoothness included.
- *Couples* are drawn once, `samples` of them, and then augmented; the paper draws anew in training.
- *Several atlases* (the paper has one): each step and each couple draws one.

Ours differs: S is the 3D U-Net of the other methods, with Dice and cross-entropy (`paper`: cross-entropy alone); theirs
looks at slices.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import TrainSettings
from stages.generating.drawn import DrawnScans
from stages.methods.data_aug import appearance_network
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, registration_network, segmentation_network
from stages.methods.phases import Phase, Player, Terms, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Recipe, Task, Train
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import full_or_light_rate, published_training, short_training
from stages.methods.settings import GENERATE, SEGMENT, AnswerSettings
from stages.parts.batches.labelled import generated_samples
from stages.parts.batches.pairs import atlas_and_scan, one_atlas_and_scans
from stages.parts.networks.appearance import AppearanceChange
from stages.parts.networks.variational import VariationalAutoencoder
from stages.parts.players.appearance import Recolour, appearance_smoothness, reconstruction
from stages.parts.players.registering import RegisterPair
from stages.parts.players.segmenting import Segment, cross_entropy, overlap_and_cross_entropy
from stages.parts.players.variational import EncodeFields, divergence, field_reconstruction, image_reconstruction
from stages.parts.variational_synthesis import VariationalSynthesis

SEGMENTATION_TERMS: dict[str, Terms] = {
    "dice-ce": {"overlap": (1.0, overlap_and_cross_entropy)},
    "ce": {"cross_entropy": (1.0, cross_entropy)},  # L_CE
}


class Settings(AnswerSettings, RegistrationSettings):
    """Settings of `vae-aug`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {
            "registration_network": "light", "segmentation_network": "light", "diffeomorphic": True, "code": 32,
            "samples": 300, "appearance_share": 0.15, "autoencoder_share": 0.4,
            "train_reg": {"steps": 1800, "augmentation": "none"}, "train_seg": {"steps": 800, "batch_size": 2},
        },
        "paper": {"spread": 10.0, "segmentation_loss": "ce"},
    }  # fmt: skip

    registration_network: Literal["voxelmorph", "light"] = Field(
        "voxelmorph",
        description="Spatial and intensity networks as in DataAug's code, and the autoencoders; or light.",
    )
    segmentation_network: Annotated[SegmentationName, SEGMENT] = Field("brbs", description=f"S: {SEGMENTATION_NAMES}")
    segmentation_loss: Annotated[Literal["dice-ce", "ce"], SEGMENT] = Field(
        "dice-ce", description="Dice with cross-entropy, or cross-entropy alone (the paper's)."
    )
    diffeomorphic: bool = Field(False, description="The spatial networks predict velocity fields, integrated.")
    shapes: bool = Field(True, description="Couples are in drawn shapes; off: the atlas keeps its own.")
    looks: bool = Field(True, description="Couples are in drawn looks; off: the atlas keeps its own.")
    intensity_weight: float = Field(50.0, ge=0, description="Weight of the mean square that the intensities fit.")
    intensity_smoothness_weight: float = Field(1.0, ge=0, description="Weight of their smoothness, contours masked.")
    code: int = Field(128, ge=1, description="Numbers of a code, of shapes and of looks.")
    beta: float = Field(0.1, ge=0, description="Weight of L_kl: the less, the more varied are the codes of scans.")
    field_weight: float = Field(1.0, ge=0, description="Weight of L_d of displacements (voxels^2).")
    image_weight: float = Field(400.0, ge=0, description="Weight of L_i, and of L_d of intensities.")
    spread: Annotated[float, GENERATE] = Field(
        1.0, gt=0, description="sigma, the standard deviation of drawn codes; 1: as the prior."
    )
    samples: Annotated[int, GENERATE] = Field(1000, ge=1, description="Couples to draw.")
    appearance_share: float = Field(0.02, gt=0, lt=1, description="Share of train-reg that trains the intensities.")
    autoencoder_share: float = Field(0.3, gt=0, lt=1, description="Share of train-reg that trains the autoencoders.")

    @model_validator(mode="after")
    def _something_is_drawn_and_learned(self) -> Self:
        if not (self.shapes or self.looks):
            raise ValueError("shapes and looks are both off, which leaves the atlas as it is: that is `unet`")
        if self.appearance_share + self.autoencoder_share >= 1:
            raise ValueError("appearance_share and autoencoder_share leave no step for registration; lower one")
        return self


def build(task: Task, settings: Settings) -> Recipe:
    light = settings.registration_network == "light"
    spatial = partial(registration_network, settings.registration_network, task, diffeomorphic=settings.diffeomorphic)
    forward, backward = spatial(name="registration"), spatial(name="backward")  # S_i, and scan to atlas
    change = AppearanceChange(appearance_network(settings.registration_network, task), backward)  # I_i
    autoencoder = partial(VariationalAutoencoder, shape=task.shape, code=settings.code, light=light)
    with task.initialises("shapes"):
        shape_vae = autoencoder(3, displaces=True)
    with task.initialises("looks"):
        look_vae = autoencoder(1, displaces=False)
    S = segmentation_network(settings.segmentation_network, task)
    registration_loss = WeightedSum(**registration_terms(settings))  # L_srn
    space = Phase(
        "space",
        batches=atlas_and_scan,
        share=1 - settings.autoencoder_share - settings.appearance_share * settings.looks,
        players=[
            Player("forward", trains=forward, forward=RegisterPair(forward), loss=registration_loss),
            Player("backward", trains=backward, forward=RegisterPair(backward, swapped=True), loss=registration_loss),
        ][: 1 + settings.looks],  # only the intensities need the way back
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
                loss=WeightedSum(  # L_irn
                    reconstruction=(settings.intensity_weight, reconstruction),
                    smoothness=(settings.intensity_smoothness_weight, appearance_smoothness),
                ),
            )
        ],
    )
    draw_shapes = Player(
        "shapes",
        trains=shape_vae,
        forward=EncodeFields(forward, shape_vae),
        loss=WeightedSum(  # L_S
            field=(settings.field_weight, field_reconstruction),  # L_d
            image=(settings.image_weight, image_reconstruction),  # L_i
            divergence=(settings.beta, divergence),  # beta L_kl
        ),
    )
    draw_looks = Player(
        "looks",
        trains=look_vae,
        forward=EncodeFields(change, look_vae),
        loss=WeightedSum(  # L_I
            field=(settings.image_weight, field_reconstruction),
            divergence=(settings.beta, divergence),
        ),
    )
    autoencoders = Phase(
        "autoencoders",
        batches=one_atlas_and_scans,
        share=settings.autoencoder_share,
        players=[draw_shapes] * settings.shapes + [draw_looks] * settings.looks,
    )
    segment = Player(
        "segmentation",
        trains=S,
        forward=Segment(S),
        loss=WeightedSum(**SEGMENTATION_TERMS[settings.segmentation_loss]),
    )
    synthesis = VariationalSynthesis(
        shape_vae if settings.shapes else None, look_vae if settings.looks else None, settings.spread
    )
    of_shapes = {"shapes": shape_vae} if settings.shapes else {}
    of_looks = {"backward": backward, "appearance": change.network, "looks": look_vae} if settings.looks else {}
    return Recipe(
        networks={"registration": forward, "segmentation": S, **of_looks, **of_shapes},
        rounds=[
            [
                Train("registration", [space, *([appearance] if settings.looks else []), autoencoders]),
                Generate([DrawnScans(synthesis, settings.samples)]),
                Train(
                    "segmentation",
                    [Phase("samples", batches=generated_samples, players=[segment])],
                    uses=["registration", "generated"],
                ),
            ]
        ],
        answer=Answer(network=S, registers=forward, flat_borders=settings.flat_borders),
    )


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(1800, learning_rate=1e-3, augmentation="none")
    return published_training(75_000, augmentation="none")


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network == "brbs":
        return published_training(10_000, augmentation="none")
    return short_training(1000, learning_rate=full_or_light_rate(settings.segmentation_network))


METHOD = Method(
    name="vae-aug",
    summary="labelled scans in shapes and looks that two variational autoencoders draw",
    source="Ding et al., AAAI 2021",
    settings=Settings,
    recipe=build,
    train_reg=train_reg,
    train_seg=train_seg,
    registration_share=0.6,
)
