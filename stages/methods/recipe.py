"""The building blocks of a method. A recipe is one expression over them; it should read like the paper's figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from stages.artifacts.made import Role
from stages.artifacts.manifest import Artifact
from stages.artifacts.weights import Registration
from stages.config import StageName, TrainSettings
from stages.generating.propagated import PropagatedLabels
from stages.generating.writer import Writer
from stages.methods.phases import Phase, Player, WeightedSum
from stages.methods.settings import MethodSettings
from stages.parts.batches.labelled import labelled_scans
from stages.parts.batches.scans import Scans
from stages.parts.classical import Classical
from stages.parts.instance import InstanceOptimisation
from stages.parts.panels import Panel, Points
from stages.parts.players.segmenting import Segment
from stages.seeds import derive

STAGE_OF: dict[Role, StageName] = {"registration": "train-reg", "generated": "generate", "segmentation": "train-seg"}


@dataclass(frozen=True)
class Task:
    """The task that the data set a method.

    Args:
        shape: grid (D, H, W).
        num_classes: background included.
        num_atlases: labelled scans.
        num_unlabeled: scans without labels; 0: there are none.
        seed: of the networks' initial weights.
        channels: images of each scan.
        spacing_mm: of the grid (D, H, W); networks follow its ratios.
    """

    shape: tuple[int, int, int]
    num_classes: int
    num_atlases: int
    seed: int = 0
    channels: int = 1
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    num_unlabeled: int = 1

    @contextmanager
    def initialises(self, name: str) -> Iterator[None]:
        """Networks built inside draw their weights from a random stream of their own."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(self.seed, "network", name))
            yield


Page = Callable[[Scans], Points | Sequence[tuple[str, Sequence[Panel]]]]
"""The cohort -> points, or rows of (case, panels)."""


@dataclass(frozen=True)
class Train:
    """A step of a round that trains, `train-reg` or `train-seg`. It writes the networks that its players move.

    Args:
        makes: the artifact that it writes.
        phases: one after the other; none: the artifact keeps what an earlier step trained.
        uses: roles of the artifacts that it reads, the newest of each. It always goes on from its own artifact of the
            round before.
        as_before: networks that stand still, with the weights that the network of this name had before the step.
        pages: further pictures, by name.
        sees_unlabeled: its batches hold unlabelled scans, although it trains S and nothing was generated from them.
        fits: fills the network's buffers from the scans, where nothing is learned by gradients; in place of phases.
    """

    makes: Literal["registration", "segmentation"]
    phases: Sequence[Phase] = ()
    uses: Sequence[Role] = ()
    as_before: Mapping[str, nn.Module] = field(default_factory=dict)
    pages: Mapping[str, Page] = field(default_factory=dict)
    sees_unlabeled: bool = False
    fits: Callable[[Scans], None] | None = None

    @property
    def share(self) -> float:
        """Steps that its phases take, in multiples of the run's."""
        return sum(phase.share for phase in self.phases)


@dataclass(frozen=True)
class Borrowed:
    """Networks that generate with another cohort's weights.

    Args:
        artifact: holds the weights.
        networks: filled from the artifact; a sub-network has the key "network/sub-network".
    """

    artifact: Registration
    networks: Mapping[str, nn.Module]


@dataclass(frozen=True)
class Generate:
    """A step of a round that writes generated data. `lrls run` skips it where no later step of the round reads it.

    Args:
        writers: write in turn into one `generated.h5`.
        borrowed: weights of another cohort, if the writers use some.
    """

    writers: Sequence[Writer]
    borrowed: Borrowed | None = None

    makes: Role = field(default="generated", init=False)

    @property
    def uses(self) -> Sequence[Role]:
        return [role for role in ("registration", "segmentation") if any(role in w.uses for w in self.writers)]


Step = Train | Generate
Round = Sequence[Step]


@dataclass(frozen=True)
class Answer:
    """How a method segments a new scan.

    Args:
        network: gives class probabilities of an image; None: the atlases' labels are propagated.
        registers: a network (moving, fixed) -> displacement, a classical method, or gradient descent on each pair; data
            are generated with it, too. None: nothing is registered.
        fuse: the answer is the network's probabilities and the propagated ones together, see `parts.voting.fused`.
        flat_borders: where the atlases draw a border as one plane of voxels, the network's answer has one, too.
    """

    network: nn.Module | None = None
    registers: nn.Module | Classical | InstanceOptimisation | None = None
    fuse: bool = False
    flat_borders: bool = False


