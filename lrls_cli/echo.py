"""What commands say, as plain text: names that users gave cannot steer a terminal."""

from __future__ import annotations

import typer

from stages.errors import printable


def tell(message: object) -> None:
    """Print a line to standard output."""
    typer.echo(printable(str(message)))


def complain(message: object) -> None:
    """Print a line to standard error, if there is still somebody to read it."""
    try:
        typer.echo(f"lrls: {printable(str(message))}", err=True)
    except OSError:  # the terminal is gone
        return
