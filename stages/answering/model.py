"""A trained method with everything it needs to answer a new scan, from a workspace or an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk

from stages.answering.answers import Answering, Atlas, atlases_of, registers
from stages.artifacts.calibration import Calibration
from stages.artifacts.cohort import Cohort, FlatBorder, Grid
from stages.artifacts.made import Made
from stages.config import Config
from stages.data.channels import counted, suffix_of
from stages.data.grid import to_grid
from stages.device import choose_device
from stages.errors import LrlsError
from stages.methods import find_method, recipe_of
from stages.methods.recipe import Recipe
from stages.text_files import yaml_value

WHERE_IT_RUNS = ("device", "precision", "threads", "preprocess.workers")


@dataclass(frozen=True)
class Model:
    """A trained method.

    Args:
        method: its name.
        config: label table, preprocessing, settings of the method, and device; holds nothing about a cohort.
        num_atlases: number of atlases that it learned from.
        reference: the image that scans are aligned to.
        atlases: those whose labels it propagates; empty if only the network answers.
        borders: see `stages.answering.flat_borders`.
        calibration: of the estimated DSC; None: DSC is not estimated.
        channels: names of the images of a scan, in order; a name is the number that files end with if none is given.
        atlas_matrices: of the first atlases, 4 x 4, reference mm -> atlas mm; of an exported model the first one's.
        axes: "own": its networks follow the grid's spacing per axis; "alike": it was exported before they did.
    """

    method: str
    config: Config
    num_atlases: int
    grid: Grid
    reference: sitk.Image
    atlases: tuple[Atlas, ...]
    recipe: Recipe
    borders: tuple[FlatBorder, ...]
    calibration: Calibration | None = None
    channels: tuple[str, ...] = ("image",)
    axes: Literal["alike", "own"] = "own"
    atlas_matrices: tuple[np.ndarray, ...] = field(default_factory=lambda: (np.eye(4),))

    @property
    def structures(self) -> dict[str, int]:
        """Value of each structure in label maps."""
        return {name: values[0] for name, values in self.config.structure_values().items()}

    def answering(self) -> Answering:
        """Answers scans on the device of the configuration."""
        return Answering(
            self.recipe.answer, self.grid, len(self.structures) + 1, self.atlases, self.borders, bool(self.atlases),
            self.config, choose_device(self.config),
        )  # fmt: skip

    def template(self) -> np.ndarray:
        """The reference on the grid, (D, H, W) in [0, 1]."""
        return to_grid(self.reference, {"matrix": np.eye(4)}, self.grid)


def model_of(made: Made, config: Config, method_name: str, *, network_only: bool = False) -> Model:
    """The model in a workspace; `made` must hold all artifacts that the answers need (`workflow.trained`).

    Args:
        network_only: answer by the network alone, without registering atlases.

    Raises:
        LrlsError: `network_only`, but the method has no segmentation network.
    """
    method, cohort = find_method(method_name), made.cohort
    recipe = recipe_of(method, cohort, config)
    if network_only and recipe.answer.network is None:
        raise LrlsError(f"{method.name} has no segmentation network: it propagates atlases; leave --network-only out.")
    recipe.load(made.weights)
    borders = cohort.flat_borders if recipe.answer.flat_borders else ()
    propagates = recipe.answer.network is None or recipe.answer.fuse or bool(borders)
    uses_atlases = propagates and registers(recipe.answer, cohort) and not network_only
    return Model(
        method=method.name,
        config=config,
        num_atlases=len(cohort.parts.get("atlases", ())),
        grid=cohort.grid,
        reference=cohort.reference(),
        atlases=atlases_of(cohort) if uses_atlases else (),
        atlas_matrices=tuple(np.array(cohort.transform(case)["matrix"]) for case in cohort.parts.get("atlases", ())),
        recipe=recipe,
        borders=borders,
        channels=named_channels(config, cohort),
    )


def named_channels(config: Config, cohort: Cohort) -> tuple[str, ...]:
    """The names of a cohort's channels, in order.

    Raises:
        LrlsError: data.channels names another number.
    """
    names = config.data.channels
    if names and len(names) != cohort.channels:
        raise LrlsError(
            f"data.channels: found {len(names)} names, the scans have {counted(cohort.channels)}; name each image once."
        )
    if names or cohort.channels == 1:
        return tuple(names) or ("image",)
    return tuple(suffix_of(k) for k in range(cohort.channels))


def running_on(model: Model, overrides: Mapping[str, Any] | list[str]) -> Model:
    """The same model with other settings of `WHERE_IT_RUNS` and `compute`; others would change its answers.

    Args:
        overrides: values by setting, or strings like "device=cpu".

    Raises:
        LrlsError: the setting is none of these, or the value is invalid.
    """
    if isinstance(overrides, list):
        pairs = [override.partition("=") for override in overrides]
        try:
            overrides = {key.strip(): yaml_value(value, key.strip()) for key, _, value in pairs}
        except ValueError as error:
            raise LrlsError(f"--set: a value is not readable as YAML ({error}); correct it.") from None
    values = model.config.model_dump(mode="json")
    for key, value in overrides.items():
        if key not in WHERE_IT_RUNS and not key.startswith("compute."):
            known = ", ".join(WHERE_IT_RUNS)
            raise LrlsError(f"--set {key}: an exported model is as it was trained; known here: {known}.")
        *sections, last = key.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise LrlsError(f"--set {key}: {section} is not a section; expected section.key=value.")
        node[last] = value
    from stages.config import validate

    return replace(model, config=validate(Config, values, "--set"))