@dataclass(frozen=True)
class Recipe:
    """Everything that the stages need to run a method.

    Args:
        networks: trained and stored networks, by their names in weight files; "registration" and "segmentation"
            give the answer.
        rounds: what happens in each round, in order; most methods have one.
        answer: how a new scan is segmented.
    """

    rounds: Sequence[Round]
    answer: Answer
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def last_round(self) -> int:
        return len(self.rounds) - 1

    def step(self, role: Role, round: int) -> Step | None:
        """The step that makes an artifact in a round; None: no step does."""
        return next((step for step in self.rounds[round] if step.makes == role), None)

    def steps(self, round: int) -> list[Step]:
        """The steps that `lrls run` takes in a round: without generated data that no later step of the round reads."""
        steps = list(self.rounds[round])
        return [
            step
            for place, step in enumerate(steps)
            if isinstance(step, Train) or any("generated" in later.uses for later in steps[place + 1 :])
        ]

    def next_stage(self, round: int, stage: StageName = "train-reg") -> str:
        """The stage to go on with after one that a round does not have."""
        order: list[StageName] = ["train-reg", "generate", "train-seg"]
        own = {STAGE_OF[step.makes] for step in self.steps(round)}
        return next((later for later in order[order.index(stage) + 1 :] if later in own), "eval")

    def training_steps(self) -> list[tuple[int, Train]]:
        """(round, step) of all steps that train, in order."""
        return [
            (number, step)
            for number in range(len(self.rounds))
            for step in self.steps(number)
            if isinstance(step, Train) and step.phases
        ]

    def trained(self, step: Train) -> dict[str, nn.Module]:
        """The networks that a step writes: those that its players move, and the one that its artifact is named for."""
        moved = {
            id(parameter)
            for phase in step.phases
            for player in phase.players
            for parameter in player.trains.parameters()
        }
        return {
            name: network
            for name, network in self.networks.items()
            if name == step.makes or any(id(parameter) in moved for parameter in network.parameters())
        }

    def load(self, artifacts: Iterable[Artifact]) -> None:
        """Fill the networks from artifacts; of a network that several hold, the last one counts.

        Args:
            artifacts: in the order in which they were made; only registrations and segmentations hold networks.

        Raises:
            LrlsError: a file is damaged, or does not fit.
        """
        for artifact in artifacts:
            if isinstance(artifact, Registration):  # a Segmentation is one
                round = artifact.manifest.identity.round
                step = self.step(artifact.KIND, round)  # type: ignore[arg-type]
                assert isinstance(step, Train), "settings name the recipe that made it"
                artifact.load(self.trained(step))

    @property
    def learns_registration(self) -> bool:
        return isinstance(self.answer.registers, nn.Module)

    @property
    def looks_at_unlabeled(self) -> bool:
        """Whether anything is learned from unlabelled scans."""
        steps = [step for number in range(len(self.rounds)) for step in self.steps(number)]
        return any(
            isinstance(step, Generate) or step.sees_unlabeled or (step.makes == "registration" and step.phases)
            for step in steps
        )


def propagation(registers: Classical) -> Recipe:
    """Nothing is learned: the atlases' labels follow a classical registration."""
    return Recipe(rounds=[[Generate([PropagatedLabels()])]], answer=Answer(registers=registers))


def registration_alone(R: nn.Module, phase: Phase, **also: nn.Module) -> Recipe:
    """A network that learns registration; the atlases' labels follow it.

    Args:
        also: further networks that the phase trains, by name.
    """
    return Recipe(
        networks={"registration": R, **also},
        rounds=[[Train("registration", [phase]), Generate([PropagatedLabels()])]],
        answer=Answer(registers=R),
    )


def segmentation_alone(S: nn.Module, loss: WeightedSum, answer: Answer) -> Recipe:
    """S learns from the augmented atlases: what methods that generate from unlabelled scans become without any.

    Source: OS-MedSeg, section IV-F: without unlabelled scans OS-MedSeg and BRBS degrade to the supervised model alone.
    """
    segment = Player("segmentation", trains=S, forward=Segment(S), loss=loss)
    return Recipe(
        networks={"segmentation": S},
        rounds=[[Train("segmentation", [Phase("atlases", batches=labelled_scans, players=[segment])])]],
        answer=answer,
    )


@dataclass(frozen=True)
class Method:
    """A row of `lrls methods`.

    Args:
        name: as the user types it.
        summary: one line.
        source: the publication or library.
        settings: model of `methods.<name>` in the configuration.
        train_reg, train_seg: the recipe's own training numbers, given the settings; the configuration's come on top.
        recipe: builds the recipe.
        cohort: the scans that it learns from: "train" (atlases and unlabelled scans) or "supervised".
        align: how scans are aligned for it where `preprocess.align` says affine; None: as that says.
        channels: whether it learns from scans with several images; otherwise from one.
        registration_share: share of a time budget that goes to `train-reg`, where both stages train.
    """

    name: str
    summary: str
    source: str
    settings: type[MethodSettings]
    recipe: Callable[[Task, Any], Recipe]
    train_reg: Callable[[Any], TrainSettings] | None = None
    train_seg: Callable[[Any], TrainSettings] | None = None
    cohort: Literal["train", "supervised"] = "train"
    align: Literal["rigid"] | None = None
    channels: bool = False
    registration_share: float = 0.5

    def plan(self, settings: MethodSettings, *, num_atlases: int, num_unlabeled: int = 1) -> Recipe:
        """The recipe with networks without weights: shows what the method needs and does, and costs no memory.

        The grid is taken to be large, because some settings do not fit a small one.
        """
        return self.planned(Task((256, 256, 256), 2, num_atlases, num_unlabeled=num_unlabeled), settings)

    def planned(self, task: Task, settings: MethodSettings) -> Recipe:
        """The recipe of a task with networks without weights, which cost no memory."""
        with torch.device("meta"), _NothingDrawn():
            return self.recipe(task, settings)


class _NothingDrawn(TorchFunctionMode):
    """Skips random initialisation: networks without weights need none, and torch would load its compiler for it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__.endswith(("normal_", "uniform_")):  # of tensors, and of torch.nn.init
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))
