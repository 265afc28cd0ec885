"""`rigid`: ANTs's rigid alignment alone, a row of OS-MedSeg's tables.

Avants et al., "Advanced normalization tools (ANTS)", Insight Journal 2009. The scans are aligned rigidly where others
have them affine: they are brought to the grid anew, as a cohort of their own. Where `preprocess.align` is not affine,
it stays.
"""

from __future__ import annotations

from stages.methods.recipe import Method, Recipe, Task, propagation
from stages.methods.settings import MethodSettings
from stages.parts.classical import Classical, no_displacement


class Settings(MethodSettings):
    """`rigid` has no settings."""


def build(task: Task, settings: Settings) -> Recipe:
    return propagation(Classical(no_displacement, "ANTs", "antspyx"))


METHOD = Method(
    name="rigid",
    summary="rigid alignment alone, label propagation",
    source="ANTs",
    settings=Settings,
    recipe=build,
    align="rigid",
    channels=True,
)
