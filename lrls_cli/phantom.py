"""`lrls phantom`: a small synthetic cohort to try everything on."""

from pathlib import Path
from typing import Annotated

import typer

from lrls_cli.echo import tell


def phantom(
    folder: Annotated[Path, typer.Argument(help="Folder to write images/, labels/ and lrls.yaml to.")],
    scans: Annotated[
        int, typer.Option(help="Number of scans: one atlas, half without labels, dev and test scans.")
    ] = 14,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a cohort that the folder holds.")] = False,
) -> None:
    """Write a small synthetic cohort: one anatomy, deformed and imaged differently in every scan.

    Example: lrls phantom phantoms --scans 14
    """
    # Imported here so that `lrls --help` does not wait for SimpleITK.
    from stages.data.phantoms import write_phantoms

    config = write_phantoms(folder, scans=scans, seed=seed, force=force)
    tell(f"{config}: {scans} scans. Next: `lrls check {config}`, then `lrls run {config} --method brbs`.")
