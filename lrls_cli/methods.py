"""`lrls methods`: the list of methods."""


def methods() -> None:
    """List the methods."""
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import print_methods
    from stages.methods import METHODS

    print_methods(METHODS.values())
