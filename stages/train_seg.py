"""Stage 4: train a method's segmentation network on labelled scans or generated data."""

from __future__ import annotations

from collections.abc import Callable

from stages.artifacts.cohort import Cohort
from stages.artifacts.draft import Draft
from stages.artifacts.weights import Segmentation
from stages.config import Config
from stages.errors import LrlsError
from stages.methods import find_method, plan_of
from stages.methods.recipe import Recipe, Train
from stages.training.clock import Clock
from stages.training.loop import Run
from stages.training.runs import Inputs, make_trained


def train_segmentation(
    cohort: Cohort,
    config: Config,
    method_name: str,
    *,
    round: int = 0,
    inputs: Inputs | None = None,
    force: bool = False,
    clock: Clock | None = None,
    tell: Callable[[str], None] = print,
) -> Segmentation:
    """Train a method's segmentation network; without phases, keep what `train-reg` trained beside the registration.

    Args:
        cohort: labelled (and unlabelled) scans.
        round: 0, or a round of a method with rounds.
        inputs: what the method's recipe says that this step uses.
        clock: keeps the training within a time.
        tell: receives a line where the settings say what training starts from.

    Raises:
        LrlsError: the method trains no segmentation network.
    """
    method = find_method(method_name)
    step = plan_of(method, config, cohort).step("segmentation", round)
    if not isinstance(step, Train):
        raise LrlsError(f"{method.name} trains no segmentation network; go on with `lrls eval`.")

    def draw(draft: Draft, recipe: Recipe, run: Run) -> None:
        from stages.pictures import loss_curves

        loss_curves(run.log, draft.folder / "losses.png")

    return make_trained(
        Segmentation,
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
