"""Label maps as RTSTRUCT: contours on the slices of the DICOM series that they belong to.

Contours run between the voxels that belong to a structure and those that do not, a little nearer to the former, so that
programs that round to voxels' centres find the same voxels. A hole is joined to the contour round it by a line that is
walked twice, which every program understands.

Source: DICOM PS3.3 C.8.8.5 and C.8.8.6 (structure set, ROI contour)
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
from collections.abc import Sequence
from pathlib import Path

import contourpy
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from stages.data.dicom import Series, open_series
from stages.data.dicom_headers import quiet
from stages.data.dicom_seg import IDENTITY, LONGEST_TEXT, source_headers
from stages.data.writers import one_line, write_whole
from stages.errors import LrlsError

LEVEL = 0.51  # of a mask of zeros and ones: the contour lies 0.49 voxels from the centres of the structure's voxels
BEHIND = 0.015  # of an edge, from its first vertex: a point that rounds to the same voxel as the vertex
END, USED = 1, 2  # where a line to a hole may begin or end, and where one does
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # what a referenced study is called


def write_rtstruct(
    classes: np.ndarray, structures: Sequence[str], colours: Sequence[str], scan: Path, case: str, path: Path, *,
    method: str,
) -> None:  # fmt: skip
    """Write a label map as RTSTRUCT, with patient and study of the series that it belongs to.

    Args:
        classes: class indices (D, H, W) on the series' voxels, as `read_dicom` orders them.
        structures: names of the classes from 1; those without a voxel are listed without contours.
        colours: of them, "#rrggbb".
        scan: folder of the DICOM series, or multi-frame file.

    Raises:
        LrlsError: the label map is empty, or the series' headers lack an attribute that is needed. The message quotes
            no value of them.
    """
    if not classes.any():
        raise LrlsError(f"case {case}: the label map is empty, and RTSTRUCT cannot store an empty one.")
    series = open_series(scan, case)
    try:
        with quiet():
            sources = source_headers(series, case, "RTSTRUCT")
            structure_set = _structure_set(series, sources, classes, method)
            for number, (name, colour) in enumerate(zip(structures, colours, strict=True), start=1):
                _add_structure(structure_set, series, sources, classes == number, number, name, colour)
            write_whole(path, lambda temporary: structure_set.save_as(temporary, enforce_file_format=True))
    except LrlsError:
        raise
    except (OSError, MemoryError):
        raise
    except Exception:  # whatever pydicom meets in damaged values; its messages quote them
        raise LrlsError(
            f"case {case}: its DICOM headers are of a kind or have values that RTSTRUCT does not allow; "
            "use the NIfTI file."
        ) from None


def contours_of(mask: np.ndarray) -> list[np.ndarray]:
    """Closed contours of a slice (H, W), each (n, 2): column and row, 0 is the centre of the first voxel."""
    padded = np.pad(mask, 1).astype(np.float64)
    filled = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset).filled(LEVEL, 2.0)
    contours = []
    for points, offsets in zip(*filled, strict=True):
        outer, *holes = (points[first : last - 1] for first, last in itertools.pairwise(offsets))
        contours.append(_with_holes(outer, holes) - 1)
    return contours


def _with_holes(contour: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """A contour that goes round its holes, too: there and back on the shortest line to the nearest of them.

    Lines begin and end close behind a vertex. Vertices lie on the grid's lines: a line between two of them would run
    through voxels' centres, which are then neither inside nor outside.
    """
    if not holes:
        return contour
    contour, waiting = _with_ends(contour), [_with_ends(hole) for hole in holes]
    while waiting:
        lines = [_shortest(contour, hole) for hole in waiting]
        nearest = min(range(len(lines)), key=lambda k: lines[k])
        _, leave, arrive = lines.pop(nearest)
        hole = waiting.pop(nearest)
        contour[leave, 2], hole[arrive, 2] = USED, USED
        round_hole = np.roll(hole, -arrive, axis=0)
        contour = np.concatenate([contour[: leave + 1], round_hole, round_hole[:1], contour[leave:]])
    return contour[contour[:, 2] != END, :2]


def _with_ends(contour: np.ndarray) -> np.ndarray:
    """Vertices and possible ends of lines in turn, (2 n, 3); the third number says which."""
    ends = contour + BEHIND * (np.roll(contour, -1, axis=0) - contour)
    both = np.stack([np.pad(contour, ((0, 0), (0, 1))), np.pad(ends, ((0, 0), (0, 1)), constant_values=END)], 1)
    return both.reshape(-1, 3)


def _shortest(contour: np.ndarray, hole: np.ndarray) -> tuple[float, int, int]:
    """The shortest line between two ends: its squared length, and where it leaves and arrives."""
    ours, theirs = np.flatnonzero(contour[:, 2] == END), np.flatnonzero(hole[:, 2] == END)
    squared = ((contour[ours, None, :2] - hole[None, theirs, :2]) ** 2).sum(-1)
    leave, arrive = np.unravel_index(squared.argmin(), squared.shape)
    return float(squared.min()), int(ours[leave]), int(theirs[arrive])


def _structure_set(series: Series, sources: Sequence[Dataset], classes: np.ndarray, method: str) -> FileDataset:
    """The structure set without structures."""
    first, version = sources[0], importlib.metadata.version("lrls")
    stamp = hashlib.sha256(classes.tobytes()).hexdigest()
    series_uid, instance_uid = (
        generate_uid(entropy_srcs=[str(first.SeriesInstanceUID), "rtstruct", method, version, stamp, level])
        for level in ("series", "instance")
    )
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, instance_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    whole.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    whole.SOPClassUID, whole.SOPInstanceUID = RTStructureSetStorage, instance_uid
    for name in IDENTITY:
        setattr(whole, name, first.get(name))
    whole.StudyInstanceUID, whole.SeriesInstanceUID = first.StudyInstanceUID, series_uid
    whole.Modality, whole.SeriesNumber, whole.OperatorsName = "RTSTRUCT", 901, ""
    whole.SeriesDescription = f"lrls {method}"[:LONGEST_TEXT]
    whole.Manufacturer, whole.ManufacturerModelName = "lrls", f"lrls {method}"[:LONGEST_TEXT]
    whole.SoftwareVersions = version
    whole.StructureSetLabel, whole.StructureSetDate, whole.StructureSetTime = "lrls", "", ""
    whole.ApprovalStatus = "UNAPPROVED"
    whole.FrameOfReferenceUID, whole.PositionReferenceIndicator = first.FrameOfReferenceUID, ""

    of_series = Dataset()
    of_series.SeriesInstanceUID = first.SeriesInstanceUID
    of_series.ContourImageSequence = [_reference(series, sources, k) for k in range(len(series.slices))]
    of_study = Dataset()
    of_study.ReferencedSOPClassUID, of_study.ReferencedSOPInstanceUID = STUDY_CLASS, first.StudyInstanceUID
    of_study.RTReferencedSeriesSequence = [of_series]
    frame = Dataset()
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [of_study]
    whole.ReferencedFrameOfReferenceSequence = [frame]
    whole.StructureSetROISequence, whole.ROIContourSequence, whole.RTROIObservationsSequence = [], [], []
    return whole


def _add_structure(
    whole: Dataset, series: Series, sources: Sequence[Dataset], mask: np.ndarray, number: int, name: str, colour: str
) -> None:
    """Add a structure's name, colour and contours."""
    roi, observation, outlines = Dataset(), Dataset(), Dataset()
    roi.ROINumber, roi.ReferencedFrameOfReferenceUID = number, whole.FrameOfReferenceUID
    roi.ROIName, roi.ROIGenerationAlgorithm = one_line(name).replace("\\", "/")[:LONGEST_TEXT], "AUTOMATIC"
    observation.ObservationNumber, observation.ReferencedROINumber = number, number
    observation.RTROIInterpretedType, observation.ROIInterpreter = "ORGAN", ""
    outlines.ReferencedROINumber = number
    outlines.ROIDisplayColor = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    columns_mm, rows_mm, _ = series.spacing_mm
    sequence = []
    for k in np.flatnonzero(mask.any((1, 2))).tolist():
        corner, facing = np.array(series.slices[k].position), np.array(series.slices[k].orientation)
        for contour in contours_of(mask[k]):
            places = corner + columns_mm * contour[:, :1] * facing[:3] + rows_mm * contour[:, 1:] * facing[3:]
            item = Dataset()
            item.ContourImageSequence = [_reference(series, sources, k)]
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(places)
            item.ContourData = [format_number_as_ds(round(float(mm), 5)) for mm in places.ravel()]
            sequence.append(item)
    if sequence:
        outlines.ContourSequence = sequence
    whole.StructureSetROISequence.append(roi)
    whole.RTROIObservationsSequence.append(observation)
    whole.ROIContourSequence.append(outlines)


def _reference(series: Series, sources: Sequence[Dataset], place: int) -> Dataset:
    """The image, and its frame if it has several, that a slice is."""
    piece = series.slices[place]
    source = sources[place] if len(sources) > 1 else sources[0]
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    if len(sources) == 1 and len(series.slices) > 1:
        image.ReferencedFrameNumber = piece.index + 1
    return image
