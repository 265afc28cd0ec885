"""`lrls methods`: what there is."""

from rich.console import Console
from rich.table import Table


def methods() -> None:
    """List the methods."""
    # Imported here so that `lrls --help` does not wait for torch.
    from stages.methods import METHODS

    table = Table("method", "what it does", "source")
    for method in METHODS.values():
        table.add_row(method.name, method.summary, method.source)
    Console().print(table)
