"""Classical baselines: the cohort's affine alignment alone (`affine`), and ANTs SyN on top of it (`syn`).

Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", MedIA 2008; ANTsPy.
Preset `official`: as antsRegistrationSyN.sh of ANTs calls it, SyN[0.1,3,0], CC of radius 4, 100x70x50x20 iterations at
an eighth to the whole of the resolution. That script also cuts off the 0.5 % darkest and brightest voxels and asks for
a flatter end (1e-6 over 10 iterations; here ANTsPy's 1e-7 over 8); preprocessing has cut intensities already.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from stages.methods.recipe import Method, Recipe, Task, propagation
from stages.methods.settings import MethodSettings
from stages.parts.classical import Classical, no_displacement, syn_displacement


class AffineSettings(MethodSettings):
    """`affine` has no settings; `preprocess.align` decides."""


class SynSettings(MethodSettings):
    """Settings of `syn`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {},
        "paper": {"metric": "cc"},
        "official": {"metric": "cc", "reg_iterations": [100, 70, 50, 20], "gradient_step": 0.1},
    }

    reg_iterations: tuple[NonNegativeInt, ...] = Field(
        (100, 70, 30),
        min_length=1,
        max_length=6,
        description="Iterations, coarse to fine; ANTsPy's default (40, 20, 0) skips full resolution.",
    )
    metric: Literal["mattes", "cc"] = Field(
        "mattes", description="mattes: ANTsPy's default; cc: local cross-correlation, many times slower."
    )
    gradient_step: float = Field(0.2, gt=0, description="How far an iteration goes; ANTsPy's default.")


def build_affine(task: Task, settings: AffineSettings) -> Recipe:
    return propagation(Classical(no_displacement, "ANTs", "antspyx"))


def build_syn(task: Task, settings: SynSettings) -> Recipe:
    syn = partial(
        syn_displacement,
        iterations=settings.reg_iterations,
        metric=settings.metric,
        gradient_step=settings.gradient_step,
    )
    return propagation(Classical(syn, "ANTs", "antspyx"))


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
