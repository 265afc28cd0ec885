"""What commands say, as plain text: names that users gave cannot steer a terminal."""

from __future__ import annotations

from collections.abc import Callable

import typer

from stages import ranks
from stages.errors import LostProcess, printable


def tell(message: object) -> None:
    """Print a line to standard output."""
    typer.echo(printable(str(message)))


def telling(as_json: bool) -> Callable[[object], None]:
    """What tells the lines of a command: to standard error where standard output is one JSON document."""
    return tell_beside if as_json else tell


def tell_beside(message: object) -> None:
    """Print a line to standard error."""
    typer.echo(printable(str(message)), err=True)


def complain(message: object) -> None:
    """Print a line to standard error, if there is still somebody to read it.

    Of processes that train together the first one prints; what another one ended with comes first.
    """
    if ranks.rank():
        ranks.leave_line(printable(str(message)))
        return
    if isinstance(message, LostProcess):
        message = ranks.line_of_others() or message
    try:
        typer.echo(f"lrls: {printable(str(message))}", err=True)
    except OSError:  # the terminal is gone
        return
