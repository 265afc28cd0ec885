"""HDF5 files, of strangers too: opened for reading only, and only as what lrls writes.

HDF5 can read other files of the machine (external links and storage, virtual datasets), run filters and claim shapes
that no memory holds. A file with any of this is refused before a value is read.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts.files import is_passing, open_regular, shown, stamp
from stages.errors import LrlsError

if TYPE_CHECKING:
    import h5py
    import numpy as np

_checked: set[tuple[int, ...]] = set()
DEEPEST = 4  # groups in groups
MOST_ITEMS = 100_000
FILTERS = {1, 2, 3, 32000}  # of the HDF Group: deflate, shuffle, Fletcher's checksum; LZF, which comes with h5py
HEAP = b"GCOL\1\0\0\0"  # begins a heap; its size in 8 bytes follows
MOST_EXPANSION = 100  # of filtered values; lrls itself filters none


class DamagedH5(Exception):
    """An HDF5 file that is not as lrls writes it; the message says why."""


def open_h5(path: Path) -> h5py.File:
    """Open for reading.

    Raises:
        LrlsError: another program has it open for writing, or it cannot be read.
        DamagedH5: it is damaged, or holds what lrls does not write.
    """
    try:
        with open_regular(path) as raw:
            key, num_bytes = stamp(raw.fileno()), path.stat().st_size
        file = _opened(path)
    except BlockingIOError:
        raise open_elsewhere(path) from None
    except FileNotFoundError:
        raise DamagedH5("is missing") from None
    except PermissionError:
        raise LrlsError(f"{shown(path)} cannot be read (permission denied); correct its permissions.") from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and is_passing(error):
            raise LrlsError(f"{shown(path)} cannot be read ({error.strerror}); run the same command again.") from None
        raise DamagedH5("is damaged or truncated") from error
    if key in _checked:
        return file
    try:
        _check(file, num_bytes)
        _check_heaps(path, num_bytes)
    except DamagedH5:
        file.close()
        raise
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        struct.error,
    ) as error:  # what h5py raises for damaged files
        file.close()
        raise DamagedH5("is damaged or truncated") from error
    if key:
        _checked.add(key)
    return file


def _opened(path: Path) -> h5py.File:
    """HDF5 locks what it reads, too, so that nobody writes. Where the file system has no locks, it is read without:
    finished files never change, and their digests say so."""
    import h5py

    try:
        return h5py.File(path, "r")
    except BlockingIOError:
        raise
    except OSError as error:
        if "unable to lock file" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)


@contextmanager
def new_h5(path: Path) -> Iterator[h5py.File]:
    """Write a file.

    HDF5 ends the process where it closes a file and the system refuses its last writes, as on a full disk. It is
    spared that, and the first error is raised instead.

    Raises:
        OSError: the file cannot be written.
    """
    import h5py

    with _Spared(path) as spared:
        with h5py.File(spared, "w") as file:
            try:
                yield file
            finally:
                spared.closing = True
        if spared.error:
            raise spared.error


class _Spared(io.FileIO):
    """A file that raises its first error once; when it is being closed, not even that."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None
        self.closing = False

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        self._spared(lambda: self._write_all(left))
        return len(left)

    def truncate(self, size: int | None = None) -> int:
        self._spared(lambda: super(_Spared, self).truncate(size))
        return size or 0

    def _write_all(self, left: memoryview) -> None:
        while left:
            left = left[super().write(left) :]

    def _spared(self, work: Callable[[], object]) -> None:
        if self.error:
            return
        try:
            work()
        except OSError as error:
            self.error = error
            if not self.closing:
                raise


def open_elsewhere(path: Path) -> LrlsError:
    return LrlsError(
        f"{shown(path)} is open for writing in another program; close it there and run the same command again."
    )


def is_locked(path: Path) -> bool:
    """Whether a program that may write into the file has it open; HDF5 locks files while it has them open."""
    try:
        import fcntl
    except ImportError:  # Windows has none
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False


