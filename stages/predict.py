"""Label maps of new scans, in the scans' own voxels, with estimates of how far to trust them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.answering.answers import AT_ONCE, Answer, Answering, GridScan
from stages.answering.model import Model
from stages.answering.quality import Quality, assess
from stages.artifacts.cohort import Grid
from stages.artifacts.files import atomic_write_text
from stages.data import intake
from stages.data.grid import packed, to_grid
from stages.data.labels import label_values
from stages.data.own_space import as_label_image, in_own_space
from stages.data.prepare import prepare_new
from stages.data.writers import csv_of, volumes_ml, write_dicom_seg, write_image, write_label_tables
from stages.errors import LrlsError
from stages.processes import in_processes


@dataclass(frozen=True)
class Prediction:
    """The answer for one scan.

    Args:
        case: name of the scan's file or folder.
        label: the user's label values on the scan's own voxels.
        classes: the same as class indices (D, H, W): 0 background, then the structures in order.
        volumes_ml: of each structure.
        quality: measures, estimated DSC and flags.
        scan, answer: the scan and its answer on the model's grid.
    """

    case: str
    label: sitk.Image
    classes: np.ndarray
    volumes_ml: dict[str, float]
    quality: Quality
    scan: GridScan
    answer: Answer
    grid: Grid

    def probability(self, class_index: int) -> sitk.Image:
        """Probability of a class on the scan's own voxels, float32 in [0, 1]; one at a time, to save memory.

        The background's is 1 outside the grid. Planes of `flat_borders` are not applied.
        """
        maps = self.answer.probabilities[class_index : class_index + 1]
        background = class_index == 0
        maps = 1 - maps if background else maps
        slabs = [slab[0].cpu().numpy() for slab in in_own_space(maps, self.scan.record, self.grid)]
        values = np.concatenate(slabs)
        return as_label_image(1 - values if background else values, self.scan.record)


@dataclass(frozen=True)
class Failure:
    """A scan without an answer; `reason` is one line."""

    case: str
    reason: str


class Predictor:
    """Answers new scans as `lrls predict` does. Opened by `stages.load_model`.

    from stages import load_model

    if __name__ == "__main__":  # scans are aligned in processes of their own
        predictor = load_model("model.zip")
        prediction = predictor.predict("scan.nii.gz")
        SimpleITK.WriteImage(prediction.label, "label.nii.gz")
        print(prediction.volumes_ml, prediction.quality.flags)
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.answering: Answering = model.answering()
        self.template = model.template()

    @property
    def structures(self) -> dict[str, int]:
        """Value of each structure in label maps."""
        return self.model.structures

    def predict(self, scan: Path | str | sitk.Image) -> Prediction:
        """The answer for one scan: a file, a folder with a DICOM series, or an image of one channel.

        Raises:
            LrlsError: it cannot be read or answered; the message is one line.
        """
        (result,) = self.predict_many([scan])
        if isinstance(result, Failure):
            raise LrlsError(result.reason)
        return result

    def predict_many(
        self, scans: Sequence[Path | str | sitk.Image], names: Sequence[str] | None = None
    ) -> Iterator[Prediction | Failure]:
        """The answers, in order; a scan that fails does not stop the others.

        Args:
            names: of the scans; by default those of the files.
        """
        names = names or [
            f"scan_{k}" if isinstance(scan, sitk.Image) else intake.case_id(Path(scan)) for k, scan in enumerate(scans)
        ]
        for start in range(0, len(scans), AT_ONCE):
            ready = self._prepared(scans[start : start + AT_ONCE], names[start : start + AT_ONCE])
            answers = self._answers([scan for scan in ready if isinstance(scan, GridScan)])
            for scan in ready:
                if isinstance(scan, Failure):
                    yield scan
                    continue
                answer = next(answers)
                yield answer if isinstance(answer, Failure) else self._finished(scan, answer)

    def _prepared(self, scans: Sequence[Path | str | sitk.Image], names: Sequence[str]) -> list[GridScan | Failure]:
        config, reference = self.model.config, packed(self.model.reference)
        arguments = [
            (
                place, packed(scan) if isinstance(scan, sitk.Image) else Path(scan), name, reference,
                config.preprocess, self.model.grid,
            )
            for place, (scan, name) in enumerate(zip(scans, names, strict=True))
        ]  # fmt: skip
        prepared = dict(in_processes(prepare_new, arguments, workers=config.preprocess.workers))
        return [
            Failure(name, outcome) if isinstance(outcome := prepared[place], str) else GridScan(name, *outcome)
            for place, name in enumerate(names)
        ]

    def _answers(self, scans: Sequence[GridScan]) -> Iterator[Answer | Failure]:
        done = 0
        try:
            for answer in self.answering.answers(scans):
                yield answer
                done += 1
            return
        except LrlsError:
            pass  # one of the remaining scans cannot be registered; answering them one by one finds out which
        for scan in scans[done:]:
            try:
                yield next(self.answering.answers([scan]))
            except LrlsError as error:
                yield Failure(scan.case, str(error))

    def _finished(self, scan: GridScan, answer: Answer) -> Prediction:
        names = list(self.structures)
        classes = self.answering.in_own_space(answer, scan.record)
        label = as_label_image(label_values(classes, self.model.config), scan.record)
        volumes = volumes_ml(classes, names, scan.record["spacing"])
        missing = [name for name, volume in volumes.items() if volume == 0]
        quality = assess(self.answering, scan, answer, self.template, missing, self.model.calibration)
        return Prediction(scan.case, label, classes, volumes, quality, scan, answer, self.model.grid)


