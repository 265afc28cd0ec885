"""`lrls compare`: one table over methods."""

from typing import Annotated

import typer

from lrls_cli.echo import tell, telling
from lrls_cli.options import AsJson, ConfigFile, Force, Settings


def compare(
    config: ConfigFile,
    methods: Annotated[
        list[str],
        typer.Option(
            "--method",
            help="Repeat for every method; the first is the reference. Settings after the name choose among its runs.",
        ),
    ],
    seeds: Annotated[
        list[int], typer.Option("--seed", help="Repeat to average every scan over runs; default: the file's seed.")
    ] = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Put the newest scores of several methods side by side: a table, CSV, Markdown and a picture.

    Runs with the file's settings come first. Settings after a method's name choose other runs: "round=0" of a method
    with rounds, "data.atlases=[p01]" for other scans. Time and memory count everything up to the last weights.

    Example: lrls compare lrls.yaml --method unet --method "brbs mmr=false" --method "brbs mmr=true"
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import comparison_document, print_comparison, print_json
    from stages.compare import compare as compared
    from stages.config import load_config

    settled = load_config(config, settings)
    comparison = compared(settled, methods, seeds, force=force, tell=telling(as_json))
    if as_json:
        print_json(comparison_document(comparison, settled.eval.part))
        return
    print_comparison(comparison, settled.eval.part)
    tell(comparison.folder)
