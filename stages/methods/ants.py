"""Classical baselines: the cohort's affine alignment alone (`affine`), and ANTs SyN on top of it (`syn`).

Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", MedIA 2008; ANTsPy.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field

from stages.generating.propagated import PropagatedLabels
from stages.methods.recipe import Answer, Classical, Generate, Method, Recipe, Task
from stages.methods.settings import MethodSettings
from stages.parts.classical import no_displacement, syn_displacement


class AffineSettings(MethodSettings):
    """`affine` has no settings; `preprocess.align` decides."""


class SynSettings(MethodSettings):
    """Settings of `syn`."""

    reg_iterations: tuple[int, int, int] = Field(
        (100, 70, 30), description="Iterations, coarse to fine; ANTsPy's default (40, 20, 0) skips full resolution."
    )
    metric: Literal["mattes", "cc"] = Field(
        "mattes", description="mattes: ANTsPy's default; cc: local cross-correlation, many times slower."
    )


def build_affine(task: Task, settings: AffineSettings) -> Recipe:
    return propagation(no_displacement)


def build_syn(task: Task, settings: SynSettings) -> Recipe:
    return propagation(partial(syn_displacement, iterations=settings.reg_iterations, metric=settings.metric))


def propagation(classical: Classical) -> Recipe:
    """Nothing is learned: the atlases' labels follow a classical registration."""
    return Recipe(rounds=[[Generate([PropagatedLabels()])]], answer=Answer(registers=classical))


AFFINE = Method(
    name="affine",
    summary="the preprocessing's alignment alone, label propagation",
    source="ANTs",
    settings=AffineSettings,
    recipe=build_affine,
    channels=True,
)
SYN = Method(
    name="syn",
    summary="ANTs SyN, label propagation",
    source="Avants et al., MedIA 2008",
    settings=SynSettings,
    recipe=build_syn,
    channels=True,
)
