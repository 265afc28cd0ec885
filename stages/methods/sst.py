"""SST: labelled scans from the prior, an atlas in shapes and looks that were learned from unlabelled scans.

Tomar, Bozorgtabar, Lortkipanidze, Vray, Rad, Thiran, "Self-Supervised Generative Style Transfer for One-Shot Medical
Image Segmentation", WACV 2022; code github.com/devavratTomar/SST. `train-reg` pre-trains the flow model and the style
encoder, trains both with the appearance model, then trains an adversarial autoencoder of the atlas's displacements;
`generate` draws from the prior; `train-seg` learns from the drawn scans.

Readings of paper and code (presets `paper` and `official`):
- Temperature: 0.07 (code); the paper prints 0.7.
- The appearance model sees the codes of the encoder that learns (the paper's gradient trains all three networks), or
  the momentum encoder's (`official`).
- Eq. 4 is L1 + (1 - MS-SSIM), L1 over images from -1 to 1; the code takes half of both (`official`, by the weights).
- Eq. 10 is printed the other way round. Here D_style learns 1 for the prior and 0 for codes, with 1/2 each, and the
  encoder learns to be told 1. Its prior is n / |n|, on the sphere where the codes lie.
- The autoencoder learns by L1 and LSGAN (weight 0.05, code). `official` adds the SSIM of the warped atlas and mixtures
  of displacements. The prior of its codes is N(0, I); `official` mixes the codes of three scans instead.
- Jitter: the text has none; the code changes brightness and contrast, alike within a pair in pre-training and for each
  scan in the joint phase. Ours leaves the background at 0. Without jitter, an appearance model that repeats its input
  has L_cycle = L_id = 0 and needs no code. Keys of the query's own scan are negatives, see `MomentumContrast`.
- L_adv has weight 0.1 (text), or 0.5 in pre-training and 0.05 later (code, `official`).
- T, which makes the positive keys, is the flow model: as pre-trained while styles are, and as it is in the joint phase,
  where the code keeps the pre-trained one. The joint phase goes on with the pre-trained flow model; the code's starts
  anew. A query is the moving scan. Without an appearance model, the scans of a pair look alike throughout.
- Several atlases (the paper has one): each sample and each step of the autoencoder draws one; all vote on a new scan.

Ours differs: displacements sample with aligned corners, labels are warped linearly, grids have any size. The published
epochs (10, 10, 10, 100) and batches (4, 16, 1, 2) make about 18, 5, 73 and 4 % of the steps, the shares of `official`.
Numbers of steps and the default shares are ours. Light networks differ, see `StyleEncoder`, `AppearanceModel` and
`FlowAutoencoder`; their findings are in "SST in short runs", docs/benchmarks/LOG.md.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from stages.config import MethodStage, TrainSettings
from stages.generating.drawn import DrawnScans
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, registration_network, segmentation_network
from stages.methods.phases import Phase, Player, Terms, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Page, Recipe, Task, Train
from stages.methods.registration_losses import SIMILARITIES, SMOOTHNESSES, Similarity, Smoothness
from stages.methods.schedules import full_or_light_rate, published_training, short_training
from stages.methods.settings import ANSWER, GENERATE, SEGMENT, AnswerSettings
from stages.methods.sst_looks import other_registration, sample_looks
from stages.methods.sst_pages import show_codes, show_codes_together, show_shapes, show_styles
from stages.parts.batches.drawing import Sampler
from stages.parts.batches.labelled import generated_samples
from stages.parts.batches.pairs import one_atlas_and_scans, two_scans
from stages.parts.networks.appearance import AppearanceModel
from stages.parts.networks.discriminators import LatentDiscriminator
from stages.parts.networks.flow_autoencoder import FlowAutoencoder
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.style import CODE, MomentumContrast, StyleEncoder
from stages.parts.networks.styled_registration import StyledRegistration
from stages.parts.networks.voxelmorph import StridedUNet
from stages.parts.players import flow as flows
from stages.parts.players import style as styles
from stages.parts.players.flow import EncodeFlows, FlowsOfAtlas
from stages.parts.players.judging import JudgeFlows, JudgeStyles, fake, real
from stages.parts.players.registering import RegisterPair, similarity
from stages.parts.players.segmenting import Segment, overlap_and_cross_entropy
from stages.parts.players.style import Contrast, ContrastStyles, RegisterStyled, Transfer
from stages.parts.synthesis import Synthesis


class Settings(AnswerSettings):
    """Settings of `sst`; `appearance` and `joint` are the rows of the paper's Table 2, `samples` is its Fig. 7."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"temperature": 0.7},
        "official": {
            "style_code": "key", "appearance_weight": 2.5, "flow_weight": 0.5, "smoothness_weight": 0.2,
            "adversarial_weight": 0.05, "first_adversarial_weight": 0.5, "autoencoder_image_weight": 1.0,
            "mix_flows": True, "sampling": "interpolate", "style_batch_size": 16,
            "flow_share": 0.18, "style_share": 0.05, "autoencoder_share": 0.04,
        },
        "light": {
            "registration_network": "light", "segmentation_network": "light",
            "diffeomorphic": True,  # the published flow model folds in short trainings
            "smoothness_weight": 0.3, "style_batch_size": 8, "queue": 256, "sampling": "interpolate", "looks": "memory",
            "samples": 300, "flow_share": 0.13, "style_share": 0.08,
            "autoencoder_share": 0.43,  # cheap steps, and samples are as varied as it is good
            "train_reg": {"steps": 2200}, "train_seg": {"steps": 800, "batch_size": 2},
        },
    }  # fmt: skip
    preset: Annotated[str, ANSWER] = Field(
        "default", description="light: minutes on CPU cores; paper: the text; official: the published code."
    )
    registration_network: Literal["sst", "light"] = Field(
        "sst", description="Flow and appearance model, autoencoder: the published ones, or light ones."
    )
    segmentation_network: Annotated[SegmentationName, SEGMENT] = Field("brbs", description=f"S: {SEGMENTATION_NAMES}")
    diffeomorphic: bool = Field(False, description="The flow model predicts a velocity field, which is integrated.")
    appearance: bool = Field(True, description="Use an appearance model; off: samples are the warped atlas (Table 2).")
    joint: bool = Field(
        True, description="Appearance and flow model train each other by gradients; off: they do not (Table 2)."
    )
    style_code: Literal["query", "key"] = Field(
        "query",
        description="Whose codes the appearance model sees: the encoder's (query), or its momentum copy's (key).",
    )
    jitter: bool = Field(
        True,
        description="Multiply brightness and contrast by U(0.7, 1.3): per pair in pre-training, later per scan.",
    )
    temperature: float = Field(0.07, gt=0, description="tau of L_vol.cl.")
    queue: int = Field(1024, ge=1, description="Keys that a query is compared with.")
    appearance_weight: float = Field(5.0, gt=0, description="lambda_1, weight of L_app.")
    flow_weight: float = Field(1.0, gt=0, description="lambda_2, weight of L_flow.")
    similarity: Similarity | None = Field(
        None, description="Compares images in F's losses; null: LNCC in its pre-training, then L1 and SSIM (Eq. 8)."
    )
    smoothness: Smoothness | None = Field(None, description="L_reg; null: the absolute gradient (Eq. 9).")
    smoothness_weight: float = Field(0.1, ge=0, description="lambda_reg, weight of L_reg within L_flow.")
    adversarial_weight: float = Field(0.1, ge=0, description="lambda_3, weight of L_adv; 0: no D_style.")
    first_adversarial_weight: float | None = Field(
        None,
        ge=0,
        description="Weight of L_adv in the style encoder's pre-training; default: adversarial_weight, or 0.5 for "
        "light networks, whose short trainings would otherwise leave the codes in a corner of the prior.",
    )
    first_smoothness_weight: float = Field(
        0.3, ge=0, description="Weight of smoothness in the flow model's pre-training."
    )
    autoencoder_image_weight: float = Field(
        0.0, ge=0, description="Weight of 1 - SSIM of the atlas, warped by both fields."
    )
    autoencoder_adversarial_weight: float | None = Field(
        None,
        ge=0,
        description="Weight of the flow codes' L_adv; 0: no D_flow; default: 0.05, or 0.002 for light networks, whose "
        "short trainings would otherwise only follow D_flow.",
    )
    mix_flows: bool = Field(False, description="The autoencoder learns mixtures of a batch's displacements.")
    flow_share: float = Field(0.15, ge=0, lt=1, description="Share of train-reg that pre-trains the flow model.")
    style_share: float = Field(0.1, ge=0, lt=1, description="Share that pre-trains the style encoder.")
    autoencoder_share: float = Field(
        0.3, gt=0, lt=1, description="Share of the autoencoder; the joint phase has the rest."
    )
    style_pace: float | None = Field(
        None,
        gt=0,
        description="Learning rate of style encoder and discriminators, as a multiple of the others'; default: 1, or "
        "0.3 for light networks, whose codes would otherwise all stay alike.",
    )
    style_batch_size: int = Field(32, ge=1, description="Scans in a step of the style encoder's pre-training.")
    sampling: Annotated[Literal["prior", "interpolate"], GENERATE] = Field(
        "prior", description="Shapes: from the prior, or between the shapes of three unlabelled scans."
    )
    looks: Annotated[Literal["prior", "memory"], GENERATE] = Field(
        "prior",
        description="Looks: from the prior, or between two similar looks of the last steps of training.",
    )
    samples: Annotated[int, GENERATE] = Field(1850, ge=1, description="Labelled scans to draw.")
    appearance_from: Annotated[Path | None, GENERATE] = Field(
        None,
        description="Workspace or registration artifact of another cohort, whose looks the samples take; relative to "
        "the configuration file.",
    )

    def read_by(self, stage: MethodStage, round: int = 0) -> dict[str, Any]:
        """As its base, with the digest of the other cohort's artifact instead of its path."""
        read = super().read_by(stage, round)
        if read.get("appearance_from") and self.appearance_from:
            read["appearance_from"] = other_registration(self.appearance_from).manifest.digest
        return read

    @property
    def pace(self) -> float:
        return self.style_pace or (0.3 if self.registration_network == "light" else 1.0)

    @property
    def judging(self) -> float:
        """Weight of L_adv in the style encoder's pre-training; 0 without D_style."""
        if not self.adversarial_weight:
            return 0.0
        if self.first_adversarial_weight is not None:
            return self.first_adversarial_weight
        return 0.5 if self.registration_network == "light" else self.adversarial_weight

    @property
    def judging_flows(self) -> float:
        """Weight of L_adv of the flow codes."""
        if self.autoencoder_adversarial_weight is not None:
            return self.autoencoder_adversarial_weight
        return 0.002 if self.registration_network == "light" else 0.05

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        shares = self.flow_share + self.style_share + self.autoencoder_share
        if shares >= 1:
            raise ValueError(
                f"flow_share, style_share and autoencoder_share add up to {shares:.3g}, which leaves the joint phase "
                "nothing; they must stay below 1"
            )
        if self.appearance_from and not self.appearance:
            raise ValueError("appearance_from needs an appearance model, but appearance is off")
        return self


