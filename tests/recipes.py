"""Recipes of a small task, and what their steps are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stages.artifacts.made import Role
from stages.config import Config
from stages.generating.writer import Writer
from stages.methods import METHODS, settings_of
from stages.methods.phases import Phase
from stages.methods.recipe import Generate, Recipe, Task, Train

SHAPE = (10, 12, 12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def textured(*size: int, seed: int = 0) -> Tensor:
    """Noise in [0, 1]."""
    return torch.rand(size, generator=generator(seed))


def config(**methods: dict[str, Any]) -> Config:
    """A configuration without scans: `config(brbs={"sec": False})`."""
    values = {"workspace": "runs", "data": {"folder": "."}, "structures": {"a": 1, "b": 2}}
    return Config.model_validate(values | {"methods": methods})


def built(name: str, *, atlases: int = 1, seed: int = 0, **settings: Any) -> Recipe:
    """A method's recipe for three classes on a small grid."""
    task = Task(SHAPE, num_classes=3, num_atlases=atlases, seed=seed)
    return METHODS[name].recipe(task, settings_of(METHODS[name], config(**{name: settings})))


def phases(recipe: Recipe, role: Role, round: int = 0) -> Sequence[Phase]:
    """What the step that makes an artifact trains; none where there is no such step."""
    step = recipe.step(role, round)
    return step.phases if isinstance(step, Train) else ()


def writer(recipe: Recipe, round: int = 0) -> Writer:
    """What a recipe generates with."""
    step = recipe.step("generated", round)
    assert isinstance(step, Generate)
    (only,) = step.writers
    return only
