"""What a NIfTI-1 header says of the voxels and where they lie, checked before a library reads the file.

A header states the geometry up to three times: voxel sizes (pixdim), a rotation (qform) and an affine map (sform).
Libraries choose among them silently, each by its own rules, and repair what is impossible. Here the three must agree
on voxel sizes, angles and sides; otherwise the file is refused.

Source: NIfTI-1 Data Format, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from stages.data.faults import Fault, IntakeError, not_finite
from stages.data.geometry import MOST_SHEAR
from stages.data.sizes import refuse_impossible_size

NIFTI_BYTES = 348  # of a header
HEADER_BYTES = 352  # with the four bytes that say whether extensions follow
INTEGERS = {2: "u1", 4: "i2", 8: "i4", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
FLOATS = {16: "f4", 64: "f8"}
NOT_READ = {
    32: "complex values", 1792: "complex values", 2048: "complex values", 128: "colours", 2304: "colours",
    1: "one bit per voxel", 1536: "128-bit numbers",
}  # fmt: skip
SAME_SIZE = 5e-3  # of relative differences between voxel sizes; files store rounded ones
LEAST_COSINE = 0.7  # of an axis by qform and by sform; two forms may stand for two positions of a head
CORRECT = "correct the header with what the scanner says, or convert the scan again"
CHUNK_BYTES = 1 << 22
GEOMETRY = ((76, 16), (123, 1), (252, 76))  # (offset, length): qfac and pixdim, units, both forms


@dataclass(frozen=True)
class NiftiHeader:
    """A checked header.

    Args:
        data: its 348 bytes.
        order: "<" or ">", of its numbers.
        shape: (x, y, z, ...).
        dtype: of a stored voxel.
        offset: of the first voxel in the file.
    """

    data: bytes
    order: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def voxel_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def check_nifti(path: Path, case: str, kind: str) -> NiftiHeader:
    """Read a file once, from the first to the last voxel.

    Raises:
        IntakeError: the header contradicts itself or holds impossible numbers, the type of voxels is not read, or
            voxels are not finite (libraries read these as 0, and the missing end of a file too).
        EOFError, OSError, ValueError, zlib.error: the file is damaged or ends too early.
    """
    is_compressed = path.name.lower().endswith(".gz")
    with cast(BinaryIO, gzip.open(path)) if is_compressed else path.open("rb") as file:
        header = parse_nifti(file.read(HEADER_BYTES), case, kind)
        refuse_impossible_size(path, header.shape, header.dtype.itemsize, case, kind, is_compressed=is_compressed)
        file.seek(header.offset)
        missing, is_float = header.voxel_bytes, header.dtype.kind == "f"
        num_nan = num_infinite = 0
        while missing and (chunk := file.read(min(CHUNK_BYTES, missing))):
            if is_float:
                voxels = np.frombuffer(chunk, header.dtype, count=len(chunk) // header.dtype.itemsize)
                num_nan += int(np.isnan(voxels).sum())
                num_infinite += int(np.isinf(voxels).sum())
            missing -= len(chunk)
        if missing:
            raise EOFError
        file.read(CHUNK_BYTES)  # gzip checks its sum at the end; what follows the voxels is short or not read
    if num_nan or num_infinite:
        raise IntakeError(not_finite(case, kind, num_nan, num_infinite))
    return header


def head_of(path: Path, num_bytes: int) -> bytes:
    """The first bytes of a file, as they are when it is not compressed."""
    with cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        return file.read(num_bytes)


def parse_nifti(data: bytes, case: str, kind: str) -> NiftiHeader:
    """Check the first `HEADER_BYTES` of a file; raises as `check_nifti`."""

    def refuse(found: str, remedy: str, code: str = "header") -> IntakeError:
        return IntakeError(Fault(case, f"{kind} {found}", remedy, code=code))

    if len(data) < NIFTI_BYTES:
        raise EOFError
    if 540 in struct.unpack("<i", data[:4]) + struct.unpack(">i", data[:4]):
        raise refuse("is NIfTI-2, which is not read", "save it as NIfTI-1 (.nii.gz)", "format")
    order = "<" if struct.unpack("<i", data[:4])[0] == 348 else ">"
    if struct.unpack(f"{order}i", data[:4])[0] != 348:
        raise ValueError("no NIfTI header")
    if data[344:348] != b"n+1\0":
        if data[344:348] == b"ni1\0":
            raise refuse("has its voxels in another file (.hdr and .img)", "save it as one file (.nii.gz)", "format")
        raise refuse(
            "is Analyze, which does not say where left and right are", "save it as NIfTI-1 (.nii.gz)", "format"
        )
    dim = struct.unpack_from(f"{order}8h", data, 40)
    datatype, bits = struct.unpack_from(f"{order}2h", data, 70)
    (offset,) = struct.unpack_from(f"{order}f", data, 108)
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise refuse("has an impossible size in its header", "export it again")
    if datatype in NOT_READ:
        raise refuse(f"has {NOT_READ[datatype]}, plain numbers expected", "save it as int16 or float32", "voxel-type")
    if datatype not in INTEGERS and datatype not in FLOATS:
        raise refuse(f"has voxels of an unknown type ({datatype})", "save it as int16 or float32", "voxel-type")
    dtype = np.dtype(f"{order}{(INTEGERS | FLOATS)[datatype]}")
    if bits != 8 * dtype.itemsize:
        raise refuse(f"says {bits} bits per voxel, its type has {8 * dtype.itemsize}", "export it again")
    if not (math.isfinite(offset) and 348 <= offset <= 2**31):
        raise refuse("says its voxels start where they cannot", "export it again")
    slope, intercept = struct.unpack_from(f"{order}2f", data, 112)
    if math.isinf(slope) or (slope and not math.isnan(slope) and not math.isfinite(intercept)):
        raise refuse("has a scaling of intensities that is not finite", "export it again")
    header = NiftiHeader(data[:NIFTI_BYTES], order, dim[1 : dim[0] + 1], dtype, int(offset))
    if len(header.shape) >= 3 and (fault := _contradiction(header)):
        raise refuse(*fault)
    return header


def nifti_header(path: Path) -> NiftiHeader | None:
    """The header of a file that was read before; None: it is no NIfTI file, or has changed since."""
    if not path.name.lower().endswith((".nii", ".nii.gz")) or not path.is_file():
        return None
    try:
        return parse_nifti(head_of(path, HEADER_BYTES), "", "image")
    except (EOFError, IntakeError, OSError, ValueError, zlib.error):
        return None


def _contradiction(header: NiftiHeader) -> tuple[str, str, str] | None:
    """What is wrong with the geometry, the remedy, and the code."""
    data, order = header.data, header.order
    qfac, *sizes = struct.unpack_from(f"{order}4f", data, 76)
    q_code, s_code = struct.unpack_from(f"{order}2h", data, 252)
    quatern = np.array(struct.unpack_from(f"{order}6f", data, 256), dtype=np.float64)
    srow = np.array(struct.unpack_from(f"{order}12f", data, 280), dtype=np.float64).reshape(3, 4)
    if not all(math.isfinite(mm) and mm > 0 for mm in sizes):
        return f"has voxel sizes {_sizes(sizes)} (pixdim), positive ones expected", CORRECT, "header"
    if q_code <= 0 and s_code <= 0:
        return "does not say where left and right are (qform_code and sform_code are 0)", CORRECT, "no-geometry"
    forms = {}
    if q_code > 0:
        if not (math.isfinite(qfac) and np.isfinite(quatern).all() and (quatern[:3] ** 2).sum() <= 1.01):
            return "has a qform that is no rotation", CORRECT, "header"
        forms["qform"] = _rotation(*quatern[:3]) * np.array(sizes) * [1, 1, -1 if qfac < 0 else 1]
    if not np.isfinite(srow).all():
        return "has an sform with numbers that are not finite", CORRECT, "header"
    if s_code > 0:
        own = srow[:, :3]
        if abs(np.linalg.det(own)) <= 1e-6 * np.prod(np.linalg.norm(own, axis=0)):
            return "has an sform that is flat", CORRECT, "header"
        s_sizes = np.linalg.norm(own, axis=0)
        cosines = own / s_sizes
        if np.abs(cosines.T @ cosines - np.eye(3)).max() > MOST_SHEAR:
            by = " by its sform, and its qform says others" if q_code > 0 else ""
            return f"has axes that are not at right angles{by}", "resample it to a grid without shear", "shear"
        if not np.allclose(s_sizes, sizes, rtol=SAME_SIZE, atol=0):
            return (
                f"has voxel sizes {_sizes(sizes)} by pixdim and {_sizes(s_sizes)} by its sform",
                CORRECT,
                "contradiction",
            )
        forms["sform"] = own
    if len(forms) == 2:
        q_axes, s_axes = (form / np.linalg.norm(form, axis=0) for form in (forms["qform"], forms["sform"]))
        for name, cosine in zip("xyz", (q_axes * s_axes).sum(axis=0), strict=True):
            if cosine < LEAST_COSINE:
                how = "mirrored" if cosine < -LEAST_COSINE else "turned"
                return f"has its {name} axis {how} by its sform against its qform", CORRECT, "contradiction"
    return None


def _rotation(b: float, c: float, d: float) -> np.ndarray:
    """The rotation (3 x 3) of a quaternion whose first part is left out."""
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _sizes(values: object) -> str:
    return " x ".join(f"{float(mm):.4g}" for mm in values)  # type: ignore[attr-defined]


def with_geometry_of(source: NiftiHeader, written: bytes) -> bytes:
    """A written header (348 bytes) with the geometry that the scan's own header states, number by number.

    A viewer that reads the form which this program does not use then still lays the label map on its scan.
    """
    order = "<" if struct.unpack("<i", written[:4])[0] == 348 else ">"
    result = bytearray(written)
    for offset, length in GEOMETRY:
        result[offset : offset + length] = source.data[offset : offset + length]
    if order != source.order:
        for offset, kind in ((76, "4f"), (252, "2h"), (256, "6f"), (280, "12f")):
            struct.pack_into(
                order + kind, result, offset, *struct.unpack_from(source.order + kind, source.data, offset)
            )
    return bytes(result)
