"""`lrls check`: every fault of the cohort, by scan, with its remedy."""

from pathlib import Path
from typing import Annotated

import typer

from lrls_cli.options import AsJson


def check(
    config: Annotated[Path, typer.Argument(help="The project's YAML file.")],
    settings: Annotated[list[str], typer.Option("--set", help="Override, e.g. others=background.")] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Look for faults in all scans and label maps; writes nothing.

    Ends with 1 if there is a fault; notices, marked "note:", stop nothing.

    Example: lrls check lrls.yaml
    """
    # Imported here so that `lrls --help` does not wait for SimpleITK.
    from rich.console import Console

    from lrls_cli.echo import tell
    from lrls_cli.tables import print_faults, print_json
    from stages.config import PARTS, load_config
    from stages.data.checks import cohort_faults, report
    from stages.errors import plural
    from stages.methods import find_method, settings_of
    from stages.review import changes

    settled = load_config(config, settings)
    for method in settled.methods:
        settings_of(find_method(method), settled)
    only_supervised = settled.part("supervised") and not settled.part("atlases") and not settled.part("unlabeled")
    parts = [part for part in PARTS if not (only_supervised and part in ("atlases", "unlabeled"))]
    cases = {case for part in parts for case in settled.part(part)}
    with Console(stderr=True).status(f"reading {len(cases)} scans"):
        found = cohort_faults(settled, parts)
    stopping = sum(fault.stops for fault in found)
    if as_json:
        said = {"review": changes(settled)} if settled.review else {}
        print_json(report(settled, parts, found) | said)
    else:
        for line in changes(settled):
            tell(line)
        print_faults(found)
        if not found and not settled.part("test") and not settled.part("dev"):
            tell("Nothing to score: data.test and data.dev list no scan; hold back some labelled ones there.")
        notices = f", {plural(len(found) - stopping, 'notice')}" if len(found) > stopping else ""
        tell(f"{plural(len(cases), 'scan')}, {plural(stopping, 'fault') if stopping else 'no faults'}{notices}.")
    if stopping:
        raise typer.Exit(1)