def build(task: Task, settings: Settings) -> Recipe:
    light = settings.registration_network == "light"
    F = flow_model(settings, task)
    with task.initialises("autoencoder"):
        G_flow = FlowAutoencoder(task.shape, light=light)
    D_flow = None
    if settings.judging_flows:
        D_flow = latent_discriminator("flow_discriminator", task, G_flow.code_size, layers=2, width=256)
    S = segmentation_network(settings.segmentation_network, task)
    networks: dict[str, nn.Module | None] = {"segmentation": S, "autoencoder": G_flow, "flow_discriminator": D_flow}
    pages: dict[str, Page] = {"shapes": partial(show_shapes, G_flow)}
    draw = partial(Synthesis, autoencoder=G_flow, interpolate=settings.sampling == "interpolate")
    R: nn.Module
    if settings.appearance:
        R = styled_registration(F, settings, task)
        D_style = None
        if settings.adversarial_weight:
            D_style = latent_discriminator("style_discriminator", task, CODE, layers=5, width=128)
        learning = [
            flow_pre_training(F, settings),
            style_pre_training(R, D_style, settings),
            joint(R, D_style, settings),
        ]
        networks |= {"style_discriminator": D_style}
        pages |= {"style-codes": partial(show_codes, R), "styles": partial(show_styles, R)}
        pages |= {"looks-and-shapes": partial(show_codes_together, R, G_flow)}
        remembers, other = settings.looks == "memory", settings.appearance_from
        A, memory, borrowed = sample_looks(R, settings.registration_network, remembers=remembers, other=other)
        synthesis = draw(R, appearance=A, memory=memory)
    else:
        R, learning = F, [flow_pre_training(F, settings), warped_alone(F, settings)]
        synthesis, borrowed = draw(R, appearance=None), None
    networks |= {"registration": R}
    segment = Player(
        "segmentation", trains=S, forward=Segment(S), loss=WeightedSum(overlap=(1.0, overlap_and_cross_entropy))
    )
    return Recipe(
        networks={name: network for name, network in networks.items() if network is not None},
        rounds=[
            [
                Train("registration", [*learning, autoencoder(R, G_flow, D_flow, settings)], pages=pages),
                Generate([DrawnScans(synthesis, settings.samples)], borrowed=borrowed),
                Train(
                    "segmentation",
                    [Phase("samples", batches=generated_samples, players=[segment])],
                    uses=["registration", "generated"],
                ),
            ]
        ],
        answer=Answer(network=S, registers=R, flat_borders=settings.flat_borders),
    )


