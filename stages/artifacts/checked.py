"""Files that a stopped run resumes from: their content, and behind it a digest of the content.

What is cut, changed or has no digest is made again, and a line says so: none of it is ever used. Readers of zips (and
so of .npz) pass over the bytes behind a zip's end.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from stages.artifacts.files import atomic_write_bytes, fsync, is_passing, rename
from stages.progress import say

MARK = b"\nlrls-sha256:"
LENGTH = len(MARK) + 64
_PIECE = 2**20


def write_checked(path: Path, data: bytes | memoryview) -> None:
    """Write content with its digest, in full or not at all."""
    atomic_write_bytes(path, data, MARK + hashlib.sha256(data).hexdigest().encode())


def read_checked(path: Path) -> bytes | None:
    """The content of a file of `write_checked`; None: it is missing or damaged.

    Raises:
        OSError: a network file system is away; what a stopped run left is not lost.
    """
    try:
        stored = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        if is_passing(error):
            raise
        return None
    data, end = stored[:-LENGTH], stored[-LENGTH:]
    return data if end == MARK + hashlib.sha256(data).hexdigest().encode() else None


def publish_checked(temporary: Path, path: Path) -> None:
    """Give a written file its digest and its name; for content that is written piece by piece."""
    with temporary.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256")
        file.write(MARK + digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())
    rename(temporary, path)
    fsync(path.parent)


def is_sound(path: Path, what: str) -> bool:
    """Whether a file is there and as it was written.

    Args:
        what: its content, for the line that says that it is damaged.
    """
    try:
        if not path.is_file():
            return False
        digest, left = hashlib.sha256(), path.stat().st_size - LENGTH
        with path.open("rb") as file:
            while left > 0:
                piece = file.read(min(left, _PIECE))
                if not piece:
                    break
                digest.update(piece)
                left -= len(piece)
            sound = left == 0 and file.read() == MARK + digest.hexdigest().encode()
    except OSError as error:
        if is_passing(error):
            raise
        sound = False
    if not sound:
        say_damaged(what)
    return sound


def say_damaged(what: str) -> None:
    say(f"{what}: what a stopped run left is damaged; it is made again.")


def write_record(path: Path, value: Any) -> None:
    """Write a JSON-able value as `write_checked` does."""
    write_checked(path, json.dumps(value).encode())


def read_record(path: Path, what: str) -> Any | None:
    """The value that `write_record` wrote; None: it is missing or damaged, which a line says."""
    data = read_checked(path)
    if data is not None:
        return json.loads(data)
    if path.exists():
        say_damaged(what)
    return None
