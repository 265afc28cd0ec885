"""Atomic writes, detection of full disks, and paths as users write them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file in full or not at all, even if the process is killed."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename, error.filename2 = str(path), None  # users know this name
        raise
    fsync(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write text as `atomic_write_bytes` does, in UTF-8."""
    atomic_write_bytes(path, text.encode())


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_unreadable(folder: Path) -> OSError | None:
    """Why a folder, or one below it, cannot be listed; None: all can, or there is none."""
    refused: list[OSError] = []
    for _ in os.walk(folder, onerror=refused.append):
        if refused:
            break
    return next((error for error in refused if not isinstance(error, FileNotFoundError)), None)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is a full disk; h5py and torch often keep only the message."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if re.search(r"No space left on device|Disk quota exceeded|errno = 28\b", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def shown(path: Path) -> str:
    """A path as users write it: relative if it lies below the working folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
