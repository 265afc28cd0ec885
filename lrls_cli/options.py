"""Flags that commands share."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(help="The project's YAML file; `lrls init` writes one.")]
MethodName = Annotated[str, typer.Option("--method", help="See `lrls methods`.")]
Settings = Annotated[list[str], typer.Option("--set", help="Override a setting, e.g. train_seg.steps=500; repeatable.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        help="Work on cases by a Dask cluster: its scheduler's address or file; see docs/cluster.md.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Make a new version even where one is up to date.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, for programs; everything else goes to standard error.")
]
Round = Annotated[
    int | None,
    typer.Option(
        help="Round of a method that has rounds; default: the last one in scoring and prediction, otherwise 0."
    ),
]


def with_scheduler(settings: list[str], scheduler: str | None) -> list[str]:
    """Settings as `--set` gives them, with the scheduler that `--scheduler` names."""
    if scheduler is None:
        return settings
    from stages.compute_settings import is_address

    place = scheduler if is_address(scheduler) else os.path.abspath(scheduler)
    return [*settings, f"compute.scheduler={json.dumps(place)}", "compute.cluster=null", "compute.cases=dask"]
