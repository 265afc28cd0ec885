"""Files under neutral names.

ITK guesses formats and files from names: asked for `A.nii.gz` it may read `A.nii`, a case called `p01.img` gets another
writer, and `%d` stands for a number. It is therefore only ever given names that are chosen here.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import LrlsError

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def ending_of(path: Path) -> str:
    """Which of `SUFFIXES` a name ends with, in capital letters too; empty: none."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def files_named(folder: Path, name: str) -> list[Path]:
    """The files of a name with one of the endings that are read, in small or capital letters."""
    endings = [ending for suffix in SUFFIXES for ending in (suffix, suffix.upper())]
    paths = [path for ending in endings if (path := folder / f"{name}{ending}").is_file()]
    return [path for k, path in enumerate(paths) if not any(path.samefile(other) for other in paths[:k])]


@contextmanager
def under_neutral_name(path: Path, data_file: Path | None = None) -> Iterator[Path]:
    """A file as `scan` with its ending, alone in a folder that is deleted afterwards.

    Args:
        data_file: a second file that the first one names; it lies beside it under its own name.
    """
    with temporary_folder() as folder:
        neutral = folder / f"scan{ending_of(path)}"
        for source, target in ((path, neutral), *([(data_file, folder / data_file.name)] if data_file else [])):
            linked(source, target)
        yield neutral


def linked(source: Path, target: Path) -> Path:
    """Make a file appear under another name, `target`, and return that."""
    try:
        os.symlink(source.resolve(), target)
    except (OSError, NotImplementedError):  # Windows lets few users make links
        shutil.copyfile(source, target)
    return target


@contextmanager
def muted() -> Iterator[None]:
    """Inside, what C++ libraries print about a damaged file goes nowhere: the one line on it is ours.

    MetaIO prints parts of headers, ITK has no switch for it.
    """
    try:
        shown, nowhere = [os.dup(stream) for stream in (1, 2)], os.open(os.devnull, os.O_WRONLY)
    except OSError:  # closed: nothing is shown anyway
        yield
        return
    try:
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, own in zip((1, 2), shown, strict=True):
            os.dup2(own, stream)
        for descriptor in (*shown, nowhere):
            os.close(descriptor)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of our own for temporary files.

    Raises:
        LrlsError: none can be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="lrls-", ignore_cleanup_errors=True)
    except OSError:
        raise LrlsError("no folder for temporary files can be written to; set TMPDIR to one with free space.") from None
    with folder as name:
        yield Path(name)
