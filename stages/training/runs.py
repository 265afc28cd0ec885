"""From a recipe's step to a training run, and to the artifact that it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, TypeVar

from stages import ranks
from stages.artifacts.cohort import Cohort
from stages.artifacts.draft import Draft
from stages.artifacts.generated import Generated
from stages.artifacts.manifest import Artifact
from stages.artifacts.weights import Registration, Segmentation
from stages.artifacts.weights_file import save_weights
from stages.config import Config
from stages.device import Device, choose_device
from stages.methods import recipe_of, settings_read, training_of
from stages.methods.recipe import Method, Recipe, Train
from stages.parts.batches.scans import Scans
from stages.seeds import derive
from stages.training.clock import Clock
from stages.training.fitting import refuse_what_cannot_fit, size_of
from stages.training.loop import Run, train
from stages.training.sharing import make_together, refuse_unequal_shares
from stages.training.starting import START, start_of

Inputs = Mapping[str, Artifact]
"""Artifacts that a stage reads besides the cohort, in the order in which they were made."""

Trained = TypeVar("Trained", Registration, Segmentation)
TrainSection = Literal["train_reg", "train_seg"]
SECTION: dict[str, TrainSection] = {"registration": "train_reg", "segmentation": "train_seg"}


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


def run_of(
    step: Train,
    recipe: Recipe,
    cohort: Cohort,
    config: Config,
    method: Method,
    device: Device,
    draft: Draft,
    *,
    round: int = 0,
    inputs: Inputs | None = None,
    clock: Clock | None = None,
) -> Run:
    """The training run of a step, from the networks' current weights.

    Raises:
        LrlsError: it needs more memory than there is, or several processes cannot share it.
    """
    generated = (inputs or {}).get("generated")
    assert generated is None or isinstance(generated, Generated)
    section = SECTION[step.makes]
    settings, size = training_of(method, config, section), size_of(cohort, config, section)
    refuse_unequal_shares(step, settings, section, recipe.networks)
    refuse_what_cannot_fit(step, settings, size, cohort, config, method, device, round)
    for name, network in step.as_before.items():
        network.load_state_dict(recipe.networks[name].state_dict())
    trained = recipe.trained(step)
    still = [network for name, network in recipe.networks.items() if name not in trained]
    return Run(
        phases=step.phases,
        networks=trained,
        data=scans_to_learn_from(cohort, generated, device),
        settings=settings,
        device=device,
        seed=derive(config.seed, step.makes, round),
        draft=draft,
        frozen=[*step.as_before.values(), *still],
        size=size,
        clock=clock,
    )


def make_trained(
    kind: type[Trained],
    step: Train,
    cohort: Cohort,
    config: Config,
    method: Method,
    *,
    round: int,
    inputs: Inputs,
    force: bool,
    clock: Clock | None,
    draw: Callable[[Draft, Recipe, Run], None],
    tell: Callable[[str], None] = print,
) -> Trained:
    """Train a step's networks and store them, or find them finished; a stopped run is resumed.

    Args:
        step: of the method's plan; its networks hold no weights.
        clock: corrects the number of steps; what was taken then stands in the weights' header, as "steps".
        draw: draws the stage's own pictures, beside the step's pages.
        tell: receives a line where the settings say what training starts from.
    """
    stage: Literal["train-reg", "train-seg"] = "train-reg" if kind is Registration else "train-seg"
    target = config.workspace / method.name / kind.KIND
    settings = settings_read(method, config, stage, round=round, trains=bool(step.phases))
    start: Registration | str | None = None
    if step.phases and training_of(method, config, SECTION[step.makes]).start_from == "latest" and not round:
        digests = {role: made.manifest.digest for role, made in ({"cohort": cohort} | dict(inputs)).items()}
        start, told = start_of(
            kind, target, cohort, config, method, settings=settings, round=round, inputs=digests, force=force
        )
        start = ranks.from_first(start)  # which may have found what others just finished
        if told:
            tell(told)

    def write(draft: Draft) -> None:
        device = choose_device(config)
        draft.device = str(device)
        recipe = recipe_of(method, cohort, config)
        recipe.load(inputs.values())
        own = recipe.step(kind.KIND, round)  # type: ignore[arg-type]
        assert isinstance(own, Train)
        if isinstance(start, Registration):
            start.load(recipe.trained(own))
        about = {"method": method.name}
        if own.phases:
            run = run_of(own, recipe, cohort, config, method, device, draft, round=round, inputs=inputs, clock=clock)
            log = train(run)
            if ranks.rank():
                return  # the first process writes
            if clock and log:
                about["steps"] = str(sum({record["phase"]: record["step"] for record in log}.values()))
            draw(draft, recipe, run)
            draw_pages(own, cohort, run)
        elif own.fits:
            own.fits(scans_to_learn_from(cohort, None, device))
        save_weights(recipe.trained(own), draft.folder / "weights.safetensors", about)

    return make_together(
        kind,
        target,
        write,
        made_by=stage,
        settings=settings,
        seed=config.seed,
        round=round,
        inputs={"cohort": cohort, **inputs, START: start},
        force=force,
    )


def draw_pages(step: Train, cohort: Cohort, run: Run) -> None:
    """The step's own pages."""
    import torch

    from stages.parts.panels import Points
    from stages.pictures import panels_page, points_plot

    if not step.pages:
        return
    for network in run.networks.values():
        network.eval()
    for name, page in step.pages.items():
        with torch.inference_mode(), run.device.autocast():
            shown = page(run.data)
        path = run.draft.folder / f"{name}.png"
        if isinstance(shown, Points):
            points_plot(shown, path)
        else:
            panels_page(shown, path, structures=cohort.structures, spacing_mm=cohort.grid.spacing_mm)
