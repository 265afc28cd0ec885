"""`lrls report`: a folder to look at, judge and pass round."""

from pathlib import Path
from typing import Annotated

import typer

from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, Settings


def report(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="Folder to make; its index.html opens in a browser, without a network.")],
    methods: Annotated[
        list[str],
        typer.Option(
            "--method",
            help="Repeat for every method, as for `lrls compare`; the first is the reference. Default: all scored.",
        ),
    ] = [],  # noqa: B006
    unlabeled: Annotated[
        bool,
        typer.Option("--unlabeled", help="Answer the unlabelled scans, which have no truth: estimated DSC and flags."),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of the runs; default: the file's.")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    settings: Settings = [],  # noqa: B006
    force: Annotated[bool, typer.Option("--force", help="Replace a report that lies there.")] = False,
) -> None:
    """Write a report that opens offline: every scan in a viewer, methods compared, and a form to rate answers.

    Example: lrls report lrls.yaml --method unet --method best --out report
    """
    # Imported here so that `lrls --help` does not wait for torch.
    if unlabeled:
        from stages.report_unlabeled import report_unlabeled

        tell(report_unlabeled(config, settings, methods or ["best"], out, title=title, force=force, tell=tell))
        return
    from stages.config import load_config
    from stages.report import report as write

    tell(write(load_config(config, settings), methods, out, seed=seed, title=title, force=force, tell=tell))
