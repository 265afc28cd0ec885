"""`lrls history`: what was made from what."""

from lrls_cli.options import ConfigFile, Settings


def history(config: ConfigFile, settings: Settings = []) -> None:  # noqa: B006
    """List the workspace's artifacts, oldest first, with what each was made from, and what stopped runs left.

    Example: lrls history lrls.yaml
    """
    from lrls_cli.tables import print_history
    from stages.artifacts.found import look_through
    from stages.config import load_config

    workspace = load_config(config, settings).workspace
    print_history(look_through(workspace), workspace)