def latent_discriminator(name: str, task: Task, size: int, *, layers: int, width: int) -> LatentDiscriminator:
    with task.initialises(name):
        return LatentDiscriminator(size, layers=layers, width=width)


def styled_registration(F: RegistrationNetwork, settings: Settings, task: Task) -> StyledRegistration:
    """F with the style encoder and the appearance model."""
    light = settings.registration_network == "light"
    with task.initialises("appearance"):
        A = AppearanceModel(light=light)
    with task.initialises("style"):
        encoder = StyleEncoder(task.shape, light=light)
        E = MomentumContrast(encoder, size=settings.queue, own=settings.jitter, looks_of=settings.style_code)
    return StyledRegistration(F, A, E, code_of=settings.style_code)


def flow_model(settings: Settings, task: Task) -> RegistrationNetwork:
    """F, by its name in the settings."""
    if settings.registration_network == "light":
        return registration_network("light", task, diffeomorphic=settings.diffeomorphic)
    with task.initialises("registration"):
        return RegistrationNetwork(StridedUNet(2, 3, task.shape), diffeomorphic=settings.diffeomorphic)


def pairs(settings: Settings, jitter: Literal["pair", "each"]) -> Sampler:
    """Two scans under jitter: alike ("pair"), or each its own ("each"), so that styles differ and codes are needed."""
    return partial(two_scans, jitter=jitter if settings.jitter else "none")


