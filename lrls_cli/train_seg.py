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
    from stages.planning.obeying import settled
    from stages.workflow import run_stage

    loaded, budget_s = settled(config, settings, method)
    made = run_stage(loaded, method, "train-seg", round=round, force=force, budget_s=budget_s)
    tell(made.folder)
