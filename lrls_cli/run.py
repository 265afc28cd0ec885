"""`lrls run`: all stages of a method."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrls_cli.echo import tell, telling
from lrls_cli.options import AsJson, ConfigFile, Force, MethodName, Scheduler, Settings, with_scheduler


class Until(StrEnum):
    """The last stage."""

    preprocess = "preprocess"
    train_reg = "train-reg"
    generate = "generate"
    train_seg = "train-seg"
    eval = "eval"


def run(
    config: ConfigFile,
    method: MethodName = "best",
    settings: Settings = [],  # noqa: B006
    scheduler: Scheduler = None,
    until: Annotated[Until, typer.Option(help="The last stage to run.")] = Until.eval,
    budget: Annotated[
        str | None,
        typer.Option(help="Time to the last weights: 90s, 10m, 2h; the plan is made for it. Or steps: 2000steps."),
    ] = None,
    round: Annotated[int | None, typer.Option(help="The last round to run, of methods with rounds.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Also write a report of the scores into this folder, as `lrls report` does; it replaces one."
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Plan what the time allows, then run all stages of a method; artifacts that are up to date are not made again.

    Example: lrls run lrls.yaml --budget 30m
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import plan_document, print_json, print_plan, print_scores, scores_document
    from stages.artifacts.plan import Plan
    from stages.config import load_config
    from stages.errors import LrlsError
    from stages.training.budget import Budget
    from stages.workflow import run as run_all

    loaded = load_config(config, with_scheduler(settings, scheduler))
    if report:
        from stages.report import check_out
        from stages.report import report as write_report

        if until is not Until.eval:
            raise LrlsError(f"--report shows scores, and --until {until.value} makes none; leave one of them out.")
        if not loaded.part(loaded.eval.part):
            raise LrlsError(
                f"--report shows scores, and data.{loaded.eval.part} lists no scan; list some, or leave it out."
            )
        check_out(loaded, report, force=True)
    plans: list[Plan] = []
    made = run_all(
        loaded, method, until=until.value, round=round,  # type: ignore[arg-type]
        budget=Budget.parse(budget) if budget is not None else None,
        force=force, tell=telling(as_json),
        show=plans.append if as_json else lambda plan: print_plan(plan.table, plan.budget_s),
    )  # fmt: skip
    if report:
        say = telling(as_json)
        say(write_report(loaded, [method], report, force=True, tell=say))
    if as_json:
        print_json(
            {
                "method": method,
                "plan": plan_document(plans[0].table, plans[0].budget_s, plans[0].total_s) if plans else None,
                "scores": scores_document(method, made.scores) if made.scores else None,
            }
        )
    elif made.scores:
        print_scores(method, made.scores)
        tell(made.scores.folder)
