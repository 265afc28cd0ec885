"""Label maps as DICOM-SEG, on the slices of the series that they belong to."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM, format_number_as_ds

from stages.data.dicom import Series, open_series
from stages.data.dicom_headers import quiet
from stages.data.writers import one_line, write_whole
from stages.errors import LrlsError

NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality")
# What identifies patient and study. DICOM lets them be empty, and a file that lacks one gets it empty.
IDENTITY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# All that is read of the source: comments, histories and other free text cannot come into the file.
READ = [
    *NEEDED, *IDENTITY, "SpecificCharacterSet", "IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "PositionReferenceIndicator", "Rows", "Columns", "NumberOfFrames",
    "SliceThickness", "ImagePositionPatient", "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
]  # fmt: skip
LONGEST_TEXT = 64  # characters of a label (VR LO)


def write_dicom_seg(
    classes: np.ndarray, structures: Sequence[str], scan: Path, case: str, path: Path, *, method: str
) -> None:
    """Write a label map as DICOM-SEG, with patient and study of the series that it belongs to.

    Args:
        classes: class indices (D, H, W) on the series' voxels, as `read_dicom` orders them.
        structures: names of the classes from 1.
        scan: folder of the DICOM series, or multi-frame file.

    Raises:
        LrlsError: the label map is empty, or the series' headers lack an attribute that DICOM-SEG needs. The message
            quotes no value of them.
    """
    series = open_series(scan, case)
    present = [index for index in range(1, len(structures) + 1) if (classes == index).any()]
    if not present:
        raise LrlsError(f"case {case}: the label map is empty, and DICOM-SEG cannot store an empty one.")
    place = np.zeros(len(structures) + 1, classes.dtype)
    place[present] = np.arange(1, len(present) + 1)  # segments are numbered without gaps
    if any(not header.is_classic for header in series.headers.values()) and len(series.headers) > 1:
        raise LrlsError(f"case {case}: DICOM-SEG needs one multi-frame file, found {len(series.headers)}.")
    try:
        with quiet():
            sources = source_headers(series, case)
            planes = np.argsort([piece.index for piece in series.slices]) if len(sources) == 1 else slice(None)
            segmentation = _segmentation(
                place[classes][planes], [structures[index - 1] for index in present], sources, method
            )
            write_whole(path, segmentation.save_as)
    except LrlsError:
        raise
    except (OSError, MemoryError):
        raise
    except Exception:  # whatever pydicom meets in damaged values; its messages quote them
        raise LrlsError(
            f"case {case}: its DICOM headers are of a kind or have values that DICOM-SEG does not allow; "
            "use the NIfTI file."
        ) from None


def source_headers(series: Series, case: str, needed_by: str = "DICOM-SEG") -> Sequence[Dataset]:
    """Headers of the files in order, with the geometry that was read: alike in all slices, in at most 16 characters.

    Raises:
        LrlsError: an attribute is missing.
    """
    files = list(dict.fromkeys(piece.file for piece in series.slices))
    sources = [pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=READ) for file in files]
    for source in sources:
        if missing := [name for name in NEEDED if not source.get(name)]:
            raise LrlsError(
                f"case {case}: its DICOM headers lack {missing[0]}, which {needed_by} needs; use the NIfTI file."
            )
        for name in IDENTITY:
            if not _is_valid(source, name):
                setattr(source, name, "")
    first = sources[0]
    shared = (first.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    measured = (shared.get("PixelMeasuresSequence") or [Dataset()])[0]
    thickness = first.get("SliceThickness") or measured.get("SliceThickness")
    columns_mm, rows_mm, step_mm = series.spacing_mm
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing = _decimals(rows_mm, columns_mm)
    measures.SliceThickness = _decimals(thickness or step_mm)[0]
    measures.SpacingBetweenSlices = _decimals(step_mm)[0]
    orientation.ImageOrientationPatient = _decimals(*(series.slices[0].orientation or ()))
    if series.headers[files[0]].is_classic:
        for source, piece in zip(sources, series.slices, strict=True):
            source.update(measures)
            source.update(orientation)
            source.ImagePositionPatient = _decimals(*(piece.position or ()))
        return sources
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    first.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for piece in sorted(series.slices, key=lambda piece: piece.index):
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = _decimals(*(piece.position or ()))
        group.PlanePositionSequence = [position]
        groups.append(group)
    first.PerFrameFunctionalGroupsSequence = groups
    return sources


def _is_valid(source: Dataset, name: str) -> bool:
    """Whether an attribute is there, and is a date, a time or a sex where it should be."""
    value = source.get(name)
    try:
        if name.endswith("Date"):
            DA(value)
        elif name.endswith("Time"):
            TM(value)
    except (TypeError, ValueError):
        return False
    return value is not None and (name != "PatientSex" or value in ("", "M", "F", "O"))


def _decimals(*values: float) -> list[str]:
    """Numbers as DICOM stores them: at most 16 characters each."""
    return [format_number_as_ds(float(value)) for value in values]


def _segmentation(segments: np.ndarray, names: Sequence[str], sources: Sequence[Dataset], method: str) -> Dataset:
    """The DICOM-SEG, one segment per name.

    Args:
        segments: segment numbers (D, H, W), planes in the order of the sources or of their frames.
        names: of the segments from 1.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    version = importlib.metadata.version("lrls")
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"lrls {method}", version=version, family=codes.cid7162.ArtificialIntelligence
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=one_line(name).replace("\\", "/")[:LONGEST_TEXT],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names, start=1)
    ]
    labels = [description.segment_label for description in descriptions]
    characters = sources[0].get("SpecificCharacterSet") if all(map(str.isascii, labels)) else "ISO_IR 192"  # UTF-8
    stamp = hashlib.sha256(segments.tobytes()).hexdigest()
    series_uid, instance_uid = (
        generate_uid(entropy_srcs=[str(sources[0].SeriesInstanceUID), method, version, stamp, level])
        for level in ("series", "instance")
    )
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=segments,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=series_uid,
        series_number=900,
        sop_instance_uid=instance_uid,
        instance_number=1,
        manufacturer="lrls",
        manufacturer_model_name=f"lrls {method}",
        software_versions=version,
        device_serial_number="0",
        series_description=f"lrls {method}"[:LONGEST_TEXT],
        specific_character_set=characters,
    )
