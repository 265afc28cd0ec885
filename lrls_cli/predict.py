"""`lrls predict`: label maps of new scans."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrls_cli.echo import telling
from lrls_cli.options import AsJson, Round, Scheduler, Settings, with_scheduler


class LabelFormat(StrEnum):
    """What label maps are written as."""

    nifti = "nifti"
    nrrd = "nrrd"
    mha = "mha"
    seg_nrrd = "seg.nrrd"


def predict(
    model: Annotated[Path, typer.Argument(help="An exported model (zip or folder), or the project's YAML file.")],
    scans: Annotated[list[Path], typer.Argument(help="NIfTI, NRRD, MHA, DICOM series folders, or folders of many.")],
    out: Annotated[Path, typer.Option(help="New folder for label maps, volumes, estimates and pictures.")],
    method: Annotated[
        str | None, typer.Option("--method", help="Method of the project; an exported model holds one.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write each structure's probabilities, a file each.")
    ] = False,
    label_format: Annotated[
        LabelFormat, typer.Option("--format", help="Format of the label maps; seg.nrrd: named segments for 3D Slicer.")
    ] = LabelFormat.nifti,
    rtstruct: Annotated[
        bool, typer.Option("--rtstruct", help="Also write contours as RTSTRUCT, for DICOM series.")
    ] = False,
    transforms: Annotated[
        bool,
        typer.Option("--transforms", help="Also write where each atlas went, as ITK transforms (antsApplyTransforms)."),
    ] = False,
    bids: Annotated[bool, typer.Option("--bids", help="Write label maps as a BIDS derivative dataset.")] = False,
    part: Annotated[
        str | None,
        typer.Option(help="3/10: the third of ten parts of the scans; all write into one folder, tables come without."),
    ] = None,
    settings: Settings = [],  # noqa: B006
    scheduler: Scheduler = None,
    round: Round = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    as_json: AsJson = False,
) -> None:
    """Segment new scans in their own voxels, and say which answers a person must look at.

    Examples: lrls predict model.zip new/*.nii.gz --out labels
              lrls predict model.zip ds --bids --out ds/derivatives/lrls
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from lrls_cli.tables import predictions_document, print_json
    from stages.answering.answered import Answered
    from stages.answering.exported import is_model, open_model
    from stages.answering.model import running_on
    from stages.errors import LrlsError, shortened
    from stages.predict import Forms
    from stages.predict import predict as stage

    numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", part or "1/1")
    chosen = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if not 1 <= chosen[0] <= chosen[1]:
        raise LrlsError(f"--part {shortened(part or '')}: expected a part and how many there are, such as 3/10.")
    tell, settings = telling(as_json), with_scheduler(settings, scheduler)
    rows: list[Answered] = []
    if is_model(model):
        for option, given in (("--method", method), ("--round", round)):
            if given is not None:
                raise LrlsError(f"{option}: an exported model is as it was trained; leave the option out.")
        opened = running_on(open_model(model), settings)
    else:
        from stages.calibrate import calibrated_model
        from stages.planning.obeying import settled
        from stages.workflow import trained

        if model.suffix not in (".yaml", ".yml"):
            raise LrlsError(f"{model} is neither an exported model nor a project's YAML file; name one of them first.")
        if method is None:
            raise LrlsError("--method is missing: name the trained method of the project, see `lrls methods`.")
        config = settled(model, settings, method).config
        made = trained(config, method, round=round)
        opened = calibrated_model(made, config, method)
    if opened.calibration is None:
        tell("no estimates of DSC: `lrls calibrate` makes them possible; flags are fewer without")
    forms = Forms(label_format.value, probabilities, rtstruct, transforms, bids)
    failures = stage(
        opened, scans, out, forms=forms, part=chosen if part else None, force=force, tell=tell, show=rows.extend
    )
    if as_json:
        print_json(predictions_document(out, rows, failures))
    else:
        tell(out)
    if failures:
        raise typer.Exit(1)
