"""`lrls plan`: what a run would do with its time."""

from typing import Annotated

import typer

from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, Settings


def plan(
    config: ConfigFile,
    settings: Settings = [],  # noqa: B006
    budget: Annotated[str | None, typer.Option(help="Time to the last weights: 90s, 10m or 2h.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again.")] = False,
) -> None:
    """Say what `lrls run` would do with a time, and why, without running it; later commands obey the newest plan.

    Example: lrls plan lrls.yaml --budget 30m
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import print_plan
    from stages.config import load_config
    from stages.errors import LrlsError
    from stages.planning.plans import plan_of_run
    from stages.planning.table import duration
    from stages.training.budget import Budget

    seconds = Budget.parse(budget).seconds if budget is not None else None
    if budget is not None and seconds is None:
        raise LrlsError("--budget: expected a time like 90s, 10m or 2h; a number of steps needs no plan.")
    made = plan_of_run(load_config(config, settings), seconds, force=force)
    if made is None:
        raise LrlsError("no plan can be made of these scans; `lrls check` says why.")
    print_plan(made)
    tell(f"the run will take about {duration(made.total_s)} to the last weights")
    tell(made.folder)
