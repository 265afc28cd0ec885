"""Reading DICOM: one series or multi-frame file as one volume, or one line that says why it is none.

Headers are read first and say everything: where each slice lies, and how stored numbers become values. ITK decodes
what it decodes rightly. What it passes over is decided here: slices without geometry, shear, gaps, several volumes,
values that are scaled slice by slice, and the order of frames.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.uid import ExplicitVRBigEndian

from stages.data.dicom_files import files_below, is_dicom, series_in
from stages.data.dicom_headers import SEGMENTATIONS, Header, Slice, read_header
from stages.data.faults import Fault, IntakeError
from stages.data.geometry import MOST_SHEAR
from stages.data.neutral import linked, muted, temporary_folder
from stages.data.sizes import refuse_full_memory

MOST_UNEQUAL = 0.1  # of the steps between slices, as a share of their median
MOST_DRIFT = 0.5  # voxels that slices may shift sideways against their normal, over the whole series
SAME_PLACE = 0.01  # voxels: slices nearer than this lie at one position
SAME_AXES = 2e-3  # of entries of unit vectors; files store rounded ones
SAME_SPACING = 1e-3  # relative
# Multi-frame classes of which ITK scales stored numbers itself (by the first frame's slope): MR, CT, PET, and what was
# converted from series of these.
SCALED_BY_ITK = tuple(
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4.1", "2.1", "130", "4.4", "2.2", "128.1")
)  # fmt: skip

EXPORT = "export the original series again"
ONE_VOLUME = "keep the files of one volume in its folder"


@dataclass(frozen=True)
class Series:
    """The slices of one volume, in the order of their positions along their normal.

    Args:
        headers: by file.
        spacing_mm: between columns, rows and slices.
    """

    headers: dict[Path, Header]
    slices: tuple[Slice, ...]
    spacing_mm: tuple[float, float, float]


def read_dicom(path: Path, case: str, kind: str = "image") -> sitk.Image:
    """Decode a folder with one DICOM series, or a multi-frame file.

    Raises:
        IntakeError: it is not one volume of grey values on a right-angled grid, or is damaged.
    """
    series = open_series(path, case, kind)
    if all(header.is_classic and header.is_for_itk for header in series.headers.values()):
        return _slices_by_itk(series, case, kind)
    return _with_geometry(_by_frames(series, case, kind), series)


def open_series(path: Path, case: str, kind: str = "image") -> Series:
    """The slices of a folder with one DICOM series, or of a multi-frame file, in order; nothing is decoded.

    Raises:
        IntakeError: they are not one volume of grey values on a right-angled grid.
        PermissionError: a file cannot be opened.
    """
    headers = _headers_of(path, case, kind)
    slices = [piece for header in headers for piece in header.slices]
    if len(slices) == 1 and not path.is_dir() and headers[0].is_classic:
        found = f"{kind} is one slice of a DICOM series"
        raise IntakeError(Fault(case, found, "name the folder of the series", "dicom-series"))
    if unsuitable := _unsuitable(headers):
        raise IntakeError(Fault(case, f"{kind} {unsuitable[0]}", unsuitable[1], "dicom-voxels"))
    contradiction = _contradiction(headers, slices)
    if not contradiction:
        slices, spacing_mm = _ordered(slices)
        contradiction = _no_stack(slices, spacing_mm)
    if contradiction:
        raise IntakeError(Fault(case, f"{kind} {contradiction[0]}", contradiction[1], "dicom-slices"))
    first = headers[0]
    item_bytes = math.ceil(max(header.bits[0] for header in headers) / 8)
    refuse_full_memory((len(slices), first.rows, first.columns), item_bytes, case, kind)
    return Series({header.path: header for header in headers}, tuple(slices), spacing_mm)


def _headers_of(path: Path, case: str, kind: str) -> list[Header]:
    """Headers of the images of the one series.

    Raises:
        IntakeError: there is not exactly one series, or a file is damaged.
    """
    files = series_in(path) if path.is_dir() else [path]
    if not files:
        is_open = os.access(path, os.R_OK | os.X_OK)
        if not is_open or any(is_dicom(file) is None for file in files_below(path)):
            raise PermissionError
    headers, damaged = [], 0
    for file in files:
        try:
            headers.append(read_header(file))
        except PermissionError:
            raise
        except (OSError, EOFError):
            damaged += 1
    if damaged:
        which = f"holds {len(files)} DICOM files, {damaged} of them" if len(files) > 1 else "is"
        found = f"{kind} {which} unreadable or truncated"
        raise IntakeError(Fault(case, found, "copy or export the series again", "unreadable"))
    images = [header for header in headers if header]
    num_series = len({header.series for header in images})
    if num_series != 1:
        if path.is_dir():
            found = f"{kind} folder holds {num_series or 'no'} DICOM series, 1 expected"
            raise IntakeError(Fault(case, found, "keep the files of one series in it", "dicom-series"))
        raise IntakeError(Fault(case, f"{kind} is a DICOM file without voxels", EXPORT, "dicom-series"))
    return images


def _unsuitable(headers: Sequence[Header]) -> tuple[str, str] | None:
    """What is wrong with the kind of voxels, and the remedy."""
    if any(header.sop_class in SEGMENTATIONS for header in headers):
        return "is a DICOM segmentation, which holds a frame per structure", "convert it to NIfTI (3D Slicer, dcmqi)"
    channels = max(header.channels for header in headers)
    photometric = {header.photometric for header in headers}
    if channels > 1 or "PALETTE COLOR" in photometric:
        return f"has {max(channels, 3)} channels (colours)", "keep one channel: one image per scan"
    if "MONOCHROME1" in photometric:
        remedy = "export it as MONOCHROME2, so that its values have one meaning"
        return "is stored for display in negative (MONOCHROME1)", remedy
    if any(header.has_table for header in headers):
        return "has values by a table (ModalityLUTSequence)", "export it with RescaleSlope and RescaleIntercept"
    for header in headers:
        if header.frames > len(header.slices):
            return f"has {header.frames} frames without positions in the patient", EXPORT
    return None


def _contradiction(headers: Sequence[Header], slices: Sequence[Slice]) -> tuple[str, str] | None:
    """What keeps slices from being parallel and alike, and the remedy."""
    for name, values in (
        ("ImagePositionPatient", [piece.position for piece in slices]),
        ("ImageOrientationPatient", [piece.orientation for piece in slices]),
        ("PixelSpacing", [piece.spacing for piece in slices]),
    ):
        if missing := sum(value is None for value in values):
            found = f"has no geometry: {name} is missing or impossible in {missing} of {_slices(len(slices))}"
            return found, EXPORT
    scaling = np.array([(piece.slope, piece.intercept) for piece in slices])
    if wrong := int((~np.isfinite(scaling).all(axis=1) | (scaling[:, 0] == 0)).sum()):
        found = f"has an impossible RescaleSlope or RescaleIntercept in {wrong} of {_slices(len(slices))}"
        return found, EXPORT
    axes = np.array([piece.orientation for piece in slices])
    if np.abs((axes[:, :3] * axes[:, 3:]).sum(axis=1)).max() > MOST_SHEAR:
        return "has axes that are not at right angles", "resample it to a grid without shear"
    if (groups := _num_groups(axes, SAME_AXES)) > 1:
        found = f"holds slices of {groups} orientations, 1 expected (is one of them a localizer?)"
        return found, "keep the slices of one orientation in its folder"
    sizes = {(header.rows, header.columns) for header in headers}
    if len(sizes) > 1:
        return f"holds slices of {len(sizes)} sizes, 1 expected", ONE_VOLUME
    spacing = np.array([piece.spacing for piece in slices])
    if (groups := _num_groups(np.log(spacing), SAME_SPACING)) > 1:
        return f"holds slices of {groups} pixel spacings, 1 expected", ONE_VOLUME
    return None


def _num_groups(rows: np.ndarray, tolerance: float) -> int:
    """How many different rows (N, K) there are; rows within the tolerance of a group's first one belong to it."""
    groups = 0
    while len(rows):
        rows = rows[np.abs(rows - rows[0]).max(axis=1) > tolerance]
        groups += 1
    return groups


