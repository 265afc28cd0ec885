"""Small DICOM files of any geometry, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.2.1125."
CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL, CORONAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)
OBLIQUE = (0.96, 0.28, 0.0, -0.224, 0.768, 0.6)
SPACING_MM = (0.75, 1.5, 2.5)  # rows, columns, slices
ORIGIN = (-12.0, 7.5, 30.25)


def phantom(shape: tuple[int, int, int] = (6, 7, 9)) -> np.ndarray:
    """Stored numbers (D, H, W), int16: no two alike."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 40


def positions(count: int, orientation: Sequence[float] = AXIAL, step_mm: float = SPACING_MM[2]) -> np.ndarray:
    """Of slices along their normal (N, 3)."""
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array(ORIGIN) + step_mm * np.arange(count)[:, None] * normal


def common(sop_class: str, series: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, ExplicitVRLittleEndian
    d = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    d.SOPClassUID, d.StudyInstanceUID, d.SeriesInstanceUID = sop_class, f"{ROOT}1", f"{ROOT}{series}"
    d.FrameOfReferenceUID, d.PositionReferenceIndicator = f"{ROOT}3", ""
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "A^B", "1", "19500101", "O"
    d.StudyDate, d.StudyTime, d.AccessionNumber, d.StudyID, d.ReferringPhysicianName = "20200101", "120000", "", "1", ""
    d.Modality, d.SeriesNumber, d.Manufacturer, d.SamplesPerPixel = "CT", 1, "x", 1
    d.PhotometricInterpretation, d.PixelRepresentation = "MONOCHROME2", 1
    d.BitsAllocated, d.BitsStored, d.HighBit = 16, 16, 15
    return d


def identify(d: Dataset, instance: str) -> None:
    d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = instance


def write_slices(
    folder: Path,
    voxels: np.ndarray | None = None,
    orientation: Sequence[float] = AXIAL,
    change: Callable[[Dataset, int], None] = lambda d, k: None,
    *,
    at: np.ndarray | None = None,
    series: str = "2",
    names: Sequence[str] | None = None,
) -> Path:
    """A classic series, one file per slice.

    Args:
        change: of the header of slice k before it is written.
        at: positions of the slices (N, 3); by default one step apart along the normal.
        names: of the files.
    """
    voxels = phantom() if voxels is None else voxels
    at = positions(len(voxels), orientation) if at is None else at
    folder.mkdir(parents=True, exist_ok=True)
    for k, (plane, position) in enumerate(zip(voxels, at, strict=True)):
        d = common(CT, series)
        identify(d, f"{ROOT}{series}.{k + 1}")
        d.InstanceNumber, (d.Rows, d.Columns) = k + 1, plane.shape
        d.PixelSpacing, d.SliceThickness = list(SPACING_MM[:2]), SPACING_MM[2]
        d.ImageOrientationPatient, d.ImagePositionPatient = list(orientation), [round(x, 6) for x in position]
        d.RescaleSlope, d.RescaleIntercept, d.PixelData = 1, 0, plane.tobytes()
        change(d, k)
        d.save_as(folder / (names[k] if names else f"{series}_{k}.dcm"), enforce_file_format=True)
    return folder


def write_frames(
    path: Path,
    voxels: np.ndarray | None = None,
    orientation: Sequence[float] = AXIAL,
    change: Callable[[Dataset], None] = lambda d: None,
    *,
    order: Sequence[int] | None = None,
    at: np.ndarray | None = None,
    scale: Callable[[int], tuple[float, float]] | None = None,
    series: str = "2",
) -> Path:
    """An enhanced multi-frame file.

    Args:
        order: which slice each frame is.
        at: positions of the slices (N, 3).
        scale: slope and intercept of each slice.
    """
    voxels = phantom() if voxels is None else voxels
    at = positions(len(voxels), orientation) if at is None else at
    order = range(len(voxels)) if order is None else order
    path.parent.mkdir(parents=True, exist_ok=True)
    d = common(ENHANCED_MR, series)
    identify(d, f"{ROOT}{series}.1")
    d.Modality, d.InstanceNumber, d.ImageType = "MR", 1, ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    (d.Rows, d.Columns), d.NumberOfFrames = voxels.shape[1:], len(order)
    measures, facing, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(SPACING_MM[:2]), SPACING_MM[2]
    facing.ImageOrientationPatient = list(orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [facing]
    d.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [round(x, 6) for x in at[k]]
        frame.PlanePositionSequence = [place]
        if scale:
            values = Dataset()
            values.RescaleSlope, values.RescaleIntercept = scale(k)
            frame.PixelValueTransformationSequence = [values]
        frames.append(frame)
    d.PerFrameFunctionalGroupsSequence = frames
    d.PixelData = np.stack([voxels[k] for k in order]).tobytes()
    change(d)
    d.save_as(path, enforce_file_format=True)
    return path


def without_preamble(path: Path) -> None:
    path.write_bytes(path.read_bytes()[132:])


def rewrite(path: Path, change: Callable[[Dataset], None]) -> None:
    d = pydicom.dcmread(path)
    change(d)
    d.save_as(path)
