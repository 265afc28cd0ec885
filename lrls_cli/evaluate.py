"""`lrls eval`: stage 5."""

from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, Force, MethodName, Round, Settings


def evaluate(
    config: ConfigFile,
    method: MethodName,
    settings: Settings = [],  # noqa: B006
    round: Round = None,
    force: Force = False,
) -> None:
    """Score a method on the held-out scans, in their own space.

    Example: lrls eval lrls.yaml --method brbs --set eval.part=dev
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import print_scores
    from stages.artifacts.scores import Scores
    from stages.planning.obeying import settled
    from stages.workflow import run_stage

    scores = run_stage(settled(config, settings, method).config, method, "eval", round=round, force=force, tell=tell)
    assert isinstance(scores, Scores)
    print_scores(method, scores)
    tell(scores.folder)
