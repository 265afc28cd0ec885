"""`lrls info`: what a report of a bug needs."""

from pathlib import Path
from typing import Annotated

import typer

from lrls_cli.options import AsJson, Settings


def info(
    config: Annotated[Path | None, typer.Argument(help="A project's YAML file: what is chosen with its settings.")] = (
        None
    ),
    settings: Settings = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Say versions, processor, memory and devices, and what `auto` chooses here: for reports of bugs.

    Names no host, no user and no folder.

    Example: lrls info
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import print_info, print_json
    from stages.config import load_config
    from stages.errors import LrlsError
    from stages.info import about_this_machine

    if settings and config is None:
        raise LrlsError("--set: settings are a project's; name its YAML file first.")
    about = about_this_machine(load_config(config, settings) if config else None)
    if as_json:
        print_json(about)
    else:
        print_info(about)
