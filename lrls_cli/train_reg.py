"""`lrls train-reg`: stage 2."""

from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, Force, MethodName, Round, Settings


def train_reg(
    config: ConfigFile,
    method: MethodName,
    settings: Settings = [],  # noqa: B006
    round: Round = None,
    force: Force = False,
) -> None:
    """Train a method's registration networks on the cohort.

    Example: lrls train-reg lrls.yaml --method brbs
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from stages.planning.obeying import settled
    from stages.workflow import run_stage

    loaded, budget_s = settled(config, settings, method)
    made = run_stage(loaded, method, "train-reg", round=round, force=force, budget_s=budget_s)
    tell(made.folder)
