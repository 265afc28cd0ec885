"""`lrls calibrate`: what tells good answers from bad ones."""

from typing import Annotated

import typer

from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, Force, MethodName, Round, Scheduler, Settings, with_scheduler

NetworkOnly = Annotated[
    bool, typer.Option("--network-only", help="Answer by the network alone, even where the method fuses.")
]


def calibrate(
    config: ConfigFile,
    method: MethodName,
    network_only: NetworkOnly = False,
    couples: Annotated[int, typer.Option(min=9, help="Generated couples to answer, a third of them undamaged.")] = 30,
    settings: Settings = [],  # noqa: B006
    scheduler: Scheduler = None,
    round: Round = None,
    force: Force = False,
) -> None:
    """Learn how far to trust a method's answers, from couples that it generates; `predict` then estimates DSC.

    Example: lrls calibrate lrls.yaml --method best
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from stages.calibrate import calibrate as stage
    from stages.planning.obeying import settled
    from stages.workflow import trained

    loaded = settled(config, with_scheduler(settings, scheduler), method).config
    made = trained(loaded, method, round=round)
    calibration = stage(made, loaded, method, network_only=network_only, couples=couples, force=force)
    tell(f"estimates of DSC are off by {calibration.read().error:.3f} on average, on generated couples")
    tell(calibration.folder)
