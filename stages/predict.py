"""Label maps of new scans, in the scans' own voxels, with estimates of how far to trust them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stages.answering.answered import Answered, AnswerFolder, record_of
from stages.answering.exported import model_digest
from stages.answering.model import Model
from stages.answering.outliers import COLUMNS, FAR, LEAST_SCANS, outlier_rows, spread_of
from stages.answering.predictor import Failure, Prediction, Predictor
from stages.answering.quality import Quality
from stages.artifacts.digests import digest_of
from stages.artifacts.files import atomic_write_text
from stages.case_ids import as_compared
from stages.compute_settings import ComputeSettings
from stages.data.bids_derivatives import names_in_bids, write_dataset, write_sidecars
from stages.data.dicom_files import is_dicom
from stages.data.grid import to_grid
from stages.data.new_scans import find_scans
from stages.data.own_space import as_label_image
from stages.data.segments import write_segmentation
from stages.data.writers import colours_of, csv_of, write_image, write_label_tables, write_whole
from stages.errors import LrlsError
from stages.parts.channels import first_channel
from stages.parts.colors import chosen_colors

MOST_SEEN = 20  # folders that workers are asked for
TABLES_SHARE = 0.05  # of the time goes into tables of scans that are done
LabelFormat = Literal["nifti", "nrrd", "mha", "seg.nrrd"]
CONTOURS = "_rtstruct"  # behind a case in the name of its contours' file
ENDINGS: dict[LabelFormat, str] = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "seg.nrrd": ".seg.nrrd"}


@dataclass(frozen=True)
class Forms:
    """In which forms answers are written.

    Args:
        labels: format of the label maps.
        probabilities: also write each structure's.
        rtstruct: also write contours, of DICOM series.
        transforms: also write where each atlas went, for ANTs, SimpleITK and 3D Slicer.
        bids: as a BIDS derivative dataset; `names` has each label map's path in it, without ending.
    """

    labels: LabelFormat = "nifti"
    probabilities: bool = False
    rtstruct: bool = False
    transforms: bool = False
    bids: bool = False
    names: dict[str, str] = field(default_factory=dict)

    def label_file(self, case: str) -> str:
        """Path of a label map in the folder."""
        return self.names.get(case, case) + ENDINGS[self.labels]

    def asked(self, model: Model) -> str:
        """A digest of the model and of what is asked of it."""
        further = [*([self.labels] if self.labels != "nifti" else []), *(
            name for name in ("rtstruct", "transforms", "bids") if getattr(self, name)
        ), *([sorted(model.config.colours.items())] if model.config.colours else [])]  # fmt: skip
        return digest_of([model_digest(model), self.probabilities, *further])


def predict(
    model: Model,
    paths: Sequence[Path],
    out: Path,
    *,
    forms: Forms = Forms(),
    part: tuple[int, int] | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
    show: Callable[[list[Answered]], object] = lambda rows: None,
) -> list[Failure]:
    """Answer scans into a folder; nothing is written outside of it, and no scan is ever written over.

        <case>.nii.gz                        label map, or .nrrd, .mha, .seg.nrrd
        <case>.dcm                           the same as DICOM-SEG, of a DICOM series
        <case>_rtstruct.dcm                  contours, where asked for
        probabilities/<case>/<class>.nii.gz  where asked for
        transforms/<case>/<atlas>.h5         where asked for
        labels.txt, labels.ctbl              label tables of ITK-SNAP and 3D Slicer
        volumes.csv, qc.csv, qc/<case>.png   volumes in ml; estimates and flags, flagged scans first; contours
        outliers.csv, outliers.png           scans that are unlike the others, of `LEAST_SCANS` or more
        .lrls/                               which scans are done; see `stages.answering.answered`

    As BIDS, label maps lie as in `stages.data.bids_derivatives`. Scans that an earlier command of the same model
    answered into the folder are not answered again.

    Args:
        part: (3, 10): every tenth scan from the third on. Other processes may write the other parts into the same
            folder; the tables and pictures of all scans are written by a command without a part.
        force: write into a folder that holds other files already.
        tell: receives a line per scan, flagged ones first; a scan without an answer is reported when it fails.
        show: receives the scans that have an answer, flagged ones first.

    Returns:
        The scans without an answer.

    Raises:
        LrlsError: there is no scan, the folder cannot be used, or the model cannot give what is asked for.
    """
    from stages.progress import Progress

    channels = len(model.channels)
    scans, left_out = find_scans(paths, channels)
    if forms.transforms and not model.atlases:
        raise LrlsError(f"--transforms: {model.method} registers no atlas to a scan; choose a method that does.")
    if forms.bids and forms.labels != "nifti":
        raise LrlsError(f"--format {forms.labels}: label maps of BIDS are NIfTI files; leave out --format or --bids.")
    if forms.bids:
        forms = replace(forms, names=names_in_bids(scans, channels))
    if forms.rtstruct:
        refuse_shared_names(scans)
    folder = AnswerFolder(out, scans, forms.asked(model), force=force, channels=channels, is_shared=part is not None)
    for line in left_out:
        tell(line)
    if part:
        number, of = part
        tell(f"part {number} of {of}: {len(scans[number - 1 :: of])} of {len(scans)} scans")
        scans = scans[number - 1 :: of]
    else:
        write_label_tables(model.structures, out, colours_of(model.structures, model.config.colours))
        if forms.bids:
            write_dataset(out, scans, model.method)
    done = {case: answered for case, scan in scans if (answered := folder.done(case, scan))}
    if done:
        tell(f"{len(done)} of {len(scans)} scans were answered before and have not changed")
    left = [(case, scan) for case, scan in scans if case not in done]
    failures: list[Failure] = []
    tables = _Tables(folder)
    work = _on_cluster if model.config.compute.cases == "dask" else _here
    with Progress("predict", len(scans), start=len(done)) as progress:
        for result, notes in work(model, left, out, forms):
            progress.advance()
            for note in notes:
                tell(note)
            if not isinstance(result, Failure):
                try:
                    folder.add(result)
                    if part is None:
                        tables.write()
                    continue
                except OSError as error:
                    result = _not_written(result["case"], error)
            failures.append(result)
            tell(result.reason)
    if part is None and folder.all():
        tables.write(now=True)
        _write_outliers(folder)
    asked_for = {case for case, _ in scans}
    answers = _flagged_first([row for row in folder.all() if row.case in asked_for])
    show(answers)
    for row in answers:
        estimate = row.quality.estimated_dsc
        shown_estimate = () if estimate is None else (f"estimated DSC {estimate:.2f}",)
        tell(f"{row.case}: {'; '.join([*shown_estimate, *row.quality.flags]) or 'done'}")
    return failures


def refuse_shared_names(scans: Sequence[tuple[str, Path]]) -> None:
    """Refuse two series of which one's contours would replace the other's DICOM-SEG.

    Raises:
        LrlsError: there are such.
    """
    cases = {as_compared(case): case for case, _ in scans}
    for case, _ in scans:
        if other := cases.get(as_compared(f"{case}{CONTOURS}")):
            raise LrlsError(
                f"--rtstruct: the contours of {case} and the segmentation of {other} would both be {other}.dcm; "
                "rename one of them, or predict them apart."
            )


Written = tuple[dict[str, Any] | Failure, list[str]]
"""The record of a scan whose answer is written, or why it has none; and notes for the user."""


def _here(model: Model, scans: Sequence[tuple[str, Path]], out: Path, forms: Forms) -> Iterator[Written]:
    """Answer scans and write their files, in order."""
    results = Predictor(model).predict_many([scan for _, scan in scans], [case for case, _ in scans])
    for (_, scan), result in zip(scans, results, strict=True):
        yield _written(result, scan, out, model, forms)


def _on_cluster(model: Model, scans: Sequence[tuple[str, Path]], out: Path, forms: Forms) -> Iterator[Written]:
    """The same by the workers of a Dask cluster, in the order in which they finish; the model is sent to each once."""
    from stages.dask_cases import OnDask

    sees = [("--out", out), *(("the scans' folder", folder) for folder in {scan.parent: None for _, scan in scans})]
    here = model.answering()  # as it would answer here
    settings = {"compute": ComputeSettings(), "threads": 1, "precision": here.device.precision}
    sent = replace(model, config=model.config.model_copy(update=settings))
    calls = [(sent, case, scan, Path(os.path.abspath(out)), forms) for case, scan in scans]
    with OnDask(model.config.compute, sees[:MOST_SEEN]) as workers:
        yield from workers.each(_on_worker, calls, broken=_killed)


_predictor: Predictor | None = None  # of a worker, which answers many scans by one model


def _on_worker(model: Model, case: str, scan: Path, out: Path, forms: Forms) -> Written:
    global _predictor
    if _predictor is None or _predictor.given is not model:
        _predictor = Predictor(model)
    (result,) = _predictor.predict_many([scan], [case])
    return _written(result, scan, out, model, forms)


def _killed(model: Model, case: str, *_: object) -> Written:
    """What stands in for `_on_worker` if its process was killed."""
    found = "the process that answered it was killed twice, by a damaged file or for lack of memory"
    return Failure(case, f"case {case}: {found}; export the scan again, crop it, or give workers more memory."), []


def _written(result: Prediction | Failure, scan: Path, out: Path, model: Model, forms: Forms) -> Written:
    """Write the files of an answer."""
    notes: list[str] = []
    if isinstance(result, Failure):
        return result, notes
    colours = colours_of(model.structures, model.config.colours)
    try:
        files = _write(result, scan, out, model, colours, forms, notes.append)
        answered = Answered(result.case, result.volumes_ml, result.quality)
        return record_of(answered, scan, files, out, len(model.channels)), notes
    except LrlsError as error:
        return Failure(result.case, str(error)), notes
    except (OSError, MemoryError) as error:
        return _not_written(result.case, error), notes


def _not_written(case: str, error: OSError | MemoryError) -> Failure:
    return Failure(case, f"case {case}: its answer cannot be written ({_why(error)}); make room.")


def _write(
    result: Prediction, scan: Path, out: Path, model: Model, colours: Sequence[str], forms: Forms,
    tell: Callable[[str], None],
) -> list[str]:  # fmt: skip
    """Write the files of an answer; their paths in the folder."""
    from stages.pictures import overlay_page

    case, structures, method = result.case, list(model.structures), model.method
    files = [forms.label_file(case)]
    label_file = _with_folder(out, files[0])
    if forms.labels == "seg.nrrd":
        write_segmentation(result.label, model.structures, colours, label_file)
    else:
        write_image(result.label, label_file, like=scan)
    if forms.bids:
        files += write_sidecars(out, forms.names[case], scan, method, model.structures, colours)
    files.append(f"qc/{case}.png")
    is_series = scan.is_dir() or is_dicom(scan)
    if is_series:
        from stages.data.dicom_seg import write_dicom_seg

        try:
            write_dicom_seg(result.classes, structures, scan, case, out / f"{case}.dcm", method=method)
            files.append(f"{case}.dcm")
        except LrlsError as error:
            tell(f"note: {error}")
    if forms.rtstruct and not is_series:
        tell(f"note: case {case}: RTSTRUCT lies on DICOM slices, and this scan is no DICOM series.")
    elif forms.rtstruct:
        from stages.data.rtstruct import write_rtstruct

        try:
            write_rtstruct(
                result.classes, structures, colours, scan, case, out / f"{case}{CONTOURS}.dcm", method=method
            )
            files.append(f"{case}{CONTOURS}.dcm")
        except LrlsError as error:
            tell(f"note: {error}")
    if forms.transforms:
        from stages.data.itk_transforms import atlas_to_scan, write_transform

        fields = zip(model.atlases, result.answer.fields, model.atlas_matrices, strict=False)
        for atlas, displacement, matrix in fields:
            files.append(f"transforms/{case}/{atlas.case}.h5")
            transform = atlas_to_scan(displacement, result.grid, result.scan.record, matrix)
            write_transform(transform, _with_folder(out, files[-1]))
    if forms.probabilities:
        for index in range(1, len(structures) + 1):
            files.append(f"probabilities/{case}/{index:03d}.nii.gz")
            write_image(result.probability(index), _with_folder(out, files[-1]), like=scan)
    row = {
        "case": case, "image": first_channel(result.scan.image), "label": shown(result),
        "spacing_mm": result.grid.spacing_mm, "note": "; ".join(result.quality.flags),
    }  # fmt: skip
    with chosen_colors(colours):
        write_whole(out / f"qc/{case}.png", lambda path: overlay_page(row, path, structures=structures))
    return files


def _with_folder(out: Path, file: str) -> Path:
    """A file of the answers, whose folders are made.

    Raises:
        LrlsError: one of them is a link to somewhere else.
    """
    for parent in Path(file).parents:
        if (out / parent).is_symlink() and parent != Path():
            raise LrlsError(f"--out {out}: {parent.as_posix()} in it is a link; remove it, or name another folder.")
    (out / file).parent.mkdir(parents=True, exist_ok=True)
    return out / file


class _Tables:
    """`volumes.csv` and `qc.csv`, of all scans of the folder; written scan by scan while that takes little time."""

    def __init__(self, folder: AnswerFolder) -> None:
        self.folder, self.took_s, self.wrote_s = folder, 0.0, -math.inf

    def write(self, *, now: bool = False) -> None:
        """After a scan; at the end `now`."""
        began = time.monotonic()
        if not now and began - self.wrote_s < self.took_s / TABLES_SHARE:
            return
        rows = self.folder.all()
        atomic_write_text(self.folder.out / "volumes.csv", csv_of([_volumes(row) for row in rows]))
        quality = [_row(row.case, row.quality) for row in _flagged_first(rows)]
        atomic_write_text(self.folder.out / "qc.csv", csv_of(quality))
        self.wrote_s = time.monotonic()
        self.took_s = self.wrote_s - began


def _volumes(row: Answered) -> dict[str, Any]:
    """A row of `volumes.csv`; with a calibration, 90 % intervals stand beside the volumes."""
    cells: dict[str, Any] = {"case": row.case}
    for name, ml in row.volumes_ml.items():
        cells[f"{name}_ml"] = ml
        if row.quality.volume_intervals_ml:
            cells[f"{name}_ml_low"], cells[f"{name}_ml_high"] = row.quality.volume_intervals_ml[name]
    return cells


def _write_outliers(folder: AnswerFolder) -> None:
    """`outliers.csv` and `outliers.png`, of volumes, estimates and measures of all scans of the folder."""
    from stages.pictures import outliers_page

    rows = folder.all()
    if len(rows) < LEAST_SCANS:
        return
    values = {f"{name} (ml)": {row.case: row.volumes_ml[name] for row in rows} for name in rows[0].volumes_ml}
    estimates = {row.case: row.quality.estimated_dsc for row in rows if row.quality.estimated_dsc is not None}
    values |= {"estimated DSC": estimates} if len(estimates) == len(rows) else {}
    values |= {name: {row.case: row.quality.measures[name] for row in rows} for name in rows[0].quality.measures}
    spreads = [spread_of(name, by_case) for name, by_case in values.items()]
    atomic_write_text(folder.out / "outliers.csv", csv_of(outlier_rows(spreads), COLUMNS))
    drawn = [{"name": each.name, "z": each.z, "outliers": each.outliers} for each in spreads]
    write_whole(folder.out / "outliers.png", lambda path: outliers_page(drawn, path, far=FAR, scans=len(rows)))


def _flagged_first(rows: Sequence[Answered]) -> list[Answered]:
    def order(row: Answered) -> tuple[bool, float]:
        estimate = row.quality.estimated_dsc
        return not row.quality.flags, 1.0 if estimate is None else estimate

    return sorted(rows, key=order)


def _why(error: OSError | MemoryError) -> str:
    return "out of memory" if isinstance(error, MemoryError) else error.strerror or "no room"


def shown(prediction: Prediction) -> np.ndarray:
    """The label map as it was written, brought to the grid for the picture: class indices (D, H, W)."""
    record = prediction.scan.record
    return to_grid(as_label_image(prediction.classes, record), record, prediction.grid, nearest=True)


def _row(case: str, quality: Quality) -> dict[str, Any]:
    return {
        "case": case,
        "estimated_dsc": quality.estimated_dsc,
        "flags": "; ".join(quality.flags),
        **quality.measures,
        "folding_fraction": quality.folding_fraction,
        "alignment": quality.alignment,
        "intensity_shift": quality.intensity_shift,
    }
