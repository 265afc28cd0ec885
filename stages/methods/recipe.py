"""What a method is made of. A recipe is one expression over these; it should read like the paper's figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from stages.config import MethodSettings, TrainSettings
from stages.parts.batches.drawing import Sampler
from stages.parts.batches.pairs import LabelledPair
from stages.parts.batches.scans import Scans
from stages.parts.batches.space_style import Degree
from stages.parts.instance import InstanceOptimisation
from stages.parts.networks.blocks import small_head
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.unet import LightUNet, UNet
from stages.parts.networks.voxelmorph import VoxelMorphUNet
from stages.parts.panels import Panel, Points
from stages.parts.synthesis import Synthesis


@dataclass(frozen=True)
class Task:
    """What the data ask of a method.

    Args:
        shape: grid (D, H, W).
        num_classes: background included.
        num_atlases: labelled scans.
    """

    shape: tuple[int, int, int]
    num_classes: int
    num_atlases: int


@dataclass(frozen=True)
class Ramp:
    """A weight that changes linearly from the first step of a phase on, and stays when it has arrived.

    Args:
        steps: after which it has; None: as many as `most` says.
        most: share of the phase that it takes at most.
    """

    start: float
    end: float
    steps: int | None = None
    most: float = 1.0

    def __call__(self, step: int, of: int | None = None) -> float:
        """The weight in a step, from 0, of a phase of so many."""
        limits = [n for n in (self.steps, None if of is None else int(self.most * of)) if n is not None]
        steps = min(limits, default=1)
        return self.start + (self.end - self.start) * min(step / max(steps, 1), 1.0)


Term = tuple[float | Ramp, Callable[[Any], Tensor]]  # weight, part of the loss
Terms = dict[str, Term]


class WeightedSum:
    """Named terms with weights; the names become log keys. A weight of 0 switches a term off: it is not computed."""

    def __init__(self, **terms: Term) -> None:
        self.terms = {name: term for name, term in terms.items() if term[0] != 0}

    def __call__(self, state: Any, step: int = 0, of: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted total and unweighted terms.

        Args:
            step, of: step of the phase, from 0, and how many it has; for weights that change.
        """
        values = {name: part(state) for name, (_, part) in self.terms.items()}
        weights = {name: w(step, of) if isinstance(w, Ramp) else w for name, (w, _) in self.terms.items()}
        return sum(weights[name] * value for name, value in values.items()), values  # type: ignore[return-value]


@dataclass(frozen=True)
class Player:
    """Owns a network, its optimiser and its loss; all players of a phase move in turn in every step.

    Args:
        name: log key.
        trains: the network that moves; all others stand still while it does.
        forward: batch -> what the loss looks at.
        loss: terms over that.
        learning_rate: overrides the run's, where a paper has several.
        momentum: Adam's beta_1.
        paces: parts of the network whose learning rate is so many times the player's.
        weight_decay: L2 penalty of Adam.
        ema: overrides the run's decay of averaged weights.
        every: moves in every so-manieth step only, from the first one on.
    """

    name: str
    trains: nn.Module
    forward: Callable[[Any], Any]
    loss: WeightedSum
    learning_rate: float | None = None
    momentum: float = 0.9
    paces: Sequence[tuple[nn.Module, float]] = ()
    weight_decay: float = 0.0
    ema: float | None = None
    every: int = 1


@dataclass(frozen=True)
class Phase:
    """A stretch of training: batches and the players that learn from them.

    Args:
        share: part of the run's steps that this phase takes.
        batch_size: overrides the run's, where a paper has several.
    """

    name: str
    batches: Sampler
    players: Sequence[Player]
    share: float = 1.0
    batch_size: int | None = None


@dataclass(frozen=True)
class PathBankWriter:
    """`generate` stores, per couple (atlas, scan), the displacement atlas -> scan and the style map (BRBS, S3P).

    Args:
        space, style: draw the degrees of finished samples and of the picture; without `style` no style maps are made,
            and no scan is registered back to its atlas for them.
        most: couples at most; atlases take turns, so that every scan comes before one comes twice. None: all.
        style_map: (atlas, scan) -> what the atlas gains to look like the scan, (N, 1, D, H, W) all three; None: the
            scan, registered back to the atlas, minus the atlas.
        coupled: space and style of a finished sample are one scan's.
    """

    space: Degree
    style: Degree | None
    most: int | None = None
    style_map: nn.Module | None = None
    coupled: bool = False


