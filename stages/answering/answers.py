"""Answers of a method for scans on the grid. Shared by `eval`, `predict` and the calibration of quality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.answering.flat_borders import flatten
from stages.answering.registering import displacements, segment
from stages.artifacts.cohort import Cohort, FlatBorder, Grid
from stages.config import Config
from stages.data.own_space import classes_in_own_space
from stages.device import Device
from stages.methods.recipe import Answer as AnswerBy
from stages.parts.voting import fits, fused, learned, vote

AT_ONCE = 32  # scans per call of `Answering.answers`; limits memory


@dataclass(frozen=True)
class GridScan:
    """A scan on the grid: image, float16 in [0, 1], and the record of `stages.data.prepare.prepare`.

    An image is (D, H, W), of several channels (C, D, H, W).
    """

    case: str
    image: np.ndarray
    record: dict[str, Any]


@dataclass(frozen=True)
class Atlas:
    """A labelled scan on the grid: image in [0, 1], (D, H, W) or (C, D, H, W), and class indices (D, H, W)."""

    case: str
    image: np.ndarray
    label: np.ndarray


def atlases_of(cohort: Cohort, part: str = "atlases") -> tuple[Atlas, ...]:
    return tuple(Atlas(case, cohort.image(case), cohort.label(case)) for case in cohort.parts.get(part, []))


def registers(answer_by: AnswerBy, cohort: Cohort) -> bool:
    """Whether a method can propagate the atlases' labels to a scan."""
    return answer_by.registers is not None and bool(cohort.parts.get("atlases"))


@dataclass(frozen=True)
class Answer:
    """A method's answer for a scan, on the grid. Class probabilities have shape (C, D, H, W).

    Args:
        network: class probabilities of the segmentation network S; None: the method has no network.
        votes: class probabilities of the propagated labels, on the CPU; None: no labels are propagated.
        fields: displacement of each atlas to the scan, (3, D, H, W), voxels.
        mean: `network` and `votes` together, see `stages.parts.voting.fused`, or the one that is not None.
        probabilities: the final answer: `mean` if the method fuses, otherwise `network`, without a network `votes`.
    """

    case: str
    network: Tensor | None
    votes: Tensor | None
    fields: list[np.ndarray]
    mean: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class Answering:
    """Everything that a method needs to answer: trained networks, grid, atlases and settings.

    Args:
        answer_by: the recipe's answer.
        atlases: their labels are propagated if `registers`.
        borders: see `stages.answering.flat_borders`; applied only to a network's answers.
        registers: whether labels are propagated.
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
        fields: dict[int, np.ndarray] = {}
        for turn, scan in enumerate(scans):
            network = self.segment(scan.image) if self.answer_by.network is not None else None
            of_scan = []
            if self.registers:
                places = [turn * len(self.atlases) + k for k in range(len(self.atlases))]
                while not all(k in fields for k in places):
                    place, field = next(stream)
                    fields[place] = field
                of_scan = [fields.pop(k) for k in places]
            yield self._combined(scan.case, scan.image, network, of_scan)

    def _combined(self, case: str, image: np.ndarray, network: Tensor | None, fields: list[np.ndarray]) -> Answer:
        if not fields:
            assert network is not None, "a method without a network propagates labels"
            return Answer(case, network, None, fields, network, network)
        labelled = [(atlas.image, atlas.label) for atlas in self.atlases]
        votes = vote(labelled, fields, image, self.num_classes)
        if network is None:
            return Answer(case, None, votes, fields, votes, votes)
        fit = torch.stack(fits(labelled, fields, image)).mean(0)
        mean = fused(network, votes.to(network.device), fit.to(network.device), self._learned)
        return Answer(case, network, votes, fields, mean, mean if self.answer_by.fuse else network)

    @cached_property
    def _learned(self) -> Tensor:
        """How far the network has learned each class; see `stages.parts.voting.learned`."""
        answers = [self.segment(atlas.image).argmax(0) for atlas in self.atlases]
        labels = [torch.from_numpy(atlas.label.astype(np.int64)) for atlas in self.atlases]
        return learned(answers, labels, self.num_classes)

    def segment(self, image: np.ndarray) -> Tensor:
        """Class probabilities (C, D, H, W) of the segmentation network for an image on the grid, on the device."""
        assert self.answer_by.network is not None
        return segment(self.answer_by.network.to(self.device.torch).eval(), image, self.device)

    def in_own_space(self, answer: Answer, record: dict[str, Any]) -> np.ndarray:
        """The answer as class indices (D', H', W') at the scan's own voxels, in its stored order."""
        classes = classes_in_own_space(answer.probabilities, record, self.grid)
        if answer.network is not None:
            for border in self.borders:
                classes = flatten(classes, answer.mean, border, record, self.grid)
        return classes
