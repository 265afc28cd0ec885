"""Stage 2: train a method's registration networks."""

from __future__ import annotations

from collections.abc import Callable

from stages.answering.registering import displacements, overlay_row
from stages.artifacts.cohort import Cohort
from stages.artifacts.draft import Draft
from stages.artifacts.weights import Registration
from stages.config import Config
from stages.errors import LrlsError
from stages.methods import find_method, plan_of
from stages.methods.recipe import Recipe, Train
from stages.training.clock import Clock
from stages.training.loop import Run
from stages.training.runs import Inputs, make_trained


def train_registration(
    cohort: Cohort,
    config: Config,
    method_name: str,
    *,
    round: int = 0,
    inputs: Inputs | None = None,
    force: bool = False,
    clock: Clock | None = None,
    tell: Callable[[str], None] = print,
) -> Registration:
    """Train a method's registration networks on the cohort.

    Args:
        round: 0, or a round of a method with rounds.
        inputs: what the method's recipe says that this step uses.
        clock: keeps the training within a time.
        tell: receives a line where the settings say what training starts from.

    Raises:
        LrlsError: the method learns no registration.
    """
    method = find_method(method_name)
    plan = plan_of(method, config, cohort)
    step = plan.step("registration", round)
    if not isinstance(step, Train):
        raise LrlsError(f"{method.name} learns no registration; go on with `lrls {plan.next_stage(round)}`.")

    def draw(draft: Draft, recipe: Recipe, run: Run) -> None:
        from stages.pictures import loss_curves, registration_overlay

        for network in run.networks.values():
            network.eval()
        loss_curves(run.log, draft.folder / "losses.png")
        atlas, scans = cohort.parts["atlases"][0], cohort.parts["unlabeled"][:3]
        image, label = cohort.image(atlas), cohort.label(atlas)
        pairs = [(image, cohort.image(case)) for case in scans]
        fields = displacements(
            recipe.answer.registers, pairs, scans, spacing_mm=cohort.grid.spacing_mm, device=run.device, config=config
        )
        rows = [overlay_row(scans[place], (image, label), pairs[place][1], field, cohort) for place, field in fields]
        registration_overlay(rows, draft.folder / "registration.png", structures=cohort.structures)

    return make_trained(
        Registration,
        step,
        cohort,
        config,
        method,
        round=round,
        inputs=inputs or {},
        force=force,
        clock=clock,
        draw=draw,
        tell=tell,
    )
