"""`lrls check`: every fault of the cohort, by scan, with its remedy."""

from pathlib import Path
from typing import Annotated

import typer


def check(
    config: Annotated[Path, typer.Argument(help="The project's YAML file.")],
    settings: Annotated[list[str], typer.Option("--set", help="Override, e.g. others=background.")] = [],  # noqa: B006
) -> None:
    """Look for faults in all scans and label maps; writes nothing.

    Ends with 1 if there is a fault.

    Example: lrls check lrls.yaml
    """
    # Imported here so that `lrls --help` does not wait for SimpleITK.
    from rich.console import Console

    from lrls_cli.tables import print_faults
    from stages.config import PARTS, load_config
    from stages.data.checks import cohort_faults
    from stages.methods import find_method, settings_of

    settled = load_config(config, settings)
    for method in settled.methods:
        settings_of(find_method(method), settled)
    only_supervised = settled.part("supervised") and not settled.part("atlases") and not settled.part("unlabeled")
    parts = [part for part in PARTS if not (only_supervised and part in ("atlases", "unlabeled"))]
    cases = {case for part in parts for case in settled.part(part)}
    with Console().status(f"reading {len(cases)} scans"):
        faults = cohort_faults(settled, parts)
    if not faults:
        if not settled.part("test") and not settled.part("dev"):
            typer.echo("Nothing to score: data.test and data.dev list no scan; hold back some labelled ones there.")
        typer.echo(f"{len(cases)} scans, no faults.")
        return
    print_faults(faults)
    typer.echo(f"{len(cases)} scans, {len(faults)} fault{'s' if len(faults) > 1 else ''}.")
    raise typer.Exit(1)
