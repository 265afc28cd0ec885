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
- Jitter: the text has none (`paper`); the code changes brightness and contrast, of a pair alike in pre-training and of
  each scan in the joint phase. Ours leaves the background at 0. Without jitter, an appearance model that repeats its
  input has L_cycle = L_id = 0 and needs no code. Keys of the query's own scan are negatives, see `MomentumContrast`.
- L_adv has weight 0.1 (text), or 0.5 in pre-training and 0.05 later (code, `official`).
- T, which makes the positive keys, is the flow model: as pre-trained while styles are, as it is in the joint phase.
  `transformer: fixed` (`paper`, `official`) is the published code: T is pre-trained and fixed, and the joint phase's
  flow model starts anew. A query is the moving scan, in `official` the fixed one, which L_id redraws, too. Without an
  appearance model, the scans of a pair look alike throughout.
- Eq. 4's SSIM: scales where an image and its rebuilt one are each other's negatives count below 0, see `ms_ssim`; the
  published code has 0 there, and no gradient.
- S: BRBS's U-Net. `segmentation_network: sst` and `segmentation_loss: sst` (`paper`, `official`) are the published wide
  U-Net without normalisation and its weighted cross-entropy + 0.2 Dice. The published training also clips gradients,
  and lowers the rate on a plateau of labelled scans; ours does neither.
- `official` besides: learning rate 1e-4, weight decay 1e-4 (not of the joint phase's three networks), rates that fall
  linearly in the second half of all phases but the joint one, batches of 4, 16, 1 and 2 by phase, labels that are
  background where a drawn scan is below 0.01, mixtures of displacements to all scans.
- Several atlases (the paper has one): each sample and each step of the autoencoder draws one; all vote on a new scan.

Ours differs: displacements sample with aligned corners, labels are warped linearly, grids have any size. The published
epochs (10, 10, 10, 100) and batches (4, 16, 1, 2) make about 18, 5, 73 and 4 % of the steps, the shares of `official`.
Numbers of steps and the default shares are ours. Light networks differ, see `StyleEncoder`, `AppearanceModel` and
`FlowAutoencoder`; their findings are in "SST in short runs", docs/benchmarks/LOG.md.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn

from stages.config import TrainSettings
from stages.generating.drawn import DrawnScans
from stages.methods.networks import registration_network, segmentation_network
from stages.methods.phases import Phase, Player, Terms, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Page, Recipe, Task, Train
from stages.methods.registration_losses import SIMILARITIES, SMOOTHNESSES
from stages.methods.schedules import full_or_light_rate, published_training, short_training
from stages.methods.sst_looks import sample_looks
from stages.methods.sst_pages import show_codes, show_codes_together, show_shapes, show_styles
from stages.methods.sst_settings import Settings
from stages.parts.batches.drawing import Sampler
from stages.parts.batches.labelled import generated_samples
from stages.parts.batches.pairs import one_atlas_and_scans, two_scans
from stages.parts.networks.appearance import AppearanceModel
from stages.parts.networks.discriminators import LatentDiscriminator
from stages.parts.networks.flow_autoencoder import FlowAutoencoder
from stages.parts.networks.plain_unet import PlainUNet
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.style import CODE, MomentumContrast, StyleEncoder
from stages.parts.networks.styled_registration import StyledRegistration
from stages.parts.networks.voxelmorph import StridedUNet
from stages.parts.players import flow as flows
from stages.parts.players import style as styles
from stages.parts.players.flow import EncodeFlows, FlowsOfAtlas
from stages.parts.players.judging import JudgeFlows, JudgeStyles, Own, fake, real
from stages.parts.players.registering import RegisterPair, similarity
from stages.parts.players.segmenting import (
    Segment,
    overlap_and_cross_entropy,
    pooled_overlap,
    rarity_weighted_cross_entropy,
)
from stages.parts.players.style import Contrast, ContrastStyles, RegisterStyled, Transfer
from stages.parts.synthesis import Synthesis


def build(task: Task, settings: Settings) -> Recipe:
    light = settings.registration_network == "light"
    F = flow_model(settings, task)
    with task.initialises("autoencoder"):
        G_flow = FlowAutoencoder(task.shape, light=light)
    D_flow = None
    if settings.judging_flows:
        D_flow = latent_discriminator("flow_discriminator", task, G_flow.code_size, layers=2, width=256)
    S = segmentation(settings, task)
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
            flow_pre_training(R.transformer or F, settings),
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
        "segmentation",
        trains=S,
        forward=Segment(S),
        loss=WeightedSum(**SEGMENTATION_TERMS[settings.segmentation_loss]),
        weight_decay=settings.segmentation_weight_decay,
    )
    return Recipe(
        networks={name: network for name, network in networks.items() if network is not None},
        rounds=[
            [
                Train("registration", [*learning, autoencoder(R, G_flow, D_flow, settings)], pages=pages),
                Generate([DrawnScans(synthesis, settings.samples, settings.label_above)], borrowed=borrowed),
                Train(
                    "segmentation",
                    [Phase("samples", batches=generated_samples, players=[segment])],
                    uses=["registration", "generated"],
                ),
            ]
        ],
        answer=Answer(network=S, registers=R, flat_borders=settings.flat_borders),
    )


