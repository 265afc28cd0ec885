"""`greedy`: the strongest of the classical programs at its speed, an anchor of the field.

Yushkevich, Pluta, Wang, Wisse, Das, Wolk, "Fast automatic segmentation of hippocampal subfields and medial temporal
lobe subregions in 3 Tesla and 7 Tesla T2-weighted MRI", Alzheimer's & Dementia 2016; the program "greedy" by its
package picsl-greedy, `pip install 'lrls[greedy]'`.

Ours differs in: the noise that greedy adds to images comes from the run's seed, so that a run repeats itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from stages.methods.recipe import Method, Recipe, Task, propagation
from stages.methods.settings import MethodSettings
from stages.parts.classical import Classical
from stages.parts.greedy import check_greedy, greedy_displacement


class Settings(MethodSettings):
    """Settings of `greedy`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {"iterations": [50, 25, 0]},
        "paper": {},
    }

    radius: int = Field(2, ge=1, le=10, description="Of the window of the cross-correlation WNCC (voxels).")
    iterations: tuple[NonNegativeInt, ...] = Field(
        (100, 100, 40), min_length=1, max_length=6, description="Coarse to fine; each level halves the voxels."
    )
    smoothing: tuple[NonNegativeFloat, NonNegativeFloat] = Field(
        (1.5, 0.5), description="Of each step, and of the whole displacement after it (voxels)."
    )


def build(task: Task, settings: Settings) -> Recipe:
    check_greedy()
    greedy = partial(
        greedy_displacement, radius=settings.radius, iterations=settings.iterations, smoothing=settings.smoothing
    )
    return propagation(Classical(greedy, "greedy", "picsl-greedy"))


METHOD = Method(
    name="greedy",
    summary="greedy with cross-correlation, label propagation",
    source="Yushkevich et al., 2016",
    settings=Settings,
    recipe=build,
    channels=True,
)