@dataclass(frozen=True)
class PropagatedLabels:
    """`generate` stores every unlabelled scan with the label that the atlases vote for."""


@dataclass(frozen=True)
class WarpedAtlases:
    """`generate` stores, per couple (atlas, scan), the atlas warped to the scan, image and label (nearest neighbour).

    Args:
        most: couples at most, as of `PathBankWriter`.
    """

    most: int | None = None


@dataclass(frozen=True)
class SampledScans:
    """`generate` stores atlases in shapes and looks that are drawn anew, image and label.

    Args:
        synthesis: draws them.
        count: how many; the first ones are the same whatever the number.
    """

    synthesis: Synthesis
    count: int


@dataclass(frozen=True)
class PseudoLabels:
    """`generate` stores what the segmentation network of the round before says of every unlabelled scan, screened.

    Args:
        threshold: tau, see `stages.parts.batches.pseudo_labels.screen`.
    """

    threshold: float


@dataclass(frozen=True)
class SelfTraining:
    """What a round does after the first training: `generate` by the networks of the round before, then both go on.

    Args:
        rounds: how many, after round 0, which is the recipe's own.
        generate, train_registration, train_segmentation: of each round, in this order.
    """

    rounds: int
    generate: PseudoLabels
    train_registration: Sequence[Phase]
    train_segmentation: Sequence[Phase]


Classical = Callable[[np.ndarray, np.ndarray, tuple[float, float, float], int], np.ndarray]
"""(moving, fixed, spacing_mm, seed) -> displacement (3, D, H, W) in voxels; runs in a process of its own."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the stages need to run a method; None or empty: the method has no such part.

    Args:
        registration: the network that registers, (moving, fixed) -> displacement; its weights, and those of `helpers`,
            are what `train-reg` writes.
        helpers: further networks that `train-reg` trains.
        classical: registers without learning, in processes of its own.
        instance: registers without learning, by gradient descent, on the training device.
        segmentation: the network that segments new scans; without it, the atlases' labels are propagated.
        scores_pseudo_labels: `eval` also scores the pseudo-labels of the rounds, where their scans have label maps.
        fuse: the answer is the mean of the network's probabilities and the propagated ones.
        flat_borders: where the atlases draw a border as one plane of voxels, the network's answer has one, too.
        segmentation_helpers: further networks that `train-seg` trains; its artifact holds them, and nothing else uses
            them.
        train_registration, train_segmentation: phases of the two stages.
        generate: what `lrls generate` writes.
        self_training: the rounds that follow; see `at_round`.
        teacher: in those rounds, the segmentation network as the round before left it; it stands still.
        registration_pictures: pages that `train-reg` draws besides its own: name -> (a batch of one atlas and one scan
            -> its row).
        registration_pages: pages of the whole cohort that `train-reg` draws: name -> (the data -> points, or rows of
            case, panels).
        segmentation_pictures: pages that `train-seg` draws besides its own: name -> (the data -> rows of case, panels).
    """

    registration: nn.Module | None = None
    helpers: dict[str, nn.Module] = field(default_factory=dict)
    classical: Classical | None = None
    instance: InstanceOptimisation | None = None
    segmentation: nn.Module | None = None
    scores_pseudo_labels: bool = False
    fuse: bool = False
    flat_borders: bool = False
    segmentation_helpers: dict[str, nn.Module] = field(default_factory=dict)
    train_registration: Sequence[Phase] = ()
    train_segmentation: Sequence[Phase] = ()
    generate: PathBankWriter | PropagatedLabels | WarpedAtlases | SampledScans | PseudoLabels | None = None
    self_training: SelfTraining | None = None
    teacher: nn.Module | None = None
    registration_pictures: Mapping[str, Callable[[LabelledPair], Sequence[Panel]]] = field(default_factory=dict)
    registration_pages: Mapping[str, Callable[[Scans], Points | Sequence[tuple[str, Sequence[Panel]]]]] = field(
        default_factory=dict
    )
    segmentation_pictures: Mapping[str, Callable[[Scans], Sequence[tuple[str, Sequence[Panel]]]]] = field(
        default_factory=dict
    )

    @property
    def last_round(self) -> int:
        """Its number; 0 where there are no rounds."""
        return self.self_training.rounds if self.self_training else 0

    def at_round(self, number: int) -> Recipe:
        """What the stages do in a round; the networks are the same ones."""
        if number == 0 or self.self_training is None:
            return self
        return replace(
            self,
            generate=self.self_training.generate,
            train_registration=self.self_training.train_registration,
            train_segmentation=self.self_training.train_segmentation,
        )

    @property
    def registers(self) -> bool:
        return any(each is not None for each in (self.registration, self.classical, self.instance))

    @property
    def looks_at_unlabeled(self) -> bool:
        """Whether anything is learned from unlabelled scans."""
        return bool(self.train_registration or (self.generate and self.train_segmentation))

    @property
    def registration_networks(self) -> dict[str, nn.Module]:
        return ({"registration": self.registration} if self.registration else {}) | self.helpers

    @property
    def segmentation_networks(self) -> dict[str, nn.Module]:
        return ({"segmentation": self.segmentation} if self.segmentation else {}) | self.segmentation_helpers


