"""OS-MedSeg: a student learns from warped atlases, led by a teacher that reconstructs the real scans they imitate.

Zhou et al., "Distillation Learning Guided by Image Reconstruction for One-Shot Medical Image Segmentation"
(the text submitted to IEEE; code github.com/NoviceFodder/OS-MedSeg).

Readings:
- *Eq. 2*: a scan and its atlas are the positive pair, the other scans are negatives. The scan is the anchor here: if
  the atlas were, then with one atlas and a batch of two the two terms would cancel. The published code takes NT-Xent
  over all rows, where with one atlas the atlas is its own negative (preset `official`).
- *Hint*: by default no gradient reaches the teacher's features, so that the student follows and the teacher
  reconstructs. The published forward pass detaches both, so that the hint teaches nothing (`hint_detach: both`).
  Without reconstruction (Table IV) nothing but hints can teach the teacher, and they reach it, too.
- *Layers of hints*: "the last two layers" are those at half and full resolution in the code (`hint_from: code`); Fig. 3
  draws them one level earlier, after RCB(64) and RCB(32) (`hint_from: figure`).
- *NCC*: Eq. 6 has sums over the window. The published code has means with the same floor of 1e-5, which flat regions
  fall below (`similarity: lncc-means`, preset `official`).
- *Order*: both networks are separate, encoder to head, as in Fig. 3 and in the code, and the published network trains
  them jointly. With the light and the full network the teacher learns first (`teacher_share`) and then stands still.
  With its features detached, Eq. 12 is a sum of what each network learns, and a short training cannot wait for hints.
- *Augmentation*: the paper mentions none. Where there is some, the two images of a couple move alike, and only the
  student's is recoloured.
- *Normalisation* is the code's InstanceNorm (Fig. 3 says layer normalisation).
- *Reconstruction head*: a plain convolution. The code normalises its output, which then cannot match the scan's
  intensities.

Ours differs: residual units in the student, too (as in the paper; the code has them in the teacher only), trilinear
upsampling, atlases as the user names them (the paper picks one by its similarity to the test set). Epochs count the
paper's scans, 334 of OASIS or 29 of BCV (`scans_per_epoch`). On CPUs: the `light` networks, or `registration: instance`
(ours), which needs no `train-reg`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BeforeValidator, Field, model_validator
from torch import nn

from stages.config import TrainSettings
from stages.errors import LrlsError
from stages.generating.warped_atlases import WarpedAtlases
from stages.methods.networks import segmentation_network
from stages.methods.phases import Phase, Player, Terms, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Recipe, Task, Train, segmentation_alone
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import full_or_light_rate, joint_training, short_training
from stages.methods.settings import ANSWER, GENERATE, SEGMENT
from stages.parts.batches.labelled import triples
from stages.parts.batches.pairs import atlas_and_different_scans, atlas_and_scan
from stages.parts.instance import InstanceOptimisation
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.siamese import PooledSiameseUNet, SiameseUNet, instance_block
from stages.parts.networks.teacher_student import OwnHead, ResidualUNet, TeacherAndStudent
from stages.parts.networks.unet import LightUNet, UNet
from stages.parts.players.distilling import (
    Detach,
    Distil,
    HintFrom,
    Reconstruct,
    cosine_hint,
    l2_hint,
    look_inside,
    reconstruction,
)
from stages.parts.players.registering import (
    RegisterAndEmbed,
    RegisterPair,
    contrast,
    contrast_all,
)
from stages.parts.players.segmenting import Segment, cross_entropy, overlap_and_cross_entropy


class Settings(RegistrationSettings):
    """Settings of `os-medseg`; the switches are the rows of the paper's Tables III-V and Fig. 7."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "abdomen": {"similarity": "mi", "smoothness": "bending", "hint_weight": 10.0, "scans_per_epoch": 29},
        "official": {"similarity": "lncc-means", "contrast": "nt-xent", "hint_detach": "both"},
        "light": {  # instance optimisation is ours; a teacher cost DSC in short runs, see docs/benchmarks/LOG.md
            "registration": "instance",
            "segmentation_network": "light",
            "segmentation_loss": "dice-ce",
            "teacher": False,
            "train_seg": {"steps": 1000, "batch_size": 1, "augmentation": "mild"},
        },
    }
    preset: Annotated[str, ANSWER] = Field(
        "default",
        description="light: minutes on CPU cores; abdomen: the paper's choices and steps for BCV; official: the "
        "published code's readings.",
    )
    registration: Literal["learned", "instance"] = Field(
        "learned", description="learned: R; instance (ours): every couple's field is optimised on its own, as in best."
    )
    registration_network: Literal["os-medseg", "light"] = Field(
        "os-medseg", description="R: the paper's, or a light one that works at half resolution."
    )
    diffeomorphic: bool = Field(False, description="R predicts a velocity field, which is integrated.")
    smoothness_weight: float = Field(1.0, ge=0, description="alpha, weight of L_smooth.")
    contrastive_weight: float = Field(0.01, ge=0, description="beta, weight of L_contrast; 0 allows batches of one.")
    contrast: Literal["scans", "nt-xent"] = Field(
        "scans", description="Negatives: the other scans of the batch (Eq. 2), or all other rows (published code)."
    )
    scans_per_epoch: int = Field(
        334,
        ge=1,
        le=1_000_000,
        description="Scans of an epoch (OASIS: 334, BCV: 29). The paper's networks take 500 epochs, then 200, by twos.",
    )
    most_samples: Annotated[int | None, GENERATE] = Field(
        None, ge=1, description="Most warped atlases to write; null: all couples of atlas and scan."
    )
    segmentation_network: Annotated[
        Literal["os-medseg", "full", "light"],
        BeforeValidator(lambda name: "os-medseg" if name == "residual" else name),
        SEGMENT,
    ] = Field(
        "os-medseg",
        description="Student and teacher: the paper's (other methods call it residual, which is understood here, too), "
        "BRBS's U-Net with InstanceNorm (full), or light.",
    )
    teacher: Annotated[bool, SEGMENT] = Field(
        True, description="A teacher gives hints; off: the student alone (Table III: M1, M2)."
    )
    teacher_share: Annotated[float | None, SEGMENT] = Field(
        None,
        ge=0,
        lt=1,
        description="Share of train-seg in which the teacher learns alone and then stands still; 0: both learn "
        "together; null: 0 for the paper's network, otherwise 0.25.",
    )
    student_sees: Annotated[Literal["warped", "real"], SEGMENT] = Field(
        "warped", description="Warped atlases (SI+SL), or real scans under the same labels (RI+SL); Table III."
    )
    segmentation_loss: Annotated[Literal["ce", "dice-ce"], SEGMENT] = Field(
        "ce", description="L_seg: cross-entropy, or Dice with cross-entropy."
    )
    segmentation_weight: Annotated[float, SEGMENT] = Field(
        1.0, ge=0, description="Weight of L_seg; 0: without it (Table IV)."
    )
    reconstruction_weight: Annotated[float, SEGMENT] = Field(1.0, ge=0, description="lambda_recon, weight of L_recon.")
    hint_weight: Annotated[float, SEGMENT] = Field(1.0, ge=0, description="lambda_hint, weight of L_hint.")
    hint_loss: Annotated[Literal["cosine", "l2"], SEGMENT] = Field(
        "cosine", description="Cosine similarity, or squared error (Table V)."
    )
    hint_layers: Annotated[int, SEGMENT] = Field(
        2, ge=1, le=5, description="How many of the decoder's last layers give hints (Fig. 7)."
    )
    hint_from: Annotated[HintFrom, SEGMENT] = Field(
        "code",
        description="Layers of hints: the decoder's last ones (code), or those one level before (figure: Fig. 3).",
    )
    hint_detach: Annotated[Detach | None, SEGMENT] = Field(
        None,
        description="Whose features the hint's gradient does not reach; null: the teacher's, or nobody's where "
        "reconstruction_weight is 0 and hints alone can teach the teacher.",
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.registration == "instance" and (self.similarity, self.smoothness) != ("lncc", "diffusion"):
            raise ValueError("registration: instance knows similarity lncc and smoothness diffusion only")
        hints = self.teacher and self.hint_weight > 0
        if hints and self.hint_detach == "teacher" and not self.reconstruction_weight:
            raise ValueError(
                "with reconstruction_weight 0 and hint_detach: teacher, nothing teaches the teacher, and the student "
                "would follow random features; leave hint_detach out, or set it to none"
            )
        if hints and self.detaches == "none" and self.teacher_share:
            raise ValueError(
                "hints teach the teacher (hint_detach: none, or reconstruction_weight 0), which needs teacher_share 0"
            )
        return self

    @property
    def detaches(self) -> Detach:
        """Whose features the hint's gradient does not reach."""
        return self.hint_detach or ("teacher" if self.reconstruction_weight else "none")

    @property
    def alone(self) -> float:
        """Share of train-seg in which the teacher learns alone; 0 where it learns nothing or gives no hints."""
        if not (self.teacher and self.reconstruction_weight and self.hint_weight):
            return 0.0
        if self.teacher_share is None:
            return 0.0 if self.segmentation_network == "os-medseg" or self.detaches == "none" else 0.25
        return self.teacher_share


def build(task: Task, settings: Settings) -> Recipe:
    hinted = settings.teacher and settings.hint_weight > 0 and settings.detaches != "both"
    if not settings.segmentation_weight and not hinted:
        raise LrlsError(
            "methods.os-medseg: segmentation_weight is 0 and no hint reaches the student, which leaves it nothing to "
            "learn from; set segmentation_weight, or teacher and hint_weight, and hint_detach other than both."
        )
    learned = settings.registration == "learned"
    R = contrastive_network(settings, task) if learned else None
    student = student_or_teacher(settings.segmentation_network, task)
    levels = len(cast(UNet | LightUNet, getattr(student, "body", student)).up) + 1
    layers = levels - (settings.hint_from == "figure")
    if settings.teacher and settings.hint_layers > layers:
        raise LrlsError(
            f"methods.os-medseg.hint_layers: found {settings.hint_layers}, expected at most {layers}, which is what "
            f"the decoder of this segmentation_network has on this grid (hint_from: {settings.hint_from}); "
            "set hint_layers lower."
        )
    l_seg = cross_entropy if settings.segmentation_loss == "ce" else overlap_and_cross_entropy
    segmentation = WeightedSum(segmentation=(settings.segmentation_weight, l_seg))
    if not task.num_unlabeled:
        return segmentation_alone(student, WeightedSum(segmentation=(1.0, l_seg)), Answer(network=student))
    both = TeacherAndStudent(student_or_teacher(settings.segmentation_network, task, reconstructs=True), student)
    reconstructs: Terms = {"reconstruction": (settings.reconstruction_weight, reconstruction)}  # lambda_recon L_recon
    still = settings.alone > 0
    student_alone = Player("student", trains=student, forward=Segment(student), loss=segmentation)
    teacher_alone = Player(
        "reconstruction", trains=both.teacher, forward=Reconstruct(both.teacher), loss=WeightedSum(**reconstructs)
    )
    distillation = Player(
        "distillation",
        trains=student if still else both,
        forward=Distil(both, settings.hint_layers, settings.detaches, settings.hint_from, still),
        loss=WeightedSum(
            **segmentation.terms,
            **({} if still else reconstructs),
            hint=(settings.hint_weight, cosine_hint if settings.hint_loss == "cosine" else l2_hint),  # lambda_hint
        ),
    )
    batches = partial(triples, real=settings.student_sees == "real")
    phases = [Phase("student", batches=batches, players=[student_alone])]
    if settings.teacher:
        phases = [Phase("distillation", batches=batches, players=[distillation], share=1 - settings.alone)]
    if settings.teacher and still:
        phases.insert(0, Phase("reconstruction", batches=batches, players=[teacher_alone], share=settings.alone))
    networks: dict[str, nn.Module | None] = {
        "registration": R,
        "segmentation": student,
        "teacher": both.teacher if settings.teacher else None,
    }
    pages = (
        {"distillation": partial(look_inside, both, settings.hint_layers, settings.hint_from)}
        if settings.teacher
        else {}
    )
    generate = Generate([WarpedAtlases(most=settings.most_samples)])
    distil = Train("segmentation", phases, uses=["registration", "generated"], pages=pages)
    return Recipe(
        networks={name: network for name, network in networks.items() if network is not None},
        rounds=[[*([Train("registration", [registration_phase(R, settings)])] if R else []), generate, distil]],
        answer=Answer(
            network=student,
            registers=R or InstanceOptimisation(smoothness=settings.smoothness_weight, spacing_mm=task.spacing_mm),
        ),
    )


def contrastive_network(settings: Settings, task: Task) -> RegistrationNetwork:
    """R, by its name in the settings."""
    with task.initialises("registration"):
        if settings.registration_network == "light":
            body: nn.Module = PooledSiameseUNet(task.shape, instance_block, light=True)
        else:
            body = SiameseUNet(task.shape)
        return RegistrationNetwork(body, diffeomorphic=settings.diffeomorphic)


def registration_phase(R: RegistrationNetwork, settings: Settings) -> Phase:
    """L_reg; without L_contrast, batches may repeat scans and nothing is embedded."""
    contrasts = settings.contrastive_weight > 0
    return Phase(
        "registration",
        batches=atlas_and_different_scans if contrasts else atlas_and_scan,
        players=[
            Player(
                "registration",
                trains=R,
                forward=RegisterAndEmbed(R) if contrasts else RegisterPair(R),
                loss=WeightedSum(
                    **registration_terms(settings),  # L_sim, alpha L_smooth
                    contrast=(  # beta L_contrast
                        settings.contrastive_weight,
                        contrast if settings.contrast == "scans" else contrast_all,
                    ),
                ),
            )
        ],
    )


def student_or_teacher(kind: str, task: Task, *, reconstructs: bool = False) -> nn.Module:
    """One image channel -> logits, or a reconstruction of the image."""
    outputs = 1 if reconstructs else task.num_classes
    role = "teacher" if reconstructs else "segmentation"
    if kind == "os-medseg":
        with task.initialises(role):
            return ResidualUNet(1, outputs, task.shape, reconstructs=reconstructs)
    network = cast(UNet | LightUNet, segmentation_network(kind, replace(task, num_classes=outputs), name=role))
    if reconstructs:
        return network
    with task.initialises("segmentation head"):
        return OwnHead(network)


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(1000, batch_size=2, learning_rate=1e-3)
    return joint_training(500 * settings.scans_per_epoch // 2, learning_rate=1e-4)


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network == "os-medseg":
        return joint_training(200 * settings.scans_per_epoch // 2, learning_rate=1e-3)
    return short_training(1000, batch_size=2, learning_rate=full_or_light_rate(settings.segmentation_network))


METHOD = Method(
    name="os-medseg",
    summary="a student learns from warped atlases, led by a teacher that reconstructs the real scans",
    source="Zhou et al., OS-MedSeg",
    settings=Settings,
    recipe=build,
    train_reg=train_reg,
    train_seg=train_seg,
)