def _ordered(slices: Sequence[Slice]) -> tuple[list[Slice], tuple[float, float, float]]:
    """Slices that have a geometry by their place along the normal, and the spacing: x, y, mean step (1 for one)."""
    heights = _heights(slices)
    order = np.argsort(heights, kind="stable")
    rows_mm, columns_mm = slices[0].spacing or (1.0, 1.0)
    step_mm = float(np.ptp(heights)) / (len(slices) - 1) if len(slices) > 1 else 1.0
    return [slices[k] for k in order], (columns_mm, rows_mm, step_mm)


def _heights(slices: Sequence[Slice]) -> np.ndarray:
    """Places along the normal, in mm (N,)."""
    return np.array([piece.position for piece in slices]) @ _axes(slices)[2]


def _axes(slices: Sequence[Slice]) -> np.ndarray:
    """Unit vectors along rows, along columns and along the normal (3, 3), of the first slice."""
    along = np.reshape(np.array(slices[0].orientation, float), (2, 3))
    axes = along / np.linalg.norm(along, axis=1, keepdims=True)
    return np.vstack([axes, np.cross(*axes)])


def _no_stack(slices: Sequence[Slice], spacing_mm: tuple[float, float, float]) -> tuple[str, str] | None:
    """What keeps ordered, parallel slices from being one volume, and the remedy."""
    heights, voxel_mm = _heights(slices), min(spacing_mm[:2])
    place = np.cumsum(np.diff(heights, prepend=heights[0]) > SAME_PLACE * voxel_mm)  # numbers the positions
    times = Counter(Counter(place.tolist()).values())
    if len(slices) > 1 and max(times) > 1:
        one_volume = "export one volume alone (one time point, echo or b-value)"
        if len(times) == 1 and place[-1] > 0:
            return f"holds {max(times)} volumes: each of {place[-1] + 1} positions {max(times)} times", one_volume
        if place[-1] == 0:
            return f"holds {len(slices)} slices at one position", one_volume
        several = sum(count for number, count in times.items() if number > 1)
        return f"holds several slices at {several} of {place[-1] + 1} positions", one_volume
    positions = np.array([piece.position for piece in slices])
    sideways = (positions - positions[0]) @ _axes(slices)[:2].T
    if np.linalg.norm(sideways, axis=1).max() > MOST_DRIFT * voxel_mm:
        degrees = math.degrees(math.atan2(float(np.linalg.norm(sideways[-1])), float(np.ptp(heights))))
        remedy = (
            "resample it to a right-angled grid (dcm2niix, or Acquisition Geometry Regularization in 3D Slicer), "
            "and give that"
        )
        return f"has slices that shift sideways, {degrees:.3g} degrees off their normal (gantry tilt?)", remedy
    steps = np.diff(heights)
    if len(steps) and np.ptp(steps) > MOST_UNEQUAL * np.median(steps):
        widest = int(steps.argmax())
        gap = f"the widest gap after slice {widest + 1} of {len(slices)}"
        found = f"has slices {steps.min():.3g} to {steps.max():.3g} mm apart, {gap}"
        return found, "export the series again with all its slices, or resample it to equal steps"
    return None