def flow_pre_training(F: RegistrationNetwork, settings: Settings) -> Phase:
    """T: F learns to register scans in their own looks, by LNCC."""
    loss = WeightedSum(
        similarity=(1.0, SIMILARITIES.get(settings.similarity, similarity)),
        smoothness=(settings.first_smoothness_weight, SMOOTHNESSES.get(settings.smoothness, styles.gradient)),
    )
    return Phase(
        "flow",
        batches=pairs(settings, "pair"),
        share=settings.flow_share,
        players=[Player("flow", trains=F, forward=RegisterPair(F), loss=loss)],
    )


def flow_terms(settings: Settings) -> Terms:
    """lambda_2 L_flow."""
    return {
        "reconstruction": (settings.flow_weight, SIMILARITIES.get(settings.similarity, styles.reconstruction)),
        "smoothness": (
            settings.flow_weight * settings.smoothness_weight,
            SMOOTHNESSES.get(settings.smoothness, styles.gradient),
        ),
    }


def warped_alone(F: RegistrationNetwork, settings: Settings) -> Phase:
    """Without appearance model: F goes on by L_flow, with scans in their own looks, and has the styles' steps."""
    player = Player("flow", trains=F, forward=RegisterPair(F), loss=WeightedSum(**flow_terms(settings)))
    return Phase(
        "joint",
        batches=pairs(settings, "pair"),
        share=1 - settings.flow_share - settings.autoencoder_share,
        players=[player],
    )


def judge_of_styles(R: StyledRegistration, D_style: LatentDiscriminator | None, settings: Settings) -> list[Player]:
    """The player of D_style, if there is a D_style."""
    if D_style is None:
        return []
    loss = WeightedSum(real=(0.5, real), fake=(0.5, fake))
    forward, paces = JudgeStyles(R.style.encoder, D_style), [(D_style, settings.pace)]
    return [Player("style-discriminator", D_style, forward, loss, momentum=0.5, paces=paces)]


