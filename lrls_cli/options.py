"""Flags that commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(help="The project's YAML file; `lrls init` writes one.")]
MethodName = Annotated[str, typer.Option("--method", help="See `lrls methods`.")]
Settings = Annotated[list[str], typer.Option("--set", help="Override a setting, e.g. train_seg.steps=500; repeatable.")]
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
