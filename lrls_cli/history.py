"""`lrls history`: what was made from what."""

from lrls_cli.options import AsJson, ConfigFile, Settings


def history(config: ConfigFile, settings: Settings = [], as_json: AsJson = False) -> None:  # noqa: B006
    """List the workspace's artifacts, oldest first, with what each was made from, and what stopped runs left.

    Example: lrls history lrls.yaml
    """
    from lrls_cli.tables import history_document, print_history, print_json
    from stages.artifacts.found import look_through
    from stages.config import load_config

    workspace = load_config(config, settings).workspace
    found = look_through(workspace)
    if as_json:
        print_json(history_document(found, workspace))
    else:
        print_history(found, workspace)
