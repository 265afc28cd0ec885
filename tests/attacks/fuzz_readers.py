"""All readers that are fuzzed, by name."""

from __future__ import annotations

from attacks.fuzz import Reader
from attacks.fuzz_files import FILES
from attacks.fuzz_scans import SCANS
from attacks.fuzz_workspaces import workspaces


def readers() -> dict[str, Reader]:
    return SCANS | FILES | workspaces()


def import_everything() -> None:
    """What readers import when they are first called, so that it counts for no input."""
    import highdicom  # noqa: F401
    import pandas  # noqa: F401
    import torch

    import stages.answering.exported
    import stages.answering.predictor
    import stages.artifacts.generated
    import stages.dask_clusters
    import stages.data.initialize
    import stages.data.rtstruct
    import stages.review
    import stages.workflow  # noqa: F401

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
