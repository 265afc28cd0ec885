"""Whether files are as they were written. Digests are remembered while a command runs, so none is computed twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from stages.artifacts.digests import file_digest
from stages.artifacts.files import is_passing, open_regular, plain, shown, stamp
from stages.artifacts.h5 import DamagedH5, is_locked, open_elsewhere
from stages.errors import LrlsError

_known: dict[tuple[int, ...], str] = {}


def bytes_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: it is missing, no file, or cannot be read.
    """
    with open_regular(path) as file:
        key = stamp(file.fileno())
        if key in _known:
            return _known[key]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if key:
        _known[key] = digest
    return digest


def verify_files(folder: Path, files: Mapping[str, str], raw: Mapping[str, str], remedy: str) -> None:
    """Compare files with their digests.

    Args:
        files: relative path -> `file_digest`.
        raw: of HDF5 files, whose `file_digest` is one of their content: relative path -> digest of their bytes. Only
            what was written by an earlier lrls lacks it.
        remedy: what to do.

    Raises:
        LrlsError: a file changed, is missing or cannot be read.
    """
    for name, digest in files.items():
        path, told = folder / name, f"{shown(folder)}: {plain(name)}"
        try:
            if name in raw:
                unchanged = bytes_digest(path) == raw[name]
            elif path.suffix == ".h5":
                unchanged = file_digest(path) == digest
            else:
                unchanged = bytes_digest(path) == digest
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise LrlsError(f"{told} is missing; {remedy}") from None
        except OSError as error:
            what_to_do = "run the same command again." if is_passing(error) else remedy
            raise LrlsError(f"{told} cannot be read ({error.strerror or 'damaged'}); {what_to_do}") from None
        except DamagedH5 as error:
            raise LrlsError(f"{told} {error}; {remedy}") from None
        except (RuntimeError, KeyError, ValueError):  # h5py raises these for damaged files
            unchanged = False
        if not unchanged and path.suffix == ".h5" and is_locked(path):
            raise open_elsewhere(path)  # which alters its bytes until it is closed
        if not unchanged:
            raise LrlsError(f"{told} changed since it was written; {remedy}")
