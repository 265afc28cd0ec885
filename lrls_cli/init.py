"""`lrls init`: a first configuration file for a folder of scans."""

from pathlib import Path
from typing import Annotated

import typer

from lrls_cli.echo import tell
from lrls_cli.ending import refused


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
    from stages.errors import LrlsError, plural

    description = describe_folder(folder)
    try:
        write_config(description, output, force=force)
    except OSError as error:
        raise LrlsError(f"--output {output}: {refused(error)}") from None
    counts = [
        plural(len(description["atlases"]), "atlas", "atlases"),
        f"{len(description['unlabeled'])} unlabeled",
        f"{len(description['test'])} test",
    ]
    structures = plural(len(description["structures"]), "structure")
    tell(f"{output}: {', '.join(counts)}; {structures}; {description['modality']}")
    for note in description["notes"]:
        tell(note)
    for line in description["left_out"]:
        tell(f"left out: {line}")
    tell(f"Next: look through {output}, then `lrls check {output}`.")
