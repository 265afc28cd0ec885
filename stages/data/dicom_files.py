"""Which files of a folder are DICOM. Nothing here waits for pydicom."""

from __future__ import annotations

import os
import struct
from pathlib import Path

MAGIC = b"DICM"  # behind a preamble of 128 bytes
DIRECTORY = b"1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR


def series_in(folder: Path, *, nested: bool = True) -> list[Path]:
    """The DICOM files of a folder by name, whatever they are called; DICOMDIR and hidden files are left out.

    Args:
        nested: where the folder itself holds none, look into all folders below it.

    Returns:
        The files; empty if there are none. Files without permission and links that lead nowhere are among them if any
        other file is DICOM: nobody knows that they are no slices.
    """
    for files in (_plain_files(folder), _nested_files(folder) if nested else []):
        kinds = [(file, is_dicom(file)) for file in files]
        if any(known for _, known in kinds):
            return [file for file, known in kinds if known is not False]
    return []


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and of the folders below it, by name."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def is_dicom(path: Path) -> bool | None:
    """Whether a file is DICOM, with or without a preamble, but no DICOMDIR; None: it cannot be opened."""
    if not path.is_file():  # a pipe would wait for ever
        return None
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return None
    if head[128:132] == MAGIC:
        return DIRECTORY not in head
    return _begins_with_attributes(head)


def _begins_with_attributes(head: bytes) -> bool:
    """Whether two attributes of group 2 or 8, as every DICOM file has them, follow one another."""
    try:
        group, _, length = struct.unpack_from("<HHI", head)
        start = 8
        if head[4:6].isalpha() and head[4:6].isupper():  # a value representation: the length is shorter or follows
            (length,) = struct.unpack_from("<H", head, 6)
            if length == 0 and head[4:6] in (b"OB", b"UN", b"UT"):
                (length,) = struct.unpack_from("<I", head, 8)
                start = 12
        (next_group,) = struct.unpack_from("<H", head, start + length)
    except struct.error:
        return False
    return group in (2, 8) and next_group in (2, 8)


def _plain_files(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [entry for entry in entries if not entry.name.startswith(".") and (entry.is_file() or _leads_nowhere(entry))]


def _leads_nowhere(entry: Path) -> bool:
    return entry.is_symlink() and not entry.exists()


def _nested_files(folder: Path) -> list[Path]:
    files = []
    for parent, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        files += _plain_files(Path(parent))
    return files
