"""DICOM headers: where each slice lies, and how its stored numbers become values.

A slice is a file of a classic series, or a frame of a multi-frame file, whose functional groups state the same things.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from stages.data.dicom_files import MAGIC
from stages.data.sizes import MOST_EXPANSION

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF  # length of compressed pixel data, which are a sequence of items
MOST_DEFLATED = 2**28  # bytes that a deflated file may hold
TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One slice, as its header describes it; None: the header does not say, or says no finite numbers.

    Args:
        index: of the frame in the file, from 0.
        position: of the centre of the first voxel: (x, y, z), LPS, mm.
        orientation: unit vectors along a row and along a column.
        spacing: mm between rows and between columns.
        slope, intercept: value = slope * stored number + intercept; NaN: the header says no finite number.
    """

    file: Path
    index: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float
    intercept: float


@dataclass(frozen=True)
class Header:
    """What the header of a file with voxels says.

    Args:
        series: its SeriesInstanceUID.
        is_for_itk: it has a preamble, without which ITK reads no file, and nothing behind its voxels claims memory.
        is_classic: one slice, described by the file's own attributes.
        frames: how many the file has.
        transfer_syntax: how the pixel data are encoded.
        voxels_at: byte at which they begin; None: they are compressed, or the whole file is.
        has_table: stored numbers become values by a table.
        slices: one without geometry stands for all, where a multi-frame file does not describe each.
    """

    path: Path
    series: str
    sop_class: str
    is_for_itk: bool
    is_classic: bool
    frames: int
    transfer_syntax: UID
    voxels_at: int | None
    rows: int
    columns: int
    channels: int
    photometric: str
    bits: tuple[int, int, int]  # allocated, stored, highest
    is_signed: bool
    has_table: bool
    slices: tuple[Slice, ...]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom and highdicom, whose warnings and log lines quote values of headers: names and dates."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def read_header(path: Path) -> Header | None:
    """The header of a DICOM file, read without its voxels; None: it is no image (a report, contours, ...).

    Raises:
        EOFError: it is damaged, ends too early, or is too small to hold the voxels that it claims.
        OSError: it cannot be opened.
    """
    try:
        with quiet():
            return _read_header(path)
    except OSError:
        raise
    except Exception:  # whatever pydicom meets in damaged bytes; a header's attribute that claims all memory, too
        raise EOFError from None


def _read_header(path: Path) -> Header | None:
    with path.open("rb") as file:
        has_preamble = file.read(132)[128:] == MAGIC
        syntax = UID("")
        if has_preamble:
            meta = read_file_meta_info(path)
            syntax = UID(str(meta.get("TransferSyntaxUID", "")))
            if syntax == DeflatedExplicitVRLittleEndian:
                _refuse_bomb(file, 132 + 12 + int(meta.FileMetaInformationGroupLength))
        file.seek(0)
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=TAGS)
        syntax = syntax or UID(str(getattr(dataset.file_meta, "TransferSyntaxUID", "")))
        is_image = "Image Storage" in UID(str(dataset.get("SOPClassUID", ""))).name
        if not is_image and dataset.get("Rows") is None and dataset.SeriesInstanceUID:
            return None
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        frames = int(dataset.get("NumberOfFrames") or 1)
        allocated = int(dataset.BitsAllocated)
        num_bytes = rows * columns * frames * int(dataset.get("SamplesPerPixel", 1)) * allocated // 8
        is_deflated = syntax == DeflatedExplicitVRLittleEndian
        if min(rows, columns, frames, allocated) < 1 or num_bytes > MOST_EXPANSION * path.stat().st_size:
            raise EOFError
        is_whole, voxels_at = (True, None) if is_deflated else _check_pixels(file, dataset, num_bytes)
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    stored = int(dataset.get("BitsStored", allocated))
    return Header(
        path=path, series=str(dataset.get("SeriesInstanceUID", "")), sop_class=str(dataset.get("SOPClassUID", "")),
        is_for_itk=has_preamble and is_whole, is_classic=frames == 1 and not per_frame, frames=frames,
        transfer_syntax=syntax, voxels_at=voxels_at, rows=rows, columns=columns,
        channels=int(dataset.get("SamplesPerPixel", 1)), photometric=str(dataset.get("PhotometricInterpretation", "")),
        bits=(allocated, stored, int(dataset.get("HighBit", stored - 1))),
        is_signed=bool(dataset.get("PixelRepresentation", 0)), has_table="ModalityLUTSequence" in dataset,
        slices=_slices(path, dataset, per_frame, frames),
    )  # fmt: skip