SEGMENTATION_TERMS: dict[str, Terms] = {
    "dice-ce": {"overlap": (1.0, overlap_and_cross_entropy)},
    "sst": {"cross_entropy": (1.0, rarity_weighted_cross_entropy), "overlap": (0.2, pooled_overlap)},
}


def segmentation(settings: Settings, task: Task) -> nn.Module:
    """S, by its name in the settings."""
    if settings.segmentation_network != "sst":
        return segmentation_network(settings.segmentation_network, task)
    with task.initialises("segmentation"):
        return PlainUNet(task.channels, task.num_classes, task.shape)


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
    T = flow_model(settings, task, name="transformer") if settings.transformer == "fixed" else None
    return StyledRegistration(F, A, E, code_of=settings.style_code, transformer=T)


def flow_model(settings: Settings, task: Task, *, name: str = "registration") -> RegistrationNetwork:
    """F or T, by its network's name in the settings."""
    if settings.registration_network == "light":
        return registration_network("light", task, diffeomorphic=settings.diffeomorphic, name=name)
    with task.initialises(name):
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
        players=[
            Player("flow", trains=F, forward=RegisterPair(F), loss=loss, weight_decay=settings.weight_decay),
        ],
        fades=settings.fading,
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


def judge_of_styles(
    R: StyledRegistration, D_style: LatentDiscriminator | None, settings: Settings, own: Own = "moving"
) -> list[Player]:
    """The player of D_style, if there is a D_style."""
    if D_style is None:
        return []
    return [
        Player(
            "style-discriminator",
            D_style,
            JudgeStyles(R.style.encoder, D_style, own),
            WeightedSum(real=(0.5, real), fake=(0.5, fake)),
            momentum=0.5,
            paces=[(D_style, settings.pace)],
            weight_decay=settings.weight_decay,
        )
    ]


def style_pre_training(R: StyledRegistration, D_style: LatentDiscriminator | None, settings: Settings) -> Phase:
    """The encoder alone: L_vol.cl + L_adv."""
    D_style = D_style if settings.judging else None
    encoder = Player(
        "style",
        trains=R.style.encoder,
        forward=ContrastStyles(R.style, R.transformer or R.flow, D_style),
        loss=WeightedSum(
            contrast=(1.0, Contrast(settings.temperature)),
            adversarial=(settings.judging, styles.adversarial),
        ),
        paces=[(R.style.encoder, settings.pace)],
        weight_decay=settings.weight_decay,
    )
    return Phase(
        "style",
        batches=pairs(settings, "pair"),
        share=settings.style_share,
        batch_size=settings.style_batch_size,
        players=[encoder, *judge_of_styles(R, D_style, settings)],
        fades=settings.fading,
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
                forward=Transfer(R, D_style, own=settings.own_look),
                loss=WeightedSum(**of_styles, **flow_terms(settings)),
                paces=paces,
            )
        ]
    else:
        players = [
            Player(
                "appearance",
                trains=nn.ModuleList(encoder_and_appearance),
                forward=Transfer(R, D_style, registers=False, own=settings.own_look),
                loss=WeightedSum(**of_styles),
                paces=paces,
            ),
            Player("flow", trains=R.flow, forward=RegisterStyled(R), loss=WeightedSum(**flow_terms(settings))),
        ]
    return Phase(
        "joint",
        batches=pairs(settings, "each"),
        share=1 - settings.flow_share - settings.style_share - settings.autoencoder_share,
        players=[*players, *judge_of_styles(R, D_style, settings, settings.own_look)],
        batch_size=settings.joint_batch_size,
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
            weight_decay=settings.weight_decay,
        )
    ]
    if D_flow is not None:
        loss = WeightedSum(real=(0.5, real), fake=(0.5, fake))
        forward = JudgeFlows(of_atlas, G_flow, D_flow)
        paces = [(D_flow, settings.pace)]
        players.append(
            Player(
                "flow-discriminator", D_flow, forward, loss, momentum=0.5, paces=paces,
                weight_decay=settings.weight_decay,
            )
        )  # fmt: skip
    return Phase(
        "autoencoder",
        batches=partial(one_atlas_and_scans, mix=settings.mix_flows),
        share=settings.autoencoder_share,
        players=players,
        batch_size=settings.autoencoder_batch_size,
        fades=settings.fading,
    )


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(2000, batch_size=2, learning_rate=1e-3, augmentation="none")
    return published_training(100_000, batch_size=4, learning_rate=2e-4, augmentation="none")


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network in ("brbs", "sst"):
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
