"""`lrls train-seg`: stage 4."""

from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, Force, MethodName, Round, Settings


def train_seg(
    config: ConfigFile,
    method: MethodName,
    settings: Settings = [],  # noqa: B006
    round: Round = None,
    force: Force = False,
) -> None:
    """Train a method's segmentation network.

    Example: lrls train-seg lrls.yaml --method brbs
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from stages.config import load_config
    from stages.workflow import run_stage

    tell(run_stage(load_config(config, settings), method, "train-seg", round=round, force=force).folder)
