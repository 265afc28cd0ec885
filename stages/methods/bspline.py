"""`bspline`: free-form deformation by cubic B-splines, a row of BRBS's table.

Rueckert, Sonoda, Hayes, Hill, Leach, Hawkes, "Nonrigid registration using free-form deformations: application to breast
MR images", TMI 1999; SimpleITK's BSplineTransform and ImageRegistrationMethod. BRBS names no setting.

Ours differs in: mutual information (Mattes) of drawn voxels for the normalised one, LBFGS for gradient descent, no
penalty on bending, which SimpleITK has not: the distance of the control points alone keeps fields smooth. It is 5
voxels by default, so that it goes with the grid; preset `paper` has 10 mm at the last level, 20 mm before it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from stages.methods.recipe import Method, Recipe, Task, propagation
from stages.methods.settings import MethodSettings
from stages.parts.bspline import bspline_displacement
from stages.parts.classical import Classical


class Settings(MethodSettings):
    """Settings of `bspline`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {"iterations": 5, "samples": 2**12},
        "paper": {"control_mm": 10.0, "levels": 2},
    }

    control_mm: float | None = Field(
        None, gt=0, description="Distance of control points at the last level (mm); default: 5 of the finest voxels."
    )
    levels: int = Field(3, ge=1, le=6, description="Each halves voxels and the distance of control points.")
    iterations: int = Field(10, ge=1, description="At each level.")
    samples: int = Field(2**14, ge=1000, description="Voxels that are compared at each level, drawn once.")


def build(task: Task, settings: Settings) -> Recipe:
    bspline = partial(
        bspline_displacement,
        control_mm=settings.control_mm,
        levels=settings.levels,
        iterations=settings.iterations,
        samples=settings.samples,
    )
    return propagation(Classical(bspline, "SimpleITK", "SimpleITK"))


METHOD = Method(
    name="bspline",
    summary="B-spline free-form deformation, label propagation",
    source="Rueckert et al., TMI 1999",
    settings=Settings,
    recipe=build,
)