def find_scans(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """(case, file or DICOM folder) of every scan; a folder that is no DICOM series stands for all scans in it.

    Scans of the same name in several folders are named "<folder>_<name>".

    Raises:
        LrlsError: a folder holds no scan, or two scans cannot be told apart by name.
    """
    scans: list[Path] = []
    for path in paths:
        if not path.is_dir() or sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path)):
            scans.append(path)
            continue
        inside = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
        in_folder = [
            entry
            for entry in inside
            if (entry.is_file() and entry.name.endswith(intake.SUFFIXES))
            or (entry.is_dir() and sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(entry)))
        ]
        if not in_folder:
            kinds = ", ".join(intake.SUFFIXES)
            raise LrlsError(f"{path} holds no scan ({kinds}, or folders with a DICOM series); name another folder.")
        scans += in_folder
    scans = list(dict.fromkeys(scan.absolute() for scan in scans))
    cases = [intake.case_id(scan) for scan in scans]
    named = [
        case if cases.count(case) == 1 else f"{scan.parent.name}_{case}"
        for case, scan in zip(cases, scans, strict=True)
    ]
    doubled = sorted({name for name in named if named.count(name) > 1})
    if doubled:
        raise LrlsError(f"two scans are named {doubled[0]}; rename one of them, or predict them apart.")
    return list(zip(named, scans, strict=True))


def predict(
    model: Model,
    paths: Sequence[Path],
    out: Path,
    *,
    probabilities: bool = False,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> list[Failure]:
    """Answer scans into a folder; nothing is written outside of it.

        <case>.nii.gz                        label map
        <case>.dcm                           the same as DICOM-SEG, of a DICOM series
        probabilities/<case>/<class>.nii.gz  where asked for
        labels.txt, labels.ctbl              label tables of ITK-SNAP and 3D Slicer
        volumes.csv, qc.csv, qc/<case>.png   volumes in ml; estimates and flags, flagged scans first; contours

    Args:
        probabilities: also write each structure's.
        force: write into a folder that holds files already.
        tell: receives a line per scan, flagged ones first; a scan without an answer is reported when it fails.

    Returns:
        The scans without an answer.

    Raises:
        LrlsError: there is no scan, or the folder is not empty.
    """
    from stages.pictures import overlay_page
    from stages.progress import Progress

    scans = find_scans(paths)
    if out.exists() and not out.is_dir():
        raise LrlsError(f"--out {out} is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise LrlsError(f"--out {out} is not empty; name another folder, or write into it with --force.")
    for case, path in scans:
        if path == (out.absolute() / f"{case}.nii.gz"):
            raise LrlsError(f"--out {out} is where scan {case} lies, and would be overwritten; name another folder.")
    (out / "qc").mkdir(parents=True, exist_ok=True)
    predictor = Predictor(model)
    structures = predictor.structures
    write_label_tables(structures, out)
    failures: list[Failure] = []
    quality: list[tuple[str, Quality]] = []
    volumes: list[dict[str, Any]] = []
    results = predictor.predict_many([path for _, path in scans], [case for case, _ in scans])
    with Progress("predict", len(scans)) as progress:
        for (case, path), result in zip(scans, results, strict=True):
            progress.advance()
            if isinstance(result, Failure):
                failures.append(result)
                tell(result.reason)
                continue
            write_image(result.label, out / f"{case}.nii.gz")
            if path.is_dir():
                try:
                    write_dicom_seg(
                        result.classes, list(structures), path, case, out / f"{case}.dcm",
                        slice_mm=result.label.GetSpacing()[2], method=model.method,
                    )  # fmt: skip
                except LrlsError as error:
                    tell(f"note: {error}")
            if probabilities:
                folder = out / "probabilities" / case
                folder.mkdir(parents=True, exist_ok=True)
                for index in range(1, len(structures) + 1):
                    write_image(result.probability(index), folder / f"{index:03d}.nii.gz")
            overlay_page(
                {
                    "case": case, "image": result.scan.image.astype(np.float32),
                    "label": shown(result), "spacing_mm": result.grid.spacing_mm,
                    "note": "; ".join(result.quality.flags),
                },
                out / "qc" / f"{case}.png", structures=list(structures),
            )  # fmt: skip
            quality.append((case, result.quality))
            quality.sort(key=lambda row: (not row[1].flags, _or_one(row[1].estimated_dsc)))
            volumes.append({"case": case} | {f"{name}_ml": value for name, value in result.volumes_ml.items()})
            atomic_write_text(out / "volumes.csv", csv_of(volumes))
            atomic_write_text(out / "qc.csv", csv_of([_row(name, q) for name, q in quality]))
    for case, assessed in quality:
        estimate = () if assessed.estimated_dsc is None else (f"estimated DSC {assessed.estimated_dsc:.2f}",)
        tell(f"{case}: {'; '.join([*estimate, *assessed.flags]) or 'done'}")
    return failures


def shown(prediction: Prediction) -> np.ndarray:
    """The label map as it was written, brought to the grid for the picture: class indices (D, H, W)."""
    record = prediction.scan.record
    return to_grid(as_label_image(prediction.classes, record), record, prediction.grid, nearest=True)


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


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