def _slices(count: int) -> str:
    return f"{count} slice{'s' if count > 1 else ''}"


def _slices_by_itk(series: Series, case: str, kind: str) -> sitk.Image:
    """A classic series. ITK takes the first slice's type for all, so it is asked for floats where slices differ."""
    headers = [series.headers[piece.file] for piece in series.slices]
    scaling = {
        (piece.slope, piece.intercept, header.bits, header.is_signed)
        for piece, header in zip(series.slices, headers, strict=True)
    }
    with temporary_folder() as folder:
        files = [str(linked(piece.file, folder / f"{k:06d}.dcm")) for k, piece in enumerate(series.slices)]
        try:
            with muted():
                return sitk.ReadImage(files, sitk.sitkUnknown if len(scaling) == 1 else sitk.sitkFloat64)
        except RuntimeError as error:
            raise _undecodable(headers[0], error, case, kind) from None


def _by_frames(series: Series, case: str, kind: str) -> np.ndarray:
    """Voxels (D, H, W) of a series of which ITK does not know order, scaling or format."""
    scaling = {(piece.slope, piece.intercept) for piece in series.slices}
    frames = {}
    for path, header in series.headers.items():
        if header.voxels_at is None:
            frames[path] = _frames_by_itk(header, scaling, case, kind)
        else:
            frames[path] = _stored(header, case, kind)
            if scaling != {(1.0, 0.0)}:
                frames[path] = np.stack([
                    (frames[path][piece.index] * np.float64(piece.slope) + piece.intercept).astype(np.float32)
                    for piece in header.slices
                ])  # fmt: skip
    return np.stack([frames[piece.file][piece.index] for piece in series.slices])