@dataclass(frozen=True)
class Method:
    """A row of `lrls methods`.

    Args:
        name: as the user types it.
        summary: one line.
        source: the publication or library.
        settings: model of `methods.<name>` in the configuration.
        train_reg, train_seg: the recipe's own numbers, given the settings; the configuration's come on top.
        recipe: builds it; networks are initialised from torch's global generator.
        cohort: the part that it learns from: "train" (atlases and unlabelled scans) or "supervised".
        registration_share: part of a time budget that goes to `train-reg`, where both stages train.
    """

    name: str
    summary: str
    source: str
    settings: type[MethodSettings]
    recipe: Callable[[Task, Any], Recipe]
    train_reg: Callable[[Any], TrainSettings] | None = None
    train_seg: Callable[[Any], TrainSettings] | None = None
    cohort: Literal["train", "supervised"] = "train"
    registration_share: float = 0.5


class AnswerSettings(MethodSettings):
    """Settings of methods that answer by a segmentation network."""

    ANSWERS: ClassVar[tuple[str, ...]] = ("flat_borders",)

    flat_borders: bool = Field(
        False,
        description="Where the atlases draw a border as one plane of voxels, so does the answer; "
        "where that lies, network and registration decide together.",
    )


RegistrationName = Literal["published", "light"]
SegmentationName = Literal["published", "full", "light"]
SEGMENTATION_NAMES = "published (BRBS's U-Net), full (the same with InstanceNorm), or light (half resolution)."


def segmentation_network(name: str, task: Task) -> nn.Module:
    """A segmentation network by its name in the configuration: one image channel -> logits."""
    if name == "light":
        return LightUNet(1, task.num_classes, task.shape)
    return UNet(1, task.num_classes, task.shape, per_group={"published": 4, "full": 1}[name])


def registration_network(name: str, task: Task, *, diffeomorphic: bool) -> RegistrationNetwork:
    """A registration network by its name in the configuration: [fixed, moving] -> displacement."""
    if name == "light":
        light = LightUNet(2, 3, task.shape, smooth=True)
        small_head(light.head)
        return RegistrationNetwork(light, diffeomorphic=diffeomorphic, antisymmetric=True)
    body = {"published": UNet, "voxelmorph": VoxelMorphUNet}[name](2, 3, task.shape)
    return RegistrationNetwork(body, diffeomorphic=diffeomorphic)


def published_training(
    steps: int, *, batch_size: int = 1, learning_rate: float = 1e-4, augmentation: Literal["none", "paper", "strong"]
) -> TrainSettings:
    """The papers' common schedule: Adam, constant, 1e-4 in most."""
    return TrainSettings(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, schedule="constant", optimizer="adam", ema=0.0,
        augmentation=augmentation,
    )  # fmt: skip


def short_training(steps: int, *, batch_size: int = 1, learning_rate: float = 3e-3) -> TrainSettings:
    """A schedule of minutes, for the light and the full networks: AdamW, one cycle."""
    return TrainSettings(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, schedule="one-cycle", optimizer="adamw",
        ema=0.0, augmentation="strong",
    )  # fmt: skip
