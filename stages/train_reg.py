"""Stage 2: train a method's registration networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.answering.registering import as_image, displacements, vote
from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.store import FORMAT_VERSIONS, Draft, Identity, find_finished, new_artifact, save_weights, verify
from stages.artifacts.weights import Registration
from stages.config import Config
from stages.device import Device, choose_device
from stages.errors import LrlsError
from stages.methods import find_method, settings_of, training_of
from stages.methods.recipe import Method, Recipe, Task
from stages.parts.batches.pairs import LabelledPair
from stages.parts.batches.scans import Scans
from stages.parts.panels import Points
from stages.training.loop import Run, train


def task_of(cohort: Cohort) -> Task:
    return Task(cohort.grid.shape, cohort.num_classes, len(cohort.parts.get("atlases", ())))


def make_recipe(method: Method, cohort: Cohort, config: Config, round: int = 0) -> Recipe:
    """The recipe with freshly initialised networks, as it is in a round."""
    torch.manual_seed(config.seed)
    return method.recipe(task_of(cohort), settings_of(method, config)).at_round(round)


def stage_config(
    method: Method,
    config: Config,
    stage: str | None = None,
    *,
    generates: bool = True,
    segments: bool = True,
    answers: bool = False,
    round: int = 0,
    appearance: Registration | None = None,
) -> dict[str, Any]:
    """What a stage's result depends on, besides its inputs and seed.

    Args:
        stage: "train_reg" or "train_seg", for its training numbers.
        generates: with what only generation and what follows it read.
        segments: with what only segmentation reads.
        answers: with what only `eval` reads.
        appearance: what was trained on another cohort, whose looks samples take.
    """
    found = settings_of(method, config)
    read = (
        (found.GENERATES, generates),
        (found.SEGMENTS, segments),
        (found.ANSWERS, answers),
        (found.ROUNDS, round > 0 or answers),
    )
    left_out = {name for names, is_read in read if not is_read for name in names}
    own = found.model_dump(mode="json", exclude=left_out)
    settings: dict[str, Any] = {"method": method.name, "settings": own}
    settings["precision"] = config.precision
    if appearance:
        settings["appearance_from"] = appearance.manifest.digest
    if stage:
        settings[stage] = training_of(method, config, stage).model_dump(mode="json")
    return settings


def train_registration(
    cohort: Cohort,
    config: Config,
    method_name: str,
    *,
    round: int = 0,
    registration: Registration | None = None,
    generated: Generated | None = None,
    force: bool = False,
) -> Registration:
    """Train a method's registration networks on the cohort.

    Args:
        round: 0, or of a method with rounds.
        registration: in a later round, what the round before trained; it goes on from there.
        generated: in a later round, what `generate` wrote in it.

    Raises:
        LrlsError: the method learns no registration.
    """
    method = find_method(method_name)
    recipe = make_recipe(method, cohort, config, round)
    if not recipe.train_registration:
        raise LrlsError(f"{method.name} learns no registration; go on with `lrls {next_stage(recipe)}`.")
    inputs = {"cohort": cohort, "registration": registration, "generated": generated}
    identity = Identity(
        kind=Registration.KIND,
        format_version=FORMAT_VERSIONS[Registration.KIND],
        made_by="train-reg",
        config=stage_config(method, config, "train_reg", generates=False, segments=False, round=round),
        seed=config.seed,
        round=round,
        inputs={role: artifact.manifest.digest for role, artifact in inputs.items() if artifact},
    )
    target = config.workspace / method.name / "registration"
    if not force and (done := find_finished(target, identity)):
        return Registration.open(done)
    for artifact in inputs.values():
        if artifact:
            verify(artifact.folder)
    device = choose_device(config)
    with new_artifact(target, identity, device=str(device)) as draft:
        if registration:
            registration.load(recipe.registration_networks)
        log = train(registration_run(cohort, config, method, recipe, device, draft, generated, round))
        save_weights(recipe.registration_networks, draft.folder / "weights.safetensors", {"method": method.name})
        _pictures(draft, cohort, recipe, log, device, config)
    return Registration.open(draft.result)


def registration_run(
    cohort: Cohort,
    config: Config,
    method: Method,
    recipe: Recipe,
    device: Device,
    draft: Draft,
    generated: Generated | None = None,
    round: int = 0,
) -> Run:
    """What `train-reg` trains."""
    return Run(
        phases=recipe.train_registration,
        networks=recipe.registration_networks,
        data=scans_to_learn_from(cohort, generated, device),
        settings=training_of(method, config, "train_reg"),
        device=device,
        seed=config.seed + 2 * round,
        draft=draft,
    )


def scans_to_learn_from(cohort: Cohort, generated: Generated | None, device: Device) -> Scans:
    """The cohort in memory, with what `generate` wrote."""
    data = cohort.scans(device.torch)
    if generated is None:
        return data
    return replace(
        data,
        bank=generated.bank(data.names),
        samples=generated.samples(),
        pseudo=generated.pseudo_labels(data.names, device.torch),
    )


def next_stage(recipe: Recipe) -> str:
    """Where to go on after a stage that the method does not have."""
    if not recipe.train_segmentation:
        return "eval"
    return "train-seg" if recipe.generate is None else "generate"


def _pictures(
    draft: Draft, cohort: Cohort, recipe: Recipe, log: list[dict[str, Any]], device: Device, config: Config
) -> None:
    from stages.pictures import loss_curves, panels_page, points_plot, registration_overlay

    for network in recipe.registration_networks.values():
        network.eval()
    loss_curves(log, draft.folder / "losses.png")
    atlas = cohort.parts["atlases"][0]
    image, label = cohort.image(atlas), cohort.label(atlas)
    cases = cohort.parts["unlabeled"][:3]
    pairs = [(image, cohort.image(case)) for case in cases]
    rows = []
    for place, field in displacements(
        recipe, pairs, cases, spacing_mm=cohort.grid.spacing_mm, device=device, config=config
    ):
        rows.append(overlay_row(cases[place], (image, label), pairs[place][1], field, cohort, recipe))
    registration_overlay(rows, Path(draft.folder / "registration.png"), structures=cohort.structures)
    for name, panels in recipe.registration_pictures.items():
        page = []
        for case, (moving, fixed) in zip(cases, pairs, strict=True):
            batch = LabelledPair(
                [atlas, case], as_image(moving, device), as_image(fixed, device),
                torch.from_numpy(label.astype(np.int16))[None].to(device.torch), cohort.num_classes,
            )  # fmt: skip
            with torch.inference_mode(), device.autocast():
                page.append((case, panels(batch)))
        path = draft.folder / f"{name}.png"
        panels_page(page, path, structures=cohort.structures, spacing_mm=cohort.grid.spacing_mm)
    data = cohort.scans(device.torch) if recipe.registration_pages else None
    for name, page_of in recipe.registration_pages.items():
        with torch.inference_mode(), device.autocast():
            shown = page_of(data)  # type: ignore[arg-type]
        path = draft.folder / f"{name}.png"
        if isinstance(shown, Points):
            points_plot(shown, path)
        else:
            panels_page(shown, path, structures=cohort.structures, spacing_mm=cohort.grid.spacing_mm)


def overlay_row(
    case: str,
    atlas: tuple[np.ndarray, np.ndarray],
    scan: np.ndarray,
    field: np.ndarray,
    cohort: Cohort,
    recipe: Recipe,
) -> dict[str, Any]:
    """A row of `pictures.registration_overlay`."""
    from stages.parts.warps import warp

    image = atlas[0]
    votes = vote([atlas], [field], scan, cohort.num_classes)
    moved = warp(torch.from_numpy(image.astype(np.float32))[None, None], torch.from_numpy(field)[None])[0, 0]
    return {
        "case": case,
        "atlas": image.astype(np.float32),
        "warped": moved.numpy(),
        "scan": scan.astype(np.float32),
        "displacement": field,
        "warped_label": votes.argmax(0).numpy(),
        "spacing_mm": cohort.grid.spacing_mm,
    }
