"""`lrls generate`: stage 3."""

from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, Force, MethodName, Round, Scheduler, Settings, with_scheduler


def generate(
    config: ConfigFile,
    method: MethodName,
    settings: Settings = [],  # noqa: B006
    scheduler: Scheduler = None,
    round: Round = None,
    force: Force = False,
) -> None:
    """Write the data that a method's segmentation learns from.

    Example: lrls generate lrls.yaml --method brbs
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from stages.planning.obeying import settled
    from stages.workflow import run_stage

    loaded = settled(config, with_scheduler(settings, scheduler), method).config
    made = run_stage(loaded, method, "generate", round=round, force=force, tell=tell)
    tell(made.folder)