def _slices(path: Path, dataset: Dataset, per_frame: Sequence[Dataset], frames: int) -> tuple[Slice, ...]:
    if frames == 1 and not per_frame:
        return (_slice(path, 0, dataset, dataset, dataset, dataset),)
    if len(per_frame) != frames:
        return (Slice(path, 0, None, None, None, 1.0, 0.0),)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    slices = []
    for index, own in enumerate(per_frame):
        place, orientation, measures, values = (
            (own.get(name) or shared.get(name) or [Dataset()])[0]
            for name in (
                "PlanePositionSequence", "PlaneOrientationSequence",
                "PixelMeasuresSequence", "PixelValueTransformationSequence",
            )
        )  # fmt: skip
        slices.append(_slice(path, index, place, orientation, measures, values or dataset))
    return tuple(slices)


def _slice(path: Path, index: int, place: Dataset, orientations: Dataset, measures: Dataset, values: Dataset) -> Slice:
    spacing = _numbers(measures, "PixelSpacing", 2)
    orientation = _numbers(orientations, "ImageOrientationPatient", 6)
    if orientation and any(abs(math.hypot(*axis) - 1) > 0.01 for axis in (orientation[:3], orientation[3:])):
        orientation = None
    slope, intercept = _number_or(1.0, values, "RescaleSlope"), _number_or(0.0, values, "RescaleIntercept")
    return Slice(
        path, index, _numbers(place, "ImagePositionPatient", 3), orientation,
        spacing if spacing and min(spacing) > 0 else None, slope, intercept,
    )  # fmt: skip


def _numbers(dataset: Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """The numbers of an attribute; None: it is missing, has another number of them, or one is not finite."""
    try:
        value = dataset.get(name)
        numbers = tuple(float(part) for part in (value if count > 1 else [value]))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _number_or(default: float, dataset: Dataset, name: str) -> float:
    """An attribute's number; the default if it is missing or empty, NaN if it is no finite number."""
    if dataset.get(name) in (None, ""):
        return default
    (number,) = _numbers(dataset, name, 1) or (math.nan,)
    return number


def _check_pixels(file: IO[bytes], dataset: Dataset, num_bytes: int) -> tuple[bool, int | None]:
    """Check that the pixel data, where the reader stopped, are there in full.

    Returns:
        Whether what follows them is there in full, and where they begin; None: they are compressed.

    Raises:
        EOFError: they are not, or are compressed and followed by something else.
    """
    is_implicit, is_little = map(bool, dataset.original_encoding)
    order = "<" if is_little else ">"
    group, element = struct.unpack(f"{order}HH", file.read(4))
    if group << 16 | element != PIXEL_DATA:
        raise EOFError
    file.seek(0 if is_implicit else 4, os.SEEK_CUR)
    (length,) = struct.unpack(f"{order}I", file.read(4))
    start = file.tell()
    end = file.seek(0, os.SEEK_END)
    if length != UNDEFINED:
        if length < num_bytes or start + length > end:
            raise EOFError
        return _is_whole(file, start + length, end, is_implicit, order), start
    while True:  # items: (FFFE,E000), a length and as many bytes, until (FFFE,E0DD)
        file.seek(start)
        group, element, length = struct.unpack("<HHI", file.read(8))
        start += 8 + length
        if group != 0xFFFE or start > end:
            raise EOFError
        if element == 0xE0DD:
            if not _is_whole(file, start, end, is_implicit, order):
                raise EOFError
            return True, None


def _is_whole(file: IO[bytes], start: int, end: int, is_implicit: bool, order: str) -> bool:
    """Whether the attributes behind the pixel data end where the file ends. ITK takes memory for what they claim."""
    while start < end:
        file.seek(start)
        head = file.read(12)
        if len(head) < 8 or head[:4] == bytes(4):  # padding, of which ITK takes no more than this
            return len(head) < 8 and not head.strip(b"\0")
        is_long = not is_implicit and head[4:6].decode("latin-1") in EXPLICIT_VR_LENGTH_32
        place, kind = (8, "I") if is_long else (4, "I") if is_implicit else (6, "H")
        if is_long and len(head) < 12:
            return False
        (length,) = struct.unpack_from(f"{order}{kind}", head, place)
        if length == UNDEFINED:
            return True
        start += (12 if is_long else 8) + length
    return start == end


def _refuse_bomb(file: IO[bytes], start: int) -> None:
    """Check that a deflated file is whole and not too big before pydicom inflates all of it.

    Raises:
        EOFError: it is not.
    """
    file.seek(start)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(file.read(), MOST_DEFLATED)
    if not inflater.eof:
        raise EOFError
