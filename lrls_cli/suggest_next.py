"""`lrls suggest-next`: which scans to label or correct next."""

from typing import Annotated

import typer

from lrls_cli.echo import tell
from lrls_cli.options import AsJson, ConfigFile, Force, MethodName, Round, Settings


def suggest_next(
    config: ConfigFile,
    method: MethodName,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Scans to suggest, as one batch.")] = 5,
    top: Annotated[int, typer.Option(min=1, help="Rows to print; the CSV file has all.")] = 10,
    settings: Settings = [],  # noqa: B006
    round: Round = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Rank the unlabelled scans by what labelling them would bring a trained method, with reasons.

    Needs a finished training; `lrls calibrate` before it makes the estimates better. Writes a table and a picture.

    Example: lrls suggest-next lrls.yaml --method best -n 3
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import next_scans_document, print_json, print_next_scans
    from stages.planning.obeying import settled
    from stages.suggest_next import suggest_next as stage
    from stages.workflow import trained

    settled_config = settled(config, settings, method).config
    made = trained(settled_config, method, round=round)
    suggested = stage(made, settled_config, method, count=number, force=force)
    if as_json:
        print_json(next_scans_document(suggested, settled_config.review))
        return
    print_next_scans(suggested, max(top, number), settled_config.review)
    tell(suggested.folder)