def style_pre_training(R: StyledRegistration, D_style: LatentDiscriminator | None, settings: Settings) -> Phase:
    """The encoder alone: L_vol.cl + L_adv."""
    D_style = D_style if settings.judging else None
    encoder = Player(
        "style",
        trains=R.style.encoder,
        forward=ContrastStyles(R.style, R.flow, D_style),
        loss=WeightedSum(
            contrast=(1.0, Contrast(settings.temperature)),
            adversarial=(settings.judging, styles.adversarial),
        ),
        paces=[(R.style.encoder, settings.pace)],
    )
    return Phase(
        "style",
        batches=pairs(settings, "pair"),
        share=settings.style_share,
        batch_size=settings.style_batch_size,
        players=[encoder, *judge_of_styles(R, D_style, settings)],
    )


def joint(R: StyledRegistration, D_style: LatentDiscriminator | None, settings: Settings) -> Phase:
    """L_total; without `joint`, two players share its terms."""
    of_styles: Terms = {
        "contrast": (1.0, Contrast(settings.temperature)),  # L_vol.cl
        "style_cycle": (settings.appearance_weight, styles.style_cycle),  # lambda_1 L_app
        "style_identity": (settings.appearance_weight, styles.style_identity),
        "adversarial": (settings.adversarial_weight, styles.adversarial),  # lambda_3 L_adv
    }
    encoder_and_appearance = [R.style.encoder, R.appearance]
    paces = [(R.style.encoder, settings.pace)]
    if settings.joint:
        players = [
            Player(
                "joint",
                trains=nn.ModuleList([*encoder_and_appearance, R.flow]),
                forward=Transfer(R, D_style),
                loss=WeightedSum(**of_styles, **flow_terms(settings)),
                paces=paces,
            )
        ]
    else:
        players = [
            Player(
                "appearance",
                trains=nn.ModuleList(encoder_and_appearance),
                forward=Transfer(R, D_style, registers=False),
                loss=WeightedSum(**of_styles),
                paces=paces,
            ),
            Player("flow", trains=R.flow, forward=RegisterStyled(R), loss=WeightedSum(**flow_terms(settings))),
        ]
    return Phase(
        "joint",
        batches=pairs(settings, "each"),
        share=1 - settings.flow_share - settings.style_share - settings.autoencoder_share,
        players=[*players, *judge_of_styles(R, D_style, settings)],
    )


def autoencoder(R: nn.Module, G_flow: FlowAutoencoder, D_flow: LatentDiscriminator | None, settings: Settings) -> Phase:
    """R, which stands still, finds displacements of the atlases; the autoencoder learns to encode and decode them."""
    of_atlas = FlowsOfAtlas(R, G_flow)
    players = [
        Player(
            "autoencoder",
            trains=G_flow,
            forward=EncodeFlows(of_atlas, G_flow, D_flow),
            loss=WeightedSum(
                reconstruction=(1.0, flows.flow_reconstruction),
                image=(settings.autoencoder_image_weight, flows.image_reconstruction),
                adversarial=(settings.judging_flows, flows.adversarial),
            ),
        )
    ]
    if D_flow is not None:
        loss = WeightedSum(real=(0.5, real), fake=(0.5, fake))
        forward = JudgeFlows(of_atlas, G_flow, D_flow)
        paces = [(D_flow, settings.pace)]
        players.append(Player("flow-discriminator", D_flow, forward, loss, momentum=0.5, paces=paces))
    return Phase(
        "autoencoder",
        batches=partial(one_atlas_and_scans, mix=settings.mix_flows),
        share=settings.autoencoder_share,
        players=players,
    )


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(2000, batch_size=2, learning_rate=1e-3, augmentation="none")
    return published_training(100_000, batch_size=4, learning_rate=2e-4, augmentation="none")


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network == "brbs":
        return published_training(10_000, augmentation="none")
    return short_training(1000, learning_rate=full_or_light_rate(settings.segmentation_network))


METHOD = Method(
    name="sst",
    summary="labelled scans drawn from learned priors of style and shape",
    source="Tomar et al., WACV 2022",
    settings=Settings,
    recipe=build,
    train_reg=train_reg,
    train_seg=train_seg,
    registration_share=0.6,
)
