"""`lrls plan`: what a run would do with its time."""

from typing import Annotated

import typer

from lrls_cli.echo import tell
from lrls_cli.options import AsJson, ConfigFile, Settings


def plan(
    config: ConfigFile,
    settings: Settings = [],  # noqa: B006
    budget: Annotated[str | None, typer.Option(help="Time to the last weights: 90s, 10m or 2h.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again, and make a plan that runs obey.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what `lrls run` would do with a time, and why, without running it.

    Example: lrls plan lrls.yaml --budget 30m
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import plan_document, print_json, print_plan
    from stages.config import load_config
    from stages.errors import LrlsError
    from stages.planning.plans import plan_of_run, proposed_plan
    from stages.planning.table import duration
    from stages.training.budget import Budget

    seconds = Budget.parse(budget).seconds if budget is not None else None
    if budget is not None and seconds is None:
        raise LrlsError("--budget: expected a time like 90s, 10m or 2h; a number of steps needs no plan.")
    loaded = load_config(config, settings)
    if force:
        plan_of_run(loaded, seconds, force=True)
    proposed = proposed_plan(loaded, seconds)
    if proposed is None:
        raise LrlsError("no plan can be made of these scans; `lrls check` says why.")
    total_s = sum(proposed["seconds"].values())
    if as_json:
        print_json(plan_document(proposed["table"], seconds, total_s))
        return
    print_plan(proposed["table"], seconds)
    tell(f"the run will take about {duration(total_s)} to the last weights")
