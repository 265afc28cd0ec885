"""Stage 4: train a method's segmentation network on labelled scans or generated data."""

from __future__ import annotations

from typing import Any

from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.manifest import Identity
from stages.artifacts.store import Draft, find_finished, new_artifact, verify
from stages.artifacts.weights import Registration, Segmentation
from stages.artifacts.weights_file import save_weights
from stages.config import Config
from stages.device import Device, choose_device
from stages.errors import LrlsError
from stages.methods import find_method, training_of
from stages.methods.recipe import Method, Recipe
from stages.train_reg import make_recipe, scans_to_learn_from, stage_config
from stages.training.loop import Run, train


def train_segmentation(
    cohort: Cohort,
    config: Config,
    method_name: str,
    *,
    round: int = 0,
    segmentation: Segmentation | None = None,
    registration: Registration | None = None,
    generated: Generated | None = None,
    appearance: Registration | None = None,
    force: bool = False,
) -> Segmentation:
    """Train a method's segmentation network; it starts from the registration artifact's helper where there is one.

    Args:
        cohort: labelled (and unlabelled) scans.
        round: 0, or of a method with rounds.
        segmentation: in a later round, what the round before trained: the teacher, and where the student starts.
        registration: weights of `train-reg`, for methods that train S beside R.
        generated: what `generate` wrote, for methods that learn from it.
        appearance: what was trained on another cohort, whose looks that took.

    Raises:
        LrlsError: the method trains no segmentation network.
    """
    method = find_method(method_name)
    recipe = make_recipe(method, cohort, config, round)
    if recipe.segmentation is None:
        raise LrlsError(f"{method.name} trains no segmentation network; go on with `lrls eval`.")
    has_phases = bool(recipe.train_segmentation)
    inputs = {"cohort": cohort, "registration": registration, "generated": generated, "segmentation": segmentation}
    identity = Identity(
        kind=Segmentation.KIND,
        format_version=Segmentation.FORMAT,
        made_by="train-seg",
        config=stage_config(method, config, "train_seg" if has_phases else None, round=round, appearance=appearance),
        seed=config.seed,
        round=round,
        inputs={role: artifact.manifest.digest for role, artifact in inputs.items() if artifact},
    )
    target = config.workspace / method.name / "segmentation"
    if not force and (done := find_finished(target, identity)):
        return Segmentation.open(done)
    for artifact in inputs.values():
        if artifact:
            verify(artifact.folder)
    device = choose_device(config)
    with new_artifact(target, identity) as draft:
        draft.device = str(device)
        if registration and recipe.helpers.keys() & recipe.segmentation_networks.keys():
            registration.load(recipe.segmentation_networks)
        if segmentation:
            segmentation.load(recipe.segmentation_networks)
            if recipe.teacher is not None:
                segmentation.load({"segmentation": recipe.teacher})
            if registration:
                registration.load(recipe.registration_networks)
        if has_phases:
            run = segmentation_run(cohort, config, method, recipe, device, draft, generated, round)
            _pictures(draft, cohort, recipe, train(run), run)
        save_weights(recipe.segmentation_networks, draft.folder / "weights.safetensors", {"method": method.name})
    return Segmentation.open(draft.result)


def _pictures(draft: Draft, cohort: Cohort, recipe: Recipe, log: list[dict[str, Any]], run: Run) -> None:
    from stages.pictures import loss_curves, panels_page

    loss_curves(log, draft.folder / "losses.png")
    for name, rows_of in recipe.segmentation_pictures.items():
        panels_page(rows_of(run.data), draft.folder / f"{name}.png", spacing_mm=cohort.grid.spacing_mm)


def segmentation_run(
    cohort: Cohort,
    config: Config,
    method: Method,
    recipe: Recipe,
    device: Device,
    draft: Draft,
    generated: Generated | None,
    round: int = 0,
) -> Run:
    """What `train-seg` trains."""
    return Run(
        phases=recipe.train_segmentation,
        networks=recipe.segmentation_networks,
        data=scans_to_learn_from(cohort, generated, device),
        settings=training_of(method, config, "train_seg"),
        device=device,
        seed=config.seed + 2 * round + 1,  # not the draws of train-reg once more
        draft=draft,
        frozen=[each for each in (recipe.teacher, recipe.registration) if each is not None] if round else [],
    )
