"""Builds the job of a writer of generated data from a recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from stages.answering.registering import displacements, segment
from stages.artifacts.cohort import Cohort
from stages.artifacts.draft import Draft
from stages.config import Config
from stages.device import Device
from stages.generating.writer import Job
from stages.methods.recipe import Recipe


def job_of(
    recipe: Recipe,
    cohort: Cohort,
    config: Config,
    device: Device,
    draft: Draft,
    *,
    tell: Callable[[str], None] = print,
) -> Job:
    """A writer's job with the recipe's networks in their current state."""
    network = recipe.answer.network
    if network is not None:
        network.to(device.torch).eval()
    return Job(
        cohort=cohort,
        settings=config.generate,
        seed=config.seed,
        device=device,
        resume=draft.resume,
        register=partial(
            displacements, recipe.answer.registers, spacing_mm=cohort.grid.spacing_mm, device=device, config=config
        ),
        segment=partial(segment, network, device=device),  # type: ignore[arg-type]  # called only if there is a network
        tell=tell,
    )
