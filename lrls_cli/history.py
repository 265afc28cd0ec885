"""`lrls history`: what was made from what."""

from lrls_cli.ending import refused
from lrls_cli.options import ConfigFile, Settings


def history(config: ConfigFile, settings: Settings = []) -> None:  # noqa: B006
    """List the workspace's artifacts, oldest first, with what each was made from.

    Example: lrls history lrls.yaml
    """
    from lrls_cli.tables import print_history
    from stages.artifacts.files import first_unreadable
    from stages.artifacts.store import history as finished
    from stages.config import load_config
    from stages.errors import LrlsError

    workspace = load_config(config, settings).workspace
    if error := first_unreadable(workspace):
        raise LrlsError(refused(error))
    print_history(finished(workspace), workspace)
