"""Atomic writes, what network file systems do otherwise, detection of full disks, and paths as users write them."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
import zlib
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

SETTLED_S = 2.0
PASSING = (errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN)
"""Errors of a network file system that say nothing of the file: its server was away, or replaced it."""
NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EISDIR, errno.ENOSYS)


def temporary_of(path: Path) -> Path:
    """Where a file lies until it is complete; its name is short, however long the file's own is."""
    return path.with_name(f".{zlib.crc32(path.name.encode(errors='surrogateescape')):08x}.tmp")


def atomic_write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file in full or not at all, even if the process is killed."""
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except OSError as error:
        with suppress(OSError):  # the server may be away for this, too
            temporary.unlink(missing_ok=True)
        error.filename, error.filename2 = str(path), None  # users know this name
        raise
    fsync(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write text as `atomic_write_bytes` does, in UTF-8."""
    atomic_write_bytes(path, text.encode())


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk; of folders, not all file systems can say it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDERS or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Rename a file, over another one if there is one, or a folder.

    On NFS a server may rename, and its answer be lost: the request is sent again, and the answer is then that nothing
    is there any more. What lies at the new name tells.

    Raises:
        OSError: it was not renamed.
    """
    before = os.lstat(old)
    try:
        (os.rename if stat.S_ISDIR(before.st_mode) else os.replace)(old, new)
    except OSError as error:
        if error.errno not in (errno.ENOENT, *PASSING):
            raise
        try:
            after = os.lstat(new)
        except OSError:
            raise error from None
        if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino):
            raise


def is_left_by_nfs(path: Path) -> bool:
    """Whether a file was deleted while it was open on NFS: it lies there under this name until it is closed."""
    return bool(re.fullmatch(r"\.nfs[0-9a-f]+", path.name))


def is_passing(error: BaseException | None) -> bool:
    """Whether a network file system was away, or a server replaced a file: the same command may read it next time."""
    return isinstance(error, OSError) and error.errno in PASSING


def is_on_network_without_locks(folder: Path) -> bool:
    """Whether locks in a folder, or where it will lie, are known to hold on this machine only."""
    place = Path(os.path.realpath(folder))
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    options, deepest = "", -1
    for _, at, _, given, *_ in (line.split(" ") for line in mounts):
        at = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), at)  # a space is \040
        if place.is_relative_to(at) and len(at) >= deepest:
            options, deepest = given, len(at)
    return bool({"nolock", "local_lock=all", "local_lock=flock", "localflock"} & set(options.split(",")))


def stamp(descriptor: int) -> tuple[int, ...] | None:
    """What changes whenever an open file's content does; None: it was written just now (times are coarse)."""
    found = os.fstat(descriptor)
    if time.time() - max(found.st_mtime, found.st_ctime) < SETTLED_S:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; a pipe or device is none, and does not make anyone wait.

    Raises:
        OSError: it is missing, no regular file, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "no regular file")
    return os.fdopen(descriptor, "rb")


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
    return plain(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path), most=4096)


def plain(text: str, *, most: int = 200) -> str:
    """Text of a stranger for a message: no control characters, and no more than `most` characters."""
    text = "".join(character if character.isprintable() else "?" for character in text[: most + 1])
    return text if len(text) <= most else f"{text[:most]}..."
