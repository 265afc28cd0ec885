"""Stage 3: write the data that a method's writers generate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import h5py

from stages.answering.jobs import job_of
from stages.artifacts.cohort import Cohort
from stages.artifacts.draft import Draft
from stages.artifacts.former import FormerPaths
from stages.artifacts.generated import Generated
from stages.artifacts.h5 import new_h5
from stages.artifacts.store import make
from stages.config import Config
from stages.data.faults import disk_fault
from stages.device import choose_device
from stages.errors import LrlsError
from stages.methods import find_method, plan_of, recipe_of, settings_read
from stages.methods.recipe import Generate
from stages.training.runs import Inputs


def generate(
    cohort: Cohort,
    config: Config,
    method_name: str,
    *,
    round: int = 0,
    inputs: Inputs | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> Generated:
    """Write what a method's networks learn from.

    Args:
        round: 0, or a round of a method with rounds.
        inputs: what the method's recipe says that this step uses.
        tell: receives lines for the user.

    Raises:
        LrlsError: the method generates nothing, the disk has no room, or the screening accepts nothing.
    """
    method, inputs = find_method(method_name), inputs or {}
    plan = plan_of(method, config, cohort)
    step = plan.step("generated", round)
    if not isinstance(step, Generate):
        if plan.last_round:
            raise LrlsError(f"{method.name} generates nothing in round {round}; name another one with --round.")
        raise LrlsError(f"{method.name} generates nothing; go on with `lrls {plan.next_stage(round, 'generate')}`.")

    def ready() -> None:
        num_bytes = sum(writer.planned_bytes(cohort, config.generate) for writer in step.writers)
        tell(f"generated.h5 will hold {num_bytes / 1e6:.0f} MB.")
        if fault := disk_fault(config.workspace, 2 * num_bytes):
            raise LrlsError(str(fault))

    target = config.workspace / method.name / Generated.KIND
    settings = settings_read(method, config, "generate", round=round)

    def write(draft: Draft) -> None:
        device = choose_device(config)
        draft.device = str(device)
        recipe = recipe_of(method, cohort, config)
        recipe.load(inputs.values())
        own = recipe.step("generated", round)
        assert isinstance(own, Generate)
        if own.borrowed:
            own.borrowed.artifact.load(own.borrowed.networks)
        job = job_of(recipe, cohort, config, device, draft, tell=tell)
        sources = {**inputs, **({"borrowed": step.borrowed.artifact} if step.borrowed else {})}
        weights = {role: artifact.manifest.digest for role, artifact in sources.items()}
        with (
            FormerPaths(target, cohort, settings, weights, config.seed, str(device)) as former,
            new_h5(draft.folder / "generated.h5") as file,
        ):
            for place, writer in enumerate(own.writers):
                pieces = draft.resume / f"{place}"
                pieces.mkdir(exist_ok=True)
                writer.write(file, replace(job, resume=pieces, former=former.row))
        (draft.folder / "qc").mkdir(exist_ok=True)
        with h5py.File(draft.folder / "generated.h5") as file:
            for writer in own.writers:
                writer.draw_pictures(file, cohort, draft.folder / "qc", config.seed)

    return make(
        Generated,
        target,
        write,
        made_by="generate",
        settings=settings | {"generate": config.generate.model_dump(mode="json")},
        seed=config.seed,
        round=round,
        inputs={"cohort": cohort, **inputs, "borrowed": step.borrowed.artifact if step.borrowed else None},
        force=force,
        ready=ready,
    )
