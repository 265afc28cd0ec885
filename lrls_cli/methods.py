"""`lrls methods`: the list of methods."""

from lrls_cli.options import AsJson


def methods(as_json: AsJson = False) -> None:
    """List the methods."""
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import methods_document, print_json, print_methods
    from stages.methods import METHODS

    if as_json:
        print_json(methods_document(METHODS.values()))
    else:
        print_methods(METHODS.values())
