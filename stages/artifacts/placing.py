"""Results outside of the workspace, files or folders: complete or absent, and in nobody's way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.artifacts.files import fsync, is_disk_full, is_left_by_nfs, rename, shown
from stages.errors import LrlsError

Strange = Callable[[Path], str | None]
"""Why what lies at a path must not be replaced; None: lrls wrote all of it, so it may be."""


def check_place(out: Path, *, force: bool, strange: Strange, kept: Sequence[Path] = (), inside: bool = False) -> None:
    """Refuse a place before hours of work for it.

    Args:
        force: replace what is there.
        kept: folders that `out` must not be or hold.
        inside: neither may it lie in one of them.

    Raises:
        LrlsError: something else lies there, or would be lost.
    """
    real = Path(os.path.realpath(out))
    for folder in (Path(os.path.realpath(folder)) for folder in kept):
        holds, lies_in = folder.is_relative_to(real), inside and real.is_relative_to(folder)
        if holds or lies_in:
            how = "is" if folder == real else "holds" if holds else "lies in"
            raise LrlsError(f"--out {shown(out)} {how} {shown(folder)}, which is in use; choose another place.")
    if not os.path.lexists(out):
        return
    if not force:
        raise LrlsError(f"{shown(out)} exists already; choose another name, or replace it with --force.")
    try:
        reason = strange(out)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    if reason:
        raise LrlsError(f"{shown(out)} {reason}; choose another name, or remove it yourself.")


@contextmanager
def placed(out: Path, *, force: bool, strange: Strange) -> Iterator[Path]:
    """Yields where to write a file or folder; when the block ends, it is at `out`, and what it replaces is gone.

    If anything fails, what was there before still is, and nothing else is left behind.

    Raises:
        LrlsError: `out` cannot be written, the disk is full, or what lies there must not be replaced.
    """
    made: list[Path] = []
    draft, before = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        for folder in reversed([out.parent, *out.parent.parents]):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        yield draft
        for path in (draft, *draft.rglob("*")):
            if not is_left_by_nfs(path):
                fsync(path)
        check_place(out, force=force, strange=strange)  # it may have come in the meantime
        if os.path.lexists(out):
            rename(out, before)
        try:
            rename(draft, out)
            fsync(out.parent)
        except OSError:  # who is told that it failed must not find it done
            if not os.path.lexists(draft):
                rename(out, draft)
            if os.path.lexists(before):
                rename(before, out)
            raise
        made.clear()
    except (OSError, RuntimeError) as error:  # ITK raises RuntimeError
        if is_disk_full(error):
            raise LrlsError(f"no room on the disk for {shown(out)}; free some, or name another place.") from error
        if not isinstance(error, OSError):
            raise
        raise LrlsError(f"--out {shown(out)} cannot be written ({error.strerror}); name another place.") from None
    finally:
        with suppress(OSError):
            _remove(draft)
            if os.path.lexists(out):
                _remove(before)
            for folder in reversed(made):
                folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
