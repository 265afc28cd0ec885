"""Label maps of new scans, in the scans' own voxels, with estimates of how far to trust them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.answering.answered import Answered, AnswerFolder
from stages.answering.exported import model_digest
from stages.answering.model import Model
from stages.answering.outliers import COLUMNS, FAR, LEAST_SCANS, outlier_rows, spread_of
from stages.answering.predictor import Failure, Prediction, Predictor
from stages.answering.quality import Quality
from stages.artifacts.digests import digest_of
from stages.artifacts.files import atomic_write_text
from stages.data.dicom_files import is_dicom
from stages.data.grid import to_grid
from stages.data.new_scans import find_scans
from stages.data.own_space import as_label_image
from stages.data.writers import csv_of, write_image, write_label_tables, write_whole
from stages.errors import LrlsError
from stages.parts.channels import first_channel


def predict(
    model: Model,
    paths: Sequence[Path],
    out: Path,
    *,
    probabilities: bool = False,
    force: bool = False,
    tell: Callable[[str], None] = print,
    show: Callable[[list[Answered]], object] = lambda rows: None,
) -> list[Failure]:
    """Answer scans into a folder; nothing is written outside of it, and no scan is ever written over.

        <case>.nii.gz                        label map
        <case>.dcm                           the same as DICOM-SEG, of a DICOM series
        probabilities/<case>/<class>.nii.gz  where asked for
        labels.txt, labels.ctbl              label tables of ITK-SNAP and 3D Slicer
        volumes.csv, qc.csv, qc/<case>.png   volumes in ml; estimates and flags, flagged scans first; contours
        outliers.csv, outliers.png           scans that are unlike the others, of `LEAST_SCANS` or more
        .lrls/                               which scans are done; see `stages.answering.answered`

    Scans that an earlier command of the same model answered into the folder are not answered again.

    Args:
        probabilities: also write each structure's.
        force: write into a folder that holds other files already.
        tell: receives a line per scan, flagged ones first; a scan without an answer is reported when it fails.
        show: receives the scans that have an answer, flagged ones first.

    Returns:
        The scans without an answer.

    Raises:
        LrlsError: there is no scan, or the folder cannot be used.
    """
    from stages.progress import Progress

    channels = len(model.channels)
    scans, left_out = find_scans(paths, channels)
    asked = digest_of([model_digest(model), probabilities])
    folder = AnswerFolder(out, scans, asked, force=force, channels=channels)
    for line in left_out:
        tell(line)
    predictor = Predictor(model)
    write_label_tables(predictor.structures, out)
    done = {case: answered for case, scan in scans if (answered := folder.done(case, scan))}
    if done:
        tell(f"{len(done)} of {len(scans)} scans were answered before and have not changed")
    left = [(case, scan) for case, scan in scans if case not in done]
    failures: list[Failure] = []
    results = predictor.predict_many([scan for _, scan in left], [case for case, _ in left])
    with Progress("predict", len(scans), start=len(done)) as progress:
        for (case, scan), result in zip(left, results, strict=True):
            progress.advance()
            try:
                if isinstance(result, Failure):
                    raise LrlsError(result.reason)
                files = _write(result, scan, out, model.method, list(predictor.structures), probabilities, tell)
                folder.add(Answered(case, result.volumes_ml, result.quality), scan, files)
                _write_tables(folder)
            except LrlsError as error:
                failures.append(Failure(case, str(error)))
                tell(str(error))
            except (OSError, MemoryError) as error:
                failures.append(Failure(case, f"case {case}: its answer cannot be written ({_why(error)}); make room."))
                tell(failures[-1].reason)
    _write_outliers(folder)
    asked_for = {case for case, _ in scans}
    answers = _flagged_first([row for row in folder.all() if row.case in asked_for])
    show(answers)
    for row in answers:
        estimate = row.quality.estimated_dsc
        shown_estimate = () if estimate is None else (f"estimated DSC {estimate:.2f}",)
        tell(f"{row.case}: {'; '.join([*shown_estimate, *row.quality.flags]) or 'done'}")
    return failures


def _write(
    result: Prediction, scan: Path, out: Path, method: str, structures: list[str], probabilities: bool,
    tell: Callable[[str], None],
) -> list[str]:  # fmt: skip
    """Write the files of an answer; their paths in the folder."""
    from stages.pictures import overlay_page

    case = result.case
    files = [f"{case}.nii.gz", f"qc/{case}.png"]
    write_image(result.label, out / files[0], like=scan)
    if scan.is_dir() or is_dicom(scan):
        from stages.data.dicom_seg import write_dicom_seg

        try:
            write_dicom_seg(result.classes, structures, scan, case, out / f"{case}.dcm", method=method)
            files.append(f"{case}.dcm")
        except LrlsError as error:
            tell(f"note: {error}")
    if probabilities:
        (out / "probabilities" / case).mkdir(parents=True, exist_ok=True)
        for index in range(1, len(structures) + 1):
            files.append(f"probabilities/{case}/{index:03d}.nii.gz")
            write_image(result.probability(index), out / files[-1], like=scan)
    row = {
        "case": case, "image": first_channel(result.scan.image), "label": shown(result),
        "spacing_mm": result.grid.spacing_mm, "note": "; ".join(result.quality.flags),
    }  # fmt: skip
    write_whole(out / files[1], lambda path: overlay_page(row, path, structures=structures))
    return files


def _write_tables(folder: AnswerFolder) -> None:
    """`volumes.csv` and `qc.csv`, of all scans of the folder."""
    rows = folder.all()
    atomic_write_text(folder.out / "volumes.csv", csv_of([_volumes(row) for row in rows]))
    quality = [_row(row.case, row.quality) for row in _flagged_first(rows)]
    atomic_write_text(folder.out / "qc.csv", csv_of(quality))


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
