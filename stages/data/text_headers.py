"""What MetaImage (.mha, .mhd) and NRRD headers say, checked before a library reads the file.

Libraries take a missing voxel size as 1 mm and missing directions as the scanner's; they open any file that a header
names, and take the memory that it claims. Here such files are refused.

Sources: https://itk.org/Wiki/ITK/MetaIO/Documentation, https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.data.faults import Fault, IntakeError
from stages.data.sizes import check_packed, refuse_impossible_size

HEADER_BYTES = 2**16
UNITS_MM = {
    "m": 1000.0, "meter": 1000.0, "meters": 1000.0, "metre": 1000.0, "metres": 1000.0, "cm": 10.0, "centimeter": 10.0,
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "millimetre": 1.0, "millimetres": 1.0, "um": 1e-3,
    "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3, "micrometers": 1e-3, "micrometre": 1e-3, "micrometres": 1e-3,
    "\N{MICRO SIGN}m": 1e-3, "\N{GREEK SMALL LETTER MU}m": 1e-3, "nm": 1e-6, "nanometer": 1e-6,
}  # fmt: skip
UNSTATED = {"", "?", "???", "none", "unknown"}  # read as mm
META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
NRRD_TYPES = {
    "i1": "signed char, int8, int8_t", "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t", "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t", "f4": "float", "f8": "double",
}  # fmt: skip
NRRD_DTYPE = {name: dtype for dtype, names in NRRD_TYPES.items() for name in names.split(", ")}
NRRD_SPACES = {
    "right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps",
    "right-anterior-superior-time", "rast", "left-anterior-superior-time", "last", "left-posterior-superior-time",
    "lpst",
}  # fmt: skip
NRRD_FIELDS = {
    "content", "number", "type", "block size", "blocksize", "dimension", "space", "space dimension", "sizes",
    "spacings", "thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs", "space directions", "centers",
    "centerings", "kinds", "labels", "units", "space units", "min", "max", "old min", "oldmin", "old max", "oldmax",
    "endian", "encoding", "line skip", "lineskip", "byte skip", "byteskip", "sample units", "sampleunits",
    "space origin", "measurement frame", "data file", "datafile",
}  # fmt: skip
SKIPS = ("line skip", "lineskip", "byte skip", "byteskip")  # what stands before the voxels
LONGEST_LINE = 500  # characters of a NRRD field; the library that reads them writes longer wrong ones beyond its memory


@dataclass(frozen=True)
class TextHeader:
    """What reading the voxels needs to know.

    Args:
        data_file: that holds them; None: they follow the header.
        unit_mm: of the header's lengths, which ITK takes as mm.
    """

    data_file: Path | None
    unit_mm: float


def check_text_header(path: Path, case: str, kind: str) -> TextHeader:
    """Check the header of a .mha, .mhd or .nrrd file.

    Raises:
        IntakeError: it lacks voxel size or directions, states impossible ones, names a file that is not beside it, or
            claims more voxels than fit into the memory; voxels are stored in a way that is not read; its unit of
            length is not known.
        EOFError, OSError, ValueError: the file is damaged or ends too early.
    """
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    return (_check_nrrd if path.name.lower().endswith(".nrrd") else _check_meta)(path, start, case, kind)


def _check_meta(path: Path, start: bytes, case: str, kind: str) -> TextHeader:
    fields: dict[str, str] = {}
    for line in start.split(b"\n"):
        key, separator, value = (part.strip() for part in line.partition(b"="))
        if not line.strip():
            continue
        if not separator or len(key) > 64:
            raise ValueError("no MetaImage header")
        fields[key.decode("ascii")] = value.decode("utf-8")
        if key == b"ElementDataFile":
            break
    else:
        raise EOFError
    shape = _integers(fields, "DimSize")
    spacing = _numbers(fields, "ElementSpacing" if "ElementSpacing" in fields else "ElementSize")
    direction = next((fields[key] for key in ("TransformMatrix", "Orientation", "Rotation") if key in fields), None)
    origin = next((fields[key] for key in ("Offset", "Origin", "Position") if key in fields), "0")
    place = _Refusal(case, kind)
    if spacing is None or direction is None:
        raise place.lacks("voxel size (ElementSpacing)" if spacing is None else "directions (TransformMatrix)")
    place.check_numbers("ElementSpacing", spacing, least=0)
    place.check_numbers("TransformMatrix", _floats(direction))
    place.check_numbers("Offset", _floats(origin))
    if fields.get("ElementType") not in META_TYPES:
        raise place.refuse("has voxels of an unknown type", "save it as int16 or float32", "voxel-type")
    if int(fields.get("ElementNumberOfChannels", "1")) < 1:
        raise ValueError("no channel")
    is_compressed = fields.get("CompressedData", "False").lower() == "true"
    name = fields["ElementDataFile"]
    is_local = name.upper() == "LOCAL"
    if not is_local and path.name.lower().endswith(".mha"):
        raise place.refuse(
            "names another file for its voxels, which .mha files hold", "save it again in one file", "voxel-file"
        )
    data_file = None if is_local else place.file_beside(path, name)
    dtype = np.dtype(META_TYPES[fields["ElementType"]])
    is_text = fields.get("BinaryData", "True").lower() == "false"
    refuse_impossible_size(
        data_file or path, [*shape, int(fields.get("ElementNumberOfChannels", "1"))],
        1 if is_text else dtype.itemsize, case, kind, is_compressed=is_compressed,
    )  # fmt: skip
    if is_compressed:
        begin = start.index(b"\n", start.index(b"ElementDataFile")) + 1 if is_local else 0
        voxels = math.prod(shape) * int(fields.get("ElementNumberOfChannels", "1"))
        taken = check_packed(data_file or path, max(begin, int(fields.get("HeaderSize", "0"))), voxels * dtype.itemsize)
        if 0 < int(fields.get("CompressedDataSize", "0")) < taken:
            raise EOFError
    return TextHeader(data_file, place.unit_mm([fields.get("DistanceUnits", "")]))


def _check_nrrd(path: Path, start: bytes, case: str, kind: str) -> TextHeader:
    place = _Refusal(case, kind)
    head, separator, _ = start.replace(b"\r\n", b"\n").partition(b"\n\n")
    if not start.startswith(b"NRRD000") or not (separator or len(start) < HEADER_BYTES):
        raise ValueError("no NRRD header")
    fields: dict[str, str] = {}
    for line in head.decode("utf-8").split("\n")[1:]:
        key, colon, value = line.partition(":")
        if line.startswith("#") or not line.strip() or value.startswith("="):  # comments; keys of other programs
            continue
        if not colon or key.strip().lower() not in NRRD_FIELDS or len(line) > LONGEST_LINE:
            raise ValueError("no field of a NRRD header")
        if key.strip().lower() in fields:
            raise ValueError("a field twice")
        fields[key.strip().lower()] = value.strip()
    shape = _integers(fields, "sizes")
    dtype = NRRD_DTYPE.get(" ".join(fields.get("type", "").lower().split()))
    if dtype is None:
        raise place.refuse("has voxels of a type that is not read", "save it as int16 or float32", "voxel-type")
    is_itk_4d = fields.get("space dimension") == "4"  # how ITK writes LPS with a fourth axis
    if fields.get("space", "").lower() not in NRRD_SPACES and not is_itk_4d:
        raise place.lacks("directions (space: left-posterior-superior, or another of three axes)")
    if "space directions" not in fields:
        raise place.lacks("voxel size (space directions)")
    vectors = [part.strip() for part in fields["space directions"].replace("(", " (").split(" (") if part.strip()]
    spatial = [vector.rstrip(") ").lstrip("( ") for vector in vectors if "none" not in vector.lower()]
    for vector in spatial:
        values = _floats(vector.replace(")", " ").replace(",", " "))
        place.check_numbers("space directions", values)
        if len(values) not in (3, 4) or not any(values):
            raise place.refuse("has space directions that are no vectors", "export it again")
    if "space origin" in fields:
        place.check_numbers("space origin", _floats(fields["space origin"].strip("()").replace(",", " ")))
    encoding = fields.get("encoding", "").lower()
    named = fields.get("data file", fields.get("datafile"))
    data_file = None if named is None else place.file_beside(path, named)
    is_compressed = encoding in ("gzip", "gz", "bzip2", "bz2")
    if encoding in ("bzip2", "bz2"):
        raise place.refuse("is compressed with bzip2, which is not read", "save it with gzip", "format")
    item_bytes = 1 if encoding in ("ascii", "text", "txt", "hex") else np.dtype(dtype).itemsize
    refuse_impossible_size(data_file or path, shape, item_bytes, case, kind, is_compressed=is_compressed)
    if is_compressed and not any(int(fields.get(key, "0")) for key in SKIPS):
        begin = re.search(rb"\r?\n\r?\n", start) if data_file is None else None
        check_packed(data_file or path, begin.end() if begin else 0, math.prod(shape) * np.dtype(dtype).itemsize)
    quoted = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    return TextHeader(data_file, place.unit_mm(quoted[:3] or [""]))  # a fourth one is of time


@dataclass(frozen=True)
class _Refusal:
    case: str
    kind: str

    def refuse(self, found: str, remedy: str, code: str = "header") -> IntakeError:
        return IntakeError(Fault(self.case, f"{self.kind} {found}", remedy, code))

    def lacks(self, what: str) -> IntakeError:
        return self.refuse(f"has no {what} in its header", "export it again with its geometry", "no-geometry")

    def check_numbers(self, field: str, values: Sequence[float], *, least: float = -math.inf) -> None:
        if not values:
            raise self.lacks(field)
        if not all(math.isfinite(value) and value > least for value in values):
            raise self.refuse(f"has an impossible {field} in its header", "correct the header or export it again")

    def unit_mm(self, units: Sequence[str]) -> float:
        """The unit of lengths, in mm, of the names of the axes' units."""
        known = {1.0 if unit.strip().lower() in UNSTATED else UNITS_MM.get(unit.strip().lower()) for unit in units}
        (unit,) = known if len(known) == 1 else (None,)
        if unit is None:
            problem = "has lengths in a unit that is not known, or in several"
            raise self.refuse(problem, "save it in mm", "unit")
        return unit

    def file_beside(self, path: Path, name: str) -> Path:
        """The file of this name in the folder of `path`; no other file is ever opened, and no pattern of names."""
        plain = name and Path(name).name == name and name not in (".", "..") and "%" not in name and " " not in name
        if not plain or name.upper() == "LIST":
            raise self.refuse("names no plain file beside it for its voxels", "save it again in one file", "voxel-file")
        file = path.with_name(name)
        if not file.is_file():
            raise self.refuse("names a file for its voxels that is not beside it", "copy both files", "voxel-file")
        if file.is_symlink():
            raise self.refuse("has its voxels behind a link", "copy both files into one folder", "voxel-file")
        return file


def _integers(fields: dict[str, str], key: str) -> list[int]:
    values = [int(word) for word in fields[key].split()] if key in fields else []
    if not values or min(values) < 1:
        raise ValueError(f"no {key}")
    return values


def _numbers(fields: dict[str, str], key: str) -> list[float] | None:
    return _floats(fields[key]) if key in fields else None


def _floats(text: str) -> list[float]:
    return [float(word) for word in text.split()]
