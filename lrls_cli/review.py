"""`lrls review`: what people said in a report comes back into the project."""

from pathlib import Path
from typing import Annotated

import typer

from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, Settings


def review(
    config: ConfigFile,
    ratings: Annotated[Path | None, typer.Argument(help="The ratings.tsv that a report saved.")] = None,
    corrected: Annotated[
        Path | None, typer.Option(help="Folder of corrected label maps, named by case id: they become atlases.")
    ] = None,
    settings: Settings = [],  # noqa: B006
) -> None:
    """Take over ratings and corrected label maps: excluded scans are left out, corrected ones become atlases.

    Writes one file, review.yaml, which `data.review` names; the scans, label maps and the configuration stay as they
    are.

    Example: lrls review lrls.yaml ratings.tsv --corrected corrected
    """
    # Imported here so that `lrls --help` does not wait for SimpleITK.
    from stages.review import review as stage

    written = stage(config, ratings, corrected, settings)
    tell(written.file)
    for line in written.lines:
        tell(line)
    if written.setting:
        tell(f"Next: add to {config.name}, below `data:`, the line")
        tell(f"  {written.setting}")
        tell(f"or give every command --set data.{written.setting.replace(': ', '=', 1)}")
    else:
        tell(f"Next: `lrls check {config.name}`, then `lrls run {config.name}` as before.")
