"""Answers for new scans, as `lrls predict` gives them. Opened by `stages.load_model`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stages.answering.answers import AT_ONCE, Answer, Answering, GridScan
from stages.answering.model import Model
from stages.answering.quality import Quality, assess
from stages.artifacts.cohort import Grid
from stages.compute_settings import ComputeSettings
from stages.data.grid import packed
from stages.data.labels import label_values
from stages.data.new_scans import name_of_scan
from stages.data.own_space import as_label_image, in_own_space
from stages.data.prepare import prepare_new
from stages.data.writers import volumes_ml
from stages.errors import LrlsError
from stages.memory import is_out_of_memory
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
        self.given = model
        # Here, whatever the configuration says: on a cluster, `lrls predict` has one of these on each worker.
        model = replace(model, config=model.config.model_copy(update={"compute": ComputeSettings()}))
        self.model = model
        self.answering: Answering = model.answering()
        self.template = model.template()

    @property
    def structures(self) -> dict[str, int]:
        """Value of each structure in label maps."""
        return self.model.structures

    def predict(self, scan: Path | str | sitk.Image) -> Prediction:
        """The answer for one scan: a file, a folder with a DICOM series, or an image.

        Of a scan with several channels, any of its files (`<case>_0000`, `<case>_0001`, ...), or an image with as many
        components, as of `SimpleITK.Compose`.

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
            f"scan_{k}" if isinstance(scan, sitk.Image) else name_of_scan(Path(scan), len(self.model.channels))
            for k, scan in enumerate(scans)
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
                del answer  # the next one needs its memory

    def _prepared(self, scans: Sequence[Path | str | sitk.Image], names: Sequence[str]) -> list[GridScan | Failure]:
        config, reference = self.model.config, packed(self.model.reference)
        arguments = [
            (
                place, channels_of(scan) if isinstance(scan, sitk.Image) else Path(scan), name, reference,
                config.preprocess, self.model.grid, (len(self.model.channels), self.model.channels),
            )
            for place, (scan, name) in enumerate(zip(scans, names, strict=True))
        ]  # fmt: skip
        prepared = dict(in_processes(prepare_new, arguments, workers=config.preprocess.workers, broken=_lost))
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
        except (LrlsError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            # One of the remaining scans cannot be answered; answering them one by one finds out which.
        for scan in scans[done:]:
            try:
                yield next(self.answering.answers([scan]))
            except LrlsError as error:
                yield Failure(scan.case, str(error))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                yield _too_big(scan.case)

    def _finished(self, scan: GridScan, answer: Answer) -> Prediction | Failure:
        try:
            return self._in_own_space(scan, answer)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return _too_big(scan.case)

    def _in_own_space(self, scan: GridScan, answer: Answer) -> Prediction:
        names = list(self.structures)
        classes = self.answering.in_own_space(answer, scan.record)
        label = as_label_image(label_values(classes, self.model.config), scan.record)
        volumes = volumes_ml(classes, names, scan.record["spacing"])
        quality = assess(self.answering, scan, answer, self.template, volumes, self.model.calibration)
        return Prediction(scan.case, label, classes, volumes, quality, scan, answer, self.model.grid)


def channels_of(image: sitk.Image) -> list[tuple]:
    """The channels of an image in memory, each `packed`."""
    number = image.GetNumberOfComponentsPerPixel()
    if number == 1:
        return [packed(image)]
    return [packed(sitk.VectorIndexSelectionCast(image, k)) for k in range(number)]


def _too_big(case: str) -> Failure:
    return Failure(case, f"case {case}: its answer does not fit into memory; crop the scan, or close other programs.")


def _lost(place: int, scan: object, case: str, *_: object) -> tuple[int, str]:
    """What stands in for `prepare_new` if the process was killed."""
    return place, (
        f"case {case}: the process that read it was killed, by a damaged file or for lack of memory; "
        "export the scan again, or crop it."
    )
