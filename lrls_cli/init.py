"""`lrls init`: a first configuration file for a folder of scans."""

from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of scans, or the dataset.json of MSD or nnU-Net v2.")],
    output: Annotated[Path, typer.Option(help="Configuration file to write.")] = Path("lrls.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a commented configuration file for a folder of scans.

    The folder holds images/ and labels/ (or imagesTr, imagesTs and labelsTr), a dataset.json, a BIDS folder, or just
    scans. Files that are left out are named, with the reason.

    Example: lrls init scans
    """
    # Imported here so that `lrls --help` does not wait for SimpleITK.
    from stages.data.initialize import describe_folder, write_config

    description = describe_folder(folder)
    write_config(description, output, force=force)
    counts = ", ".join(f"{len(description[part])} {part}" for part in ("atlases", "unlabeled", "test"))  # type: ignore[literal-required]
    number = len(description["structures"])
    typer.echo(f"{output}: {counts}; {number} structure{'s' * (number != 1)}; {description['modality']}")
    for note in description["notes"]:
        typer.echo(note)
    for line in description["left_out"]:
        typer.echo(f"left out: {line}")
    typer.echo(f"Next: look through {output}, then `lrls check {output}`.")
