"""`lrls suggest-atlas`: which scan to label first."""

from enum import StrEnum
from typing import Annotated

import typer

from lrls_cli.echo import tell
from lrls_cli.options import AsJson, ConfigFile, Force, Scheduler, Settings, with_scheduler


class By(StrEnum):
    """What a scan is compared with."""

    others = "others"
    average = "average"


def suggest_atlas(
    config: ConfigFile,
    top: Annotated[int, typer.Option(min=1, help="Rows to print; the CSV file has all.")] = 10,
    by: Annotated[By, typer.Option(help="Mean similarity to the other scans, or to their average.")] = By.others,
    settings: Settings = [],  # noqa: B006
    scheduler: Scheduler = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Rank the unlabelled scans by how typical they are: which one to label first, and how certain that is.

    Needs no atlas. Writes a table and a picture.

    Example: lrls suggest-atlas lrls.yaml
    """
    # Imported here so that `lrls --help` does not wait for SimpleITK.
    from lrls_cli.tables import print_json, print_suggestion, suggestion_document
    from stages.config import load_config
    from stages.suggest_atlas import suggest_atlas as stage

    suggestion = stage(load_config(config, with_scheduler(settings, scheduler)), by=by.value, force=force)  # type: ignore[arg-type]
    if as_json:
        print_json(suggestion_document(suggestion))
        return
    print_suggestion(suggestion, top)
    tell(suggestion.folder)