def _frames_by_itk(header: Header, scaling: set[tuple[float, float]], case: str, kind: str) -> np.ndarray:
    """The frames (N, H, W) of a compressed file, scaled.

    Raises:
        IntakeError: they cannot be decoded, or ITK would scale them wrongly.
    """
    if scaling != {(1.0, 0.0)} and (len(scaling) > 1 or header.sop_class not in SCALED_BY_ITK):
        found = f"{kind} is compressed, and its frames are scaled by slopes of their own"
        raise IntakeError(Fault(case, found, "decompress it (gdcmconv --raw, dcmdjpeg)", "dicom-voxels"))
    with temporary_folder() as folder:
        try:
            with muted():
                image = sitk.ReadImage(str(linked(header.path, folder / "frames.dcm")))
        except RuntimeError as error:
            raise _undecodable(header, error, case, kind) from None
    return sitk.GetArrayFromImage(image).reshape(header.frames, header.rows, header.columns)


def _stored(header: Header, case: str, kind: str) -> np.ndarray:
    """The stored numbers (N, H, W) of a file that is not compressed.

    Raises:
        IntakeError: they are not integers of a usual size.
    """
    allocated, bits, high = header.bits
    if (
        allocated not in (8, 16, 32)
        or not 0 < bits <= high + 1 <= allocated
        or header.transfer_syntax == ExplicitVRBigEndian
    ):
        found = f"{kind} has numbers of {bits} in {allocated} bits, which are not read"
        raise IntakeError(Fault(case, found, EXPORT, "dicom-voxels"))
    dtype = np.dtype(f"<{'i' if header.is_signed else 'u'}{allocated // 8}")
    shape = (header.frames, header.rows, header.columns)
    stored = np.fromfile(header.path, dtype, math.prod(shape), offset=header.voxels_at or 0).reshape(shape)
    if bits == allocated:
        return stored
    return (stored << (allocated - 1 - high)) >> (allocated - bits)  # other bits hold no part of the number


def _undecodable(header: Header, error: RuntimeError, case: str, kind: str) -> Exception:
    if "allocat" in str(error):
        return MemoryError()
    if header.voxels_at is None:
        name = header.transfer_syntax.name  # of an unknown one: its own text
        how = name if name[:1].isalpha() else "an unknown transfer syntax"
        found = f"{kind} is damaged, or compressed in a way that is not read ({how})"
        remedy = "decompress it (gdcmconv --raw, dcmdjpeg), or export it again"
        return IntakeError(Fault(case, found, remedy, "dicom-voxels"))
    found = f"{kind} is unreadable or truncated"
    return IntakeError(Fault(case, found, "copy or export the series again", "unreadable"))


def _with_geometry(voxels: np.ndarray, series: Series) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(series.spacing_mm)
    image.SetOrigin(series.slices[0].position)
    image.SetDirection(_axes(series.slices).T.ravel().tolist())
    return image