def _check(file: h5py.File, num_bytes: int) -> None:
    import h5py

    waiting: list[tuple[h5py.Group, int]] = [(file, 0)]
    items = 0
    while waiting:
        group, depth = waiting.pop()
        items += len(group)
        if depth > DEEPEST or items > MOST_ITEMS:
            raise DamagedH5("holds more than lrls writes")
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise DamagedH5("holds a link to another place or file, which lrls does not write")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                _check_dataset(item, num_bytes)
            else:
                raise DamagedH5("holds what lrls does not write")


def _check_heaps(path: Path, num_bytes: int) -> None:
    """Refuse a heap of texts that claims more than the file holds: HDF5 takes the memory before it looks."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(HEAP)
        while at >= 0:
            claimed = int.from_bytes(data[at + len(HEAP) : at + len(HEAP) + 8], "little")
            if claimed > num_bytes:
                raise DamagedH5("claims more texts than it holds")
            at = data.find(HEAP, at + 1)


def _check_dataset(item: h5py.Dataset, num_bytes: int) -> None:
    """Refuse values that lie in other files, need a filter, or are more than the file holds."""
    import h5py

    created = item.id.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
        raise DamagedH5("takes values from another file, which lrls does not write")
    filters = {created.get_filter(place)[0] for place in range(created.get_nfilters())}
    if not filters <= FILTERS:
        raise DamagedH5("holds values behind a filter that lrls does not have")
    if item.shape is None or (item.dtype.hasobject and not h5py.check_string_dtype(item.dtype)):
        raise DamagedH5("holds values of a type that lrls does not write")
    claimed = math.prod(item.shape) * item.id.get_type().get_size()  # of Python's integers: no overflow
    if claimed > min(item.id.get_storage_size(), num_bytes) * (MOST_EXPANSION if filters else 1):
        raise DamagedH5("claims more values than it holds")
    if item.dtype.hasobject and math.prod(item.shape):
        _check_texts(item, num_bytes)


def _check_texts(item: h5py.Dataset, num_bytes: int) -> None:
    """Refuse texts that claim to be longer than the file: HDF5 takes the memory before it looks for them.

    A text is stored as its length (4 bytes), the address of its heap (8) and its number there (4).
    """
    at = item.id.get_offset()
    if at is None:
        raise DamagedH5("holds texts in pieces, which lrls does not write")
    with Path(item.file.filename).open("rb") as file:
        file.seek(at)
        lengths = [length for length, _, _ in struct.iter_unpack("<IQI", file.read(16 * math.prod(item.shape)))]
    if max(lengths) > num_bytes:
        raise DamagedH5("claims more texts than it holds")


def holds(file: h5py.File, name: str) -> bool:
    """Whether a file has an item of a name.

    Raises:
        DamagedH5: that cannot be told.
    """
    try:
        return name in file
    except (OSError, RuntimeError, KeyError, ValueError):
        raise DamagedH5("cannot be read") from None


def dataset(file: h5py.File, name: str, kinds: str, shape: Sequence[int | None]) -> h5py.Dataset:
    """A dataset that has a type and shape.

    Args:
        name: such as "images/case".
        kinds: of its numpy type: "f" for floating point, "ui" for integers, "O" for strings.
        shape: None: any length.

    Raises:
        DamagedH5: there is none.
    """
    import h5py

    item = file[name] if holds(file, name) else None
    fits = (
        isinstance(item, h5py.Dataset)
        and item.dtype.kind in kinds
        and item.dtype.isnative  # torch takes no other order of bytes
        and len(item.shape) == len(shape)
        and all(expected in (None, found) for found, expected in zip(item.shape, shape, strict=True))
    )
    if not fits:
        raise DamagedH5("does not hold what it should")
    return item


def read(item: h5py.Dataset, index: Any = ()) -> np.ndarray:
    """Values of a dataset.

    Raises:
        DamagedH5: they cannot be read.
    """
    try:
        return item[index]
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DamagedH5("is damaged or truncated") from error
