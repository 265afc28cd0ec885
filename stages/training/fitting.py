"""Whether training fits into memory: found out before it takes any, and told in one line where it did not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.artifacts.cohort import Cohort, Grid
from stages.config import Config, TrainSettings
from stages.device import Device
from stages.errors import LrlsError
from stages.memory import is_out_of_memory
from stages.methods import settings_of, task_of
from stages.methods.phases import Phase
from stages.methods.recipe import Method, Train
from stages.parts.batches.drawing import Draw
from stages.parts.batches.scans import Scans
from stages.parts.lengths import as_setting, with_fewer_voxels
from stages.ranks import ranks, ranks_here

EDGE = 32  # voxels of the small grid that is measured
MARGIN = 1.5  # a step takes about this much of what it keeps
MOST_BYTES = 10_000  # more than that any of the methods keeps for a voxel of a scan in a batch


@dataclass(frozen=True)
class Size:
    """What decides how much memory a run takes, and the settings that it stands in."""

    grid: Grid
    section: str  # "train_reg" or "train_seg"
    shape_is_set: bool = False

    def remedy(self, batch_size: int, times: float, *, batch_is_set: bool = True) -> str:
        """What to set so that a run takes a share of the memory, one in `times`."""
        fewer = int(batch_size / times) // ranks() * ranks()
        if fewer and batch_is_set:
            return f"set {self.section}.batch_size to {fewer}"
        if self.shape_is_set:
            shape = ", ".join(str(max(16, int(n / times ** (1 / 3) / 8) * 8)) for n in self.grid.shape)
            return f"set preprocess.shape to [{shape}]"
        spacing = with_fewer_voxels(self.grid.spacing_mm, 1.01**3 * times)
        return f"set preprocess.spacing_mm to {as_setting(spacing)}"

    def __str__(self) -> str:
        return f"a grid of {' x '.join(map(str, self.grid.shape))} voxels"


def size_of(cohort: Cohort, config: Config, section: str) -> Size:
    return Size(cohort.grid, section, config.preprocess.shape is not None)


@contextmanager
def told_in_one_line(size: Size, batch_size: int, phase: str) -> Iterator[None]:
    """Turn an error for lack of memory into a line that names batch and grid, and settings that take half as much."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise LrlsError(
            f"training stopped: not enough memory in {phase} for a batch of {batch_size} on {size}; "
            f"{size.remedy(batch_size, 2)}, which takes half as much. "
            "With more memory, the same command resumes at the last checkpoint."
        ) from None


def refuse_what_cannot_fit(
    step: Train,
    settings: TrainSettings,
    size: Size,
    cohort: Cohort,
    config: Config,
    method: Method,
    device: Device,
    round: int = 0,
) -> None:
    """Refuse a run that needs more memory than there is, before it takes any.

    What the networks keep of a batch is measured on a grid of 32^3 voxels and scaled up, where a rough bound says that
    it may be too much. The run itself takes more than that: what passes may still not fit.

    Raises:
        LrlsError: cohort and batch together need more.
    """
    assert settings.batch_size is not None
    free, voxels = device.free_bytes(), math.prod(cohort.grid.shape)
    beside = ranks_here() if device.torch.type == "cpu" else 1  # processes in this memory; each has a share of a batch
    most = max(phase.batch_size or settings.batch_size for phase in step.phases) * beside / ranks()
    in_memory = beside * 2 * voxels * cohort.channels * len(cohort.cases)  # images, float16
    if free is None or in_memory + MOST_BYTES * most * voxels < free:
        return
    measured = kept_bytes(step, cohort, config, method, settings.batch_size, round)
    for phase, number in zip(step.phases, measured, strict=True):
        batch_size = phase.batch_size or settings.batch_size
        of_batch = number * voxels * batch_size * beside / ranks() / (2 if device.dtype == torch.bfloat16 else 1)
        if in_memory + of_batch > free:
            times = MARGIN * of_batch / max(free - in_memory, 1)
            remedy = size.remedy(batch_size, times, batch_is_set=phase.batch_size is None)
            raise LrlsError(
                f"a batch of {batch_size} on {size} needs {(in_memory + of_batch) / 1e9:.3g} GB of memory or more in "
                f"{phase.name}, {free / 1e9:.3g} GB are free; {remedy}, which should fit."
            )


def kept_bytes(step: Train, cohort: Cohort, config: Config, method: Method, batch_size: int, round: int) -> list[float]:
    """Bytes that each phase keeps for the gradients, per voxel of a sample; 0: it could not be measured."""
    with torch.random.fork_rng(devices=[]):
        task = replace(task_of(cohort, config.seed), shape=(EDGE, EDGE, EDGE))
        recipe, data = method.recipe(task, settings_of(method, config)), noise(cohort)
        same = recipe.step(step.makes, round)
        assert isinstance(same, Train)
        networks = [*recipe.networks.values(), *same.as_before.values()]
        weights = {weight.untyped_storage().data_ptr() for network in networks for weight in network.parameters()}
        return [_kept_by(phase, data, min(phase.batch_size or batch_size, 2), weights) for phase in same.phases]


def _kept_by(phase: Phase, data: Scans, batch_size: int, weights: set[int]) -> float:
    most = 0
    for player in phase.players:
        kept: dict[int, tuple[Tensor, int]] = {}

        def keep(tensor: Tensor, kept: dict[int, tuple[Tensor, int]] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = tensor, storage.nbytes()  # held, so that no other gets its place
            return tensor

        try:
            batch = phase.batches(data, Draw(batch_size, None, None, torch.Generator()))
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                player.loss(player.forward(batch), 0, 1)
        except Exception:  # a part that does not work on so small a grid
            continue
        most = max(most, sum(num_bytes for _, num_bytes in kept.values()))
    return most / batch_size / EDGE**3


Shape = tuple[int, int, int]


@dataclass(frozen=True)
class _Couple:
    """A generated couple, image and label."""

    scan: str
    image: Tensor
    label: Tensor
    atlas: str = ""


@dataclass(frozen=True)
class _Bank:
    couples: Sequence[tuple[int, int]]
    shape: Shape
    channels: int

    def displacement(self, couple: int) -> Tensor:
        return torch.zeros(3, *self.shape)

    def style(self, couple: int) -> Tensor:
        return torch.zeros(self.channels, *self.shape)


def noise(cohort: Cohort, shape: Shape = (EDGE, EDGE, EDGE)) -> Scans:
    """Scans of noise on a small grid, in the parts of the cohort, whose own scans are not read."""
    names = cohort.cases[:64]
    atlases = [names.index(case) for case in cohort.parts.get("atlases", []) if case in names]
    labelled = atlases or range(len(names))
    label = torch.arange(math.prod(shape)).reshape(shape) % cohort.num_classes
    return Scans(
        names=names,
        images=torch.rand(len(names), cohort.channels, *shape).half(),
        labels={place: label.short() for place in labelled},
        atlases=atlases,
        unlabeled=[names.index(case) for case in cohort.parts.get("unlabeled", []) if case in names],
        num_classes=cohort.num_classes,
        spacing_mm=cohort.grid.spacing_mm,
        bank=_Bank(
            [(place, other) for place in atlases for other in range(len(names)) if other != place],
            shape,
            cohort.channels,
        ),
        samples=[_Couple(names[-1], torch.rand(cohort.channels, *shape), torch.zeros(shape, dtype=torch.int64))],
    )
