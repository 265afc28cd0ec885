"""`lrls preprocess`: stage 1."""

from enum import StrEnum
from typing import Annotated

import typer

from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, Force, Scheduler, Settings, with_scheduler


class Part(StrEnum):
    """Which scans."""

    train = "train"
    supervised = "supervised"
    dev = "dev"
    test = "test"


def preprocess(
    config: ConfigFile,
    part: Annotated[
        Part, typer.Option(help="train: atlases and unlabelled scans; others are brought to their grid.")
    ] = Part.train,
    settings: Settings = [],  # noqa: B006
    scheduler: Scheduler = None,
    force: Force = False,
) -> None:
    """Align, crop, resample and normalise the scans.

    Example: lrls preprocess lrls.yaml
    """
    # Imported here so that `lrls --help` does not wait for SimpleITK.
    from stages.errors import plural
    from stages.planning.obeying import settled
    from stages.preprocess import preprocess as stage

    cohort = stage(settled(config, with_scheduler(settings, scheduler)).config, part.value, force=force)
    grid = cohort.grid
    spacing = " x ".join(f"{s:.3g}" for s in grid.spacing_mm)
    tell(f"{plural(len(cohort.cases), 'scan')} on {' x '.join(map(str, grid.shape))} voxels of {spacing} mm")
    for note in cohort.notes:
        tell(f"note: {note}")
    for case in cohort.fallen_back():
        tell(f"warning: case {case}: the alignment was refused, centres of mass are used; look at qc/cohort.png.")
    tell(cohort.folder)
