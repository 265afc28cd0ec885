"""Digests of scans' files, known without reading a file again while it is unchanged.

A file counts as unchanged while its size, time of modification and time of change (ctime, which no tool sets back) are
those of the last look, and both times lie at least `RACY_NS` before that look: a file that was being written during the
look may be written once more and keep the same times. Source: git, Documentation/technical/racy-git.txt.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from stages.artifacts.digests import digest_of
from stages.data.dicom_files import files_below
from stages.data.kept import keep, kept_folder, read_kept

RACY_NS = 2_000_000_000  # the coarsest file times: FAT's, 2 s
HEADER_BYTES = 2**16  # read of NRRD and MetaImage headers, which say where the voxels are

Stamp = tuple[int, int, int]  # size in bytes, mtime and ctime in ns


@dataclass(frozen=True)
class Content:
    """A file, or all files of a DICOM folder, at the time of a look.

    Args:
        path: of the file or folder.
        kind: the file's ending, or "dicom"; says how the bytes are read.
        digest: SHA-256 of the bytes; empty if the voxels lie in another file or were not read: then always decoded.
        stamps: of the files, in order of their names.
        num_bytes: total size of the files.
        looked_ns: time of the look.
    """

    path: Path
    kind: str
    digest: str = ""
    stamps: tuple[Stamp, ...] = ()
    num_bytes: int = 0
    looked_ns: int = 0

    def is_still_there(self) -> bool:
        """Whether the files still hold the same bytes; False if that is unknown."""
        if not self.digest:
            return False
        try:
            if tuple(stamp_of(file) for file in files_of(self.path)) != self.stamps:
                return False
            if any(is_racy(stamp, self.looked_ns) for stamp in self.stamps):
                return _digest([bytes_digest(file) for file in files_of(self.path)], self.path) == self.digest
        except OSError:
            return False
        return True


class Contents:
    """Looks at files and keeps their digests in the workspace.

    Args:
        workspace: None: nothing is digested or kept, so that everything is decoded.
    """

    def __init__(self, workspace: Path | None) -> None:
        self._folder = workspace
        self._file = kept_folder(workspace) / "files.json" if workspace else None
        self._seen: dict[str, list] = self._stored()
        self._new: dict[str, list] = {}

    def _stored(self) -> dict[str, list]:
        stored = read_kept(self._file) if self._file else None
        return stored if isinstance(stored, dict) else {}

    def look(self, path: Path) -> Content:
        """The content of a file or DICOM folder; bytes are read only if the file changed since the last look."""
        kind = "dicom" if path.is_dir() else "".join(path.suffixes[-2:] if path.name.endswith(".gz") else [path.suffix])
        looked_ns = time.time_ns()
        try:
            files = files_of(path)
            num_bytes = sum(file.stat().st_size for file in files)
            if self._folder is None or kind == ".mhd" or not files:
                return Content(path, kind, num_bytes=num_bytes)
            entries = [self._entry(file, kind) for file in files]
        except OSError:
            return Content(path, kind)  # decoding it will report the fault
        stamps = tuple((size, mtime, ctime) for size, mtime, ctime, _, _ in entries)
        digest = _digest([entry[4] for entry in entries], path) if all(entry[4] for entry in entries) else ""
        looks = [entry[3] for entry in entries]
        return Content(path, kind, digest, stamps, num_bytes, min([looked_ns, *looks]))

    def save(self) -> None:
        """Write the new looks, merged with those that other processes wrote."""
        if self._file and self._new:
            keep(self._file, self._stored() | self._new)
            self._new = {}

    def _entry(self, file: Path, kind: str) -> list:
        """[size, mtime, ctime, time of the look, digest of the bytes or "" if the voxels lie in another file]."""
        assert self._folder is not None
        name = os.path.relpath(file, self._folder)
        looked_ns = time.time_ns()
        stamp = stamp_of(file)
        known = self._seen.get(name)
        if known is not None and _is_entry(known) and tuple(known[:3]) == stamp and not is_racy(stamp, known[3]):
            return known
        digest = bytes_digest(file) if kind == "dicom" or is_self_contained(file) else ""
        entry = [*stamp, looked_ns, digest]
        if stamp_of(file) != stamp:
            return [*stamp, looked_ns, ""]  # it is being written
        self._seen[name] = self._new[name] = entry
        return entry


def files_of(path: Path) -> list[Path]:
    """A file, or the files of a DICOM folder by name."""
    return files_below(path) if path.is_dir() else [path]


def stamp_of(file: Path) -> Stamp:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_racy(stamp: Stamp, looked_ns: int) -> bool:
    return max(stamp[1:]) > looked_ns - RACY_NS


def bytes_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_self_contained(file: Path) -> bool:
    """Whether a file's own header says that its voxels are in it."""
    if file.suffix == ".nrrd":
        with file.open("rb") as stream:
            header = stream.read(HEADER_BYTES).replace(b"\r\n", b"\n").partition(b"\n\n")[0].lower()
        return b"\ndata file:" not in header and b"\ndatafile:" not in header
    if file.suffix == ".mha":
        with file.open("rb") as stream:
            _, key, value = stream.read(HEADER_BYTES).partition(b"ElementDataFile")
        return bool(key) and value.lstrip(b" \t=")[:5].upper() == b"LOCAL"
    return file.suffix != ".mhd"


def _digest(digests: list[str], path: Path) -> str:
    """A single file's own digest. A DICOM folder's covers the file names too: slices may be ordered by name."""
    if not path.is_dir():
        return digests[0]
    return digest_of([[file.name, digest] for file, digest in zip(files_of(path), digests, strict=True)])


def _is_entry(known: object) -> bool:
    return isinstance(known, list) and len(known) == 5 and all(isinstance(number, int) for number in known[:4])
