"""Zips and folders of exported models: read within bounds, written in full or not at all.

The bytes may be a stranger's. Sizes that a zip states are not believed: bytes are counted as they are inflated. Links,
pipes and devices are not followed.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from stages.artifacts.files import open_regular, plain, shown
from stages.errors import LrlsError

MODEL, WEIGHTS, IMAGES = "model.json", "weights.safetensors", "images.safetensors"
NAMES = (MODEL, WEIGHTS, IMAGES)
MOST_EXPANSION = 100  # of a file in a zip; images and weights are noisy and compress little
MOST_DIRECTORY = 2**16  # bytes of a zip's list of files
_PIECE = 2**20
_END = struct.Struct("<4s4H2LH")  # a zip's last record: number of its files, size of the list of them
BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError,
    KeyError, IndexError, TypeError, AttributeError, OverflowError,
)  # fmt: skip
"""What Python's zipfile may raise for the bytes of a stranger."""

Read = Callable[[str, int], bytes]
"""Name of a file, most bytes -> its content."""


@contextmanager
def opened(path: Path) -> Iterator[Read]:
    """Open a model's zip or folder; yields what reads its files.

    Raises:
        LrlsError: it is none, or a file is missing or larger than it may be; the message names the path.
    """
    if path.is_dir():
        yield lambda name, most: _of_folder(path, name, most)
        return
    try:
        raw = open_regular(path)
    except FileNotFoundError:
        hint = "`lrls export CONFIG --method M --out model.zip` writes one."
        raise LrlsError(f"{shown(path)}: no such model; {hint}") from None
    except OSError as error:
        raise LrlsError(f"{shown(path)} cannot be read ({error.strerror}); correct its permissions.") from None
    with raw:
        try:
            _check_directory(raw)
            file = zipfile.ZipFile(raw)
        except BROKEN:
            raise LrlsError(f"{shown(path)} is not a readable zip; copy or export it again.") from None
        with file:
            check_names(path, file)
            left = MOST_EXPANSION * os.fstat(raw.fileno()).st_size + 2**18

            def read(name: str, most: int) -> bytes:
                nonlocal left
                data = _of_zip(path, file, name, min(most, left))
                left -= len(data)
                return data

            yield read


def _check_directory(raw: BufferedReader) -> None:
    """Raises BadZipFile if a zip's list of files is larger than that of three."""
    size = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, size - 2**16 - _END.size))
    tail = raw.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise zipfile.BadZipFile
    *_, files, directory, _, _ = _END.unpack(tail[at : at + _END.size])
    if files > 2**10 or directory > MOST_DIRECTORY:
        raise zipfile.BadZipFile
    raw.seek(0)


def check_names(path: Path, file: zipfile.ZipFile) -> None:
    """Refuse a zip with anything but the three files of a model: folders, links, paths that lead elsewhere."""
    names = [info.filename for info in file.infolist()]
    for info in file.infolist():
        is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
        if info.filename not in NAMES or is_link:
            told = plain(repr(info.filename), most=80)
            raise LrlsError(f"{shown(path)} holds {told}, which no exported model has; do not use this file.")
    if len(set(names)) < len(names):
        raise LrlsError(f"{shown(path)} holds a file twice; do not use this file.")


def _of_zip(path: Path, file: zipfile.ZipFile, name: str, most: int) -> bytes:
    try:
        info = file.getinfo(name)
    except KeyError:
        raise LrlsError(f"{shown(path)} holds no {name}; copy or export it again.") from None
    if info.file_size > most or info.file_size > MOST_EXPANSION * info.compress_size + 2**16:
        raise _too_large(path, name)
    pieces, count = [], 0
    try:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile
        with file.open(info) as stream:
            while count <= most and (piece := stream.read(_PIECE)):
                pieces.append(piece)
                count += len(piece)
    except BROKEN:
        raise LrlsError(f"{shown(path)}: {name} is damaged; copy or export it again.") from None
    if count > most:
        raise _too_large(path, name)
    return b"".join(pieces)


def _of_folder(folder: Path, name: str, most: int) -> bytes:
    try:
        if stat.S_ISLNK(os.lstat(folder / name).st_mode):
            raise LrlsError(f"{shown(folder)}: {name} is a link, which no exported model has; do not use this folder.")
        with open_regular(folder / name) as file:
            data = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    except OSError:
        raise LrlsError(f"{shown(folder)} holds no readable {name}; copy or export it again.") from None
    if len(data) > most:
        raise _too_large(folder, name)
    return data


def _too_large(path: Path, name: str) -> LrlsError:
    return LrlsError(f"{shown(path)}: {name} is larger than it should be; do not use this file.")


def strange_in(out: Path) -> str | None:
    """What makes a file or folder something else than an exported model; None: it is one, or an empty folder."""
    if out.is_symlink():
        return "is a link"
    if out.is_dir():
        strange = sorted(path.name for path in out.iterdir() if path.name not in NAMES or not path.is_file())
        return f"holds {plain(strange[0])}, which no exported model has" if strange else None
    try:
        with opened(out):
            return None
    except LrlsError:
        return "is no exported model"


def write_package(draft: Path, contents: Mapping[str, bytes], *, as_zip: bool) -> None:
    """Write a model's files; equal contents are equal bytes."""
    if as_zip:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in contents.items():  # with ZipInfo's default date
                file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        return
    draft.mkdir()
    for name, data in contents.items():
        (draft / name).write_bytes(data)
