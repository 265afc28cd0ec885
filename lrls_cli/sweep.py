"""`lrls sweep`: DSC against a setting."""

from typing import Annotated

import typer

from lrls_cli.echo import tell, telling
from lrls_cli.options import AsJson, ConfigFile, Settings


def sweep(
    config: ConfigFile,
    swept: Annotated[
        str,
        typer.Argument(
            metavar="SETTING=A,B,C",
            help="A setting as for --set, and its values; a method's own needs no section: mix_weight=0,0.1,1.",
        ),
    ],
    methods: Annotated[list[str], typer.Option("--method", help="Repeat for a curve per method; see `lrls methods`.")],
    seeds: Annotated[
        list[int], typer.Option("--seed", help="Repeat to run every value several times; default: the file's seed.")
    ] = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
    budget: Annotated[str | None, typer.Option(help="Of every run, as of `lrls run`: 10m, or 2000steps.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Draw table and curve again; finished runs stay.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run methods with several values of one setting, and draw DSC against it: tables and a picture.

    Each run is what `lrls run --set SETTING=A --set seed=N` makes, so finished ones are found again.

    Example: lrls sweep lrls.yaml preprocess.most_atlases=1,2,3,5 --method brbs --seed 0 --seed 1
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import print_json, print_sweep, sweep_document
    from stages.sweep import sweep as stage
    from stages.training.budget import Budget

    parsed = Budget.parse(budget) if budget is not None else None
    made = stage(config, settings, methods, swept, seeds, budget=parsed, force=force, tell=telling(as_json))
    if as_json:
        print_json(sweep_document(made))
        return
    print_sweep(made)
    tell(made.folder)
