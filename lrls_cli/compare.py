"""`lrls compare`: one table over methods."""

from typing import Annotated

import typer

from lrls_cli.options import ConfigFile, Settings


def compare(
    config: ConfigFile,
    methods: Annotated[
        list[str], typer.Option("--method", help="Repeat for every method; the first is the reference.")
    ],
    settings: Settings = [],  # noqa: B006
) -> None:
    """Print the newest scores of several methods side by side, with intervals and paired tests.

    Example: lrls compare lrls.yaml --method unet --method brbs
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from rich.console import Console
    from rich.table import Table

    from stages.compare import compare as rows_of
    from stages.config import load_config

    settled = load_config(config, settings)
    rows = rows_of(settled, methods)
    table = Table(
        title=f"{settled.eval.part}, {int(rows[0].dsc['n'])} scans; differences to {rows[0].method}",
        title_justify="left",
    )
    headings = (
        "method",
        "output",
        "DSC",
        "95 %",
        "worst",
        "HD95",
        "ASSD",
        "missed",
        "|J|<=0 %",
        "std|J|",
        "diff.",
        "95 %",
        "p",
    )
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("method", "output") else "right")
    for row in rows:
        low, high = row.difference_interval or (None, None)
        table.add_row(
            row.method,
            row.output[:3],
            f"{row.dsc['mean']:.4f}",
            f"{row.dsc['low']:.3f}-{row.dsc['high']:.3f}",
            f"{row.dsc['min']:.3f}",
            f"{row.hd95_mm:.2f}",
            f"{row.assd_mm:.2f}",
            str(row.missed),
            "" if row.folding_percent is None else f"{row.folding_percent:.2f}",
            "" if row.jacobian_std is None else f"{row.jacobian_std:.2f}",
            "" if row.difference is None else f"{row.difference:+.4f}",
            "" if low is None else f"{low:+.3f} {high:+.3f}",
            "" if row.p_value is None else f"{row.p_value:.2g}",
        )
    Console(width=None if Console().is_terminal else 150).print(table)
