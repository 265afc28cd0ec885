"""`lrls eval`: stage 5."""

from lrls_cli.echo import tell, telling
from lrls_cli.options import AsJson, ConfigFile, Force, MethodName, Round, Scheduler, Settings, with_scheduler


def evaluate(
    config: ConfigFile,
    method: MethodName,
    settings: Settings = [],  # noqa: B006
    scheduler: Scheduler = None,
    round: Round = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Score a method on the held-out scans, in their own space.

    Example: lrls eval lrls.yaml --method brbs --set eval.part=dev
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import print_json, print_scores, scores_document
    from stages.artifacts.scores import Scores
    from stages.planning.obeying import settled
    from stages.workflow import run_stage

    loaded = settled(config, with_scheduler(settings, scheduler), method).config
    scores = run_stage(loaded, method, "eval", round=round, force=force, tell=telling(as_json))
    assert isinstance(scores, Scores)
    if as_json:
        print_json(scores_document(method, scores))
        return
    print_scores(method, scores)
    tell(scores.folder)
