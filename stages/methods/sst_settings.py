"""Settings of `sst`: its presets, switches and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import MethodStage
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName
from stages.methods.registration_losses import Similarity, Smoothness
from stages.methods.settings import ANSWER, GENERATE, SEGMENT, AnswerSettings
from stages.methods.sst_looks import other_registration


class Settings(AnswerSettings):
    """Settings of `sst`; `appearance` and `joint` are the rows of the paper's Table 2, `samples` is its Fig. 7."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "temperature": 0.7, "jitter": False, "transformer": "fixed", "segmentation_network": "sst",
            "segmentation_loss": "sst",
        },
        "official": {
            "style_code": "key", "transformer": "fixed", "own_look": "fixed",
            "appearance_weight": 2.5, "flow_weight": 0.5, "smoothness_weight": 0.2,
            "adversarial_weight": 0.05, "first_adversarial_weight": 0.5, "autoencoder_image_weight": 1.0,
            "mix_flows": True, "sampling": "interpolate", "label_above": 0.01,
            "style_batch_size": 16, "joint_batch_size": 1, "autoencoder_batch_size": 2,
            "flow_share": 0.18, "style_share": 0.05, "autoencoder_share": 0.04,
            "weight_decay": 1e-4, "fading": True,
            "segmentation_network": "sst", "segmentation_loss": "sst", "segmentation_weight_decay": 1e-6,
            "train_reg": {"learning_rate": 1e-4}, "train_seg": {"steps": 185_000, "learning_rate": 2e-4},
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
    segmentation_network: Annotated[SegmentationName | Literal["sst"], SEGMENT] = Field(
        "brbs", description=f"S: sst (the published one, wide and without normalisation), {SEGMENTATION_NAMES}"
    )
    segmentation_loss: Annotated[Literal["dice-ce", "sst"], SEGMENT] = Field(
        "dice-ce",
        description="Loss of S: Dice with cross-entropy; or sst: cross-entropy that weighs rare classes more, and 0.2 "
        "of the Dice of all classes together.",
    )
    segmentation_weight_decay: Annotated[float, SEGMENT] = Field(0.0, ge=0, description="L2 penalty of Adam for S.")
    diffeomorphic: bool = Field(False, description="The flow model predicts a velocity field, which is integrated.")
    appearance: bool = Field(True, description="Use an appearance model; off: samples are the warped atlas (Table 2).")
    joint: bool = Field(
        True, description="Appearance and flow model train each other by gradients; off: they do not (Table 2)."
    )
    style_code: Literal["query", "key"] = Field(
        "query",
        description="Whose codes the appearance model sees: the encoder's (query), or its momentum copy's (key).",
    )
    transformer: Literal["current", "fixed"] = Field(
        "current",
        description="T, which makes positive keys: the flow model as it is; or fixed: a flow model of its own, which "
        "`flow_share` trains; the flow model of the joint phase then starts anew.",
    )
    own_look: Literal["moving", "fixed"] = Field(
        "moving", description="Which scan of a joint phase's pair is the query, and is redrawn in its own look (L_id)."
    )
    weight_decay: float = Field(
        0.0, ge=0, description="L2 penalty of Adam for all networks but S, and the joint phase's three."
    )
    fading: bool = Field(
        False,
        description="Learning rates fall linearly in the second half of the phases other than the joint one.",
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
    mix_flows: bool = Field(
        False, description="The autoencoder learns mixtures of three displacements, drawn from those to all scans."
    )
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
    joint_batch_size: int | None = Field(
        None, ge=1, description="Pairs in a step of the joint phase; default: the run's."
    )
    autoencoder_batch_size: int | None = Field(
        None, ge=1, description="Displacements in a step of the autoencoder; default: the run's."
    )
    sampling: Annotated[Literal["prior", "interpolate"], GENERATE] = Field(
        "prior", description="Shapes: from the prior, or between the shapes of three unlabelled scans."
    )
    looks: Annotated[Literal["prior", "memory"], GENERATE] = Field(
        "prior",
        description="Looks: from the prior, or between two similar looks of the last steps of training.",
    )
    samples: Annotated[int, GENERATE] = Field(1850, ge=1, description="Labelled scans to draw.")
    label_above: Annotated[float, GENERATE] = Field(
        0.0, ge=0, lt=1, description="Labels become background where a drawn scan is darker than this."
    )
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
