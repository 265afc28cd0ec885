"""What a method answers on scans of the grid: shared by `eval`, `predict` and the calibration of quality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stages.answering.flat_borders import flatten
from stages.answering.registering import displacements, segment
from stages.artifacts.cohort import Cohort, FlatBorder, Grid
from stages.config import Config
from stages.data.own_space import classes_in_own_space
from stages.device import Device
from stages.methods.recipe import Answer as AnswerBy
from stages.parts.voting import vote

AT_ONCE = 32  # scans that callers hand to `Answering.answers`; bounds memory


@dataclass(frozen=True)
class GridScan:
    """A scan on the grid: image (D, H, W), float16 in [0, 1], and what `stages.data.prepare.prepare` did to it."""

    case: str
    image: np.ndarray
    record: dict[str, Any]


@dataclass(frozen=True)
class Atlas:
    """A labelled scan on the grid: image in [0, 1] and class indices, (D, H, W) both."""

    case: str
    image: np.ndarray
    label: np.ndarray


def atlases_of(cohort: Cohort, part: str = "atlases") -> tuple[Atlas, ...]:
    return tuple(Atlas(case, cohort.image(case), cohort.label(case)) for case in cohort.parts.get(part, []))


def registers(answer_by: AnswerBy, cohort: Cohort) -> bool:
    """Whether a method can carry the atlases' labels over to a scan."""
    return answer_by.registers is not None and bool(cohort.parts.get("atlases"))


@dataclass(frozen=True)
class Answer:
    """What networks and registration say of a scan, on the grid.

    Args:
        network: class probabilities of S, (C, D, H, W), where there is one.
        votes: the same of the propagated labels, where they are asked for; on the CPU.
        fields: displacement of each atlas to the scan, (3, D, H, W), voxels.
        mean: of both, or the one that there is.
        probabilities: what the method answers by: `mean` where it fuses, else S's, else the votes.
    """

    case: str
    network: Tensor | None
    votes: Tensor | None
    fields: list[np.ndarray]
    mean: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class Answering:
    """How a method answers, with trained networks, and all that its answers rest on.

    Args:
        answer_by: the recipe's answer.
        atlases: their labels are propagated where `registers`.
        borders: see `stages.answering.flat_borders`; only networks' answers have them.
        registers: whether labels are propagated at all.
    """

    answer_by: AnswerBy
    grid: Grid
    num_classes: int
    atlases: Sequence[Atlas]
    borders: Sequence[FlatBorder]
    registers: bool
    config: Config
    device: Device

    def answers(self, scans: Sequence[GridScan]) -> Iterator[Answer]:
        """Answers in the order of the scans.

        Raises:
            LrlsError: a pair cannot be registered.
        """
        stream: Iterator[tuple[int, np.ndarray]] = iter(())
        if self.registers:
            pairs = [(atlas.image, scan.image) for scan in scans for atlas in self.atlases]
            stream = displacements(
                self.answer_by.registers, pairs, [scan.case for scan in scans for _ in self.atlases],
                spacing_mm=self.grid.spacing_mm, device=self.device, config=self.config,
            )  # fmt: skip
        labelled = [(atlas.image, atlas.label) for atlas in self.atlases]
        fields: dict[int, np.ndarray] = {}
        for turn, scan in enumerate(scans):
            network = self.segment(scan.image) if self.answer_by.network is not None else None
            votes, here = None, []
            if self.registers:
                mine = [turn * len(labelled) + k for k in range(len(labelled))]
                while not all(k in fields for k in mine):
                    place, field = next(stream)
                    fields[place] = field
                here = [fields.pop(k) for k in mine]
                votes = vote(labelled, here, scan.image, self.num_classes)
            yield self._combined(scan.case, network, votes, here)

    def _combined(self, case: str, network: Tensor | None, votes: Tensor | None, fields: list[np.ndarray]) -> Answer:
        if network is None:
            assert votes is not None, "a method without a network propagates labels"
            return Answer(case, None, votes, fields, votes, votes)
        mean = network if votes is None else (network + votes.to(network.device)) / 2
        return Answer(case, network, votes, fields, mean, mean if self.answer_by.fuse else network)

    def segment(self, image: np.ndarray) -> Tensor:
        """Class probabilities (C, D, H, W) of S for an image on the grid, on the device."""
        assert self.answer_by.network is not None
        return segment(self.answer_by.network.to(self.device.torch).eval(), image, self.device)

    def in_own_space(self, answer: Answer, record: dict[str, Any]) -> np.ndarray:
        """The answer: class indices (D', H', W') at the scan's own voxels, in its stored order."""
        classes = classes_in_own_space(answer.probabilities, record, self.grid)
        if answer.network is not None:
            for border in self.borders:
                classes = flatten(classes, answer.mean, border, record, self.grid)
        return classes
