"""An unfinished artifact: a hidden folder beside the versions, which becomes the next version when it is complete."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock, Timeout

from stages.artifacts.checked import read_record, say_damaged, write_record
from stages.artifacts.digests import file_digest
from stages.artifacts.files import atomic_write_text, fsync, is_disk_full, is_left_by_nfs, plain, rename, shown
from stages.artifacts.intact import bytes_digest
from stages.artifacts.kinds import KINDS
from stages.artifacts.manifest import (
    MANIFEST,
    Identity,
    Manifest,
    content_digest,
    package_versions,
    peak_memory_mb,
    sealed,
    verified_manifest,
)
from stages.errors import LrlsError
from stages.progress import say

DRAFT = ".draft-"  # a folder of this name and an identity is unfinished
SILENT_S = 5.0  # who waits longer for another process says so
VOLATILE = ("log.jsonl", "*.png")  # fnmatch patterns of the path in the folder


@dataclass
class Draft:
    """An unfinished artifact."""

    folder: Path
    device: str = field(init=False, default="cpu")  # that the work runs on; for the manifest
    scan_s: float | None = field(init=False, default=None)  # that an answer took; for the manifest
    result: Path = field(init=False)  # the finished version, once the `with` block has ended
    _earlier_s: float = field(init=False, repr=False)
    _started: float = field(init=False, repr=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.resume.mkdir(parents=True, exist_ok=True)
        self._earlier_s = read_record(self.resume / "wall_time_s", "the time that earlier runs took") or 0.0

    @property
    def resume(self) -> Path:
        """Folder for training state and progress; removed when the artifact is finished."""
        return self.folder / "resume"

    def elapsed_s(self) -> float:
        """Wall time of this session and all earlier ones."""
        return self._earlier_s + time.monotonic() - self._started

    def add_elapsed(self, seconds: float) -> None:
        """Count work done before the draft existed. A resumed draft may include it already: the larger time counts."""
        self._earlier_s = max(self._earlier_s, seconds)

    def save_elapsed(self) -> None:
        """Write the wall time so far. Call this with every checkpoint: a killed process cannot write it."""
        write_record(self.resume / "wall_time_s", round(self.elapsed_s(), 3))


class MadeMeanwhile(Exception):
    """Another process has made the artifact, while this one waited for it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


@contextmanager
def new_artifact(
    target: Path, identity: Identity, *, volatile: tuple[str, ...] = (), unless: Callable[[], Path | None] | None = None
) -> Iterator[Draft]:
    """Write the next version of `target`: complete if the block ends normally, absent otherwise.

    If a stopped run left a draft of the same identity, that draft is yielded again, unchanged. This always makes a new
    version; stages call `make`, which reuses a version that is up to date.

    Args:
        volatile: patterns of files that stay out of the content digest, besides `VOLATILE`.
        unless: looks for a finished version, once no other process can make one.

    Raises:
        MadeMeanwhile: `unless` found one.
        LrlsError: another process makes the same, `target` is not writable, or the disk is full.
    """
    assert identity.format_version == KINDS[identity.kind].FORMAT, (
        "artifacts are written only in their kind's current format"
    )
    with working_in(target, identity):
        if unless and (done := unless()):
            raise MadeMeanwhile(done)
        publish_complete_drafts(target)
        folder = target / f"{DRAFT}{identity.digest[:16]}"
        _publish_if_complete(folder)
        draft = Draft(folder)
        try:
            yield draft
        except BaseException:
            with suppress(OSError):
                draft.save_elapsed()
            raise
        _complete(draft, identity, VOLATILE + volatile)
        draft.result = _publish(draft.folder)


@contextmanager
def working_in(target: Path, identity: Identity | None = None) -> Iterator[None]:
    """Hold `target`, or its draft of an identity, so that no other process writes there.

    Runs with other seeds or settings have drafts of their own, and may be made at the same time.

    Raises:
        LrlsError: another process holds it, `target` is not writable, or the disk is full.
    """
    try:
        with locked(target, identity.digest[:16] if identity else None):
            yield
    except LrlsError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise LrlsError(
                f"no room on the disk for {shown(target)}; free some and run the same command again: it resumes."
            ) from error
        raise


def _complete(draft: Draft, identity: Identity, volatile: tuple[str, ...]) -> None:
    """Write `artifact.json`. The draft is then a finished artifact that only has to be renamed."""
    for leftover in draft.folder.rglob(".*.tmp"):  # left by atomic writes that were killed
        leftover.unlink()
    files, raw, left_out = dict[str, str](), dict[str, str](), list[str]()
    for path in sorted(path for path in draft.folder.rglob("*") if path.is_file() and not is_left_by_nfs(path)):
        name = path.relative_to(draft.folder).as_posix()
        if name.startswith("resume/"):
            continue
        fsync(path)
        if not any(fnmatchcase(name, pattern) for pattern in volatile):
            files[name] = file_digest(path)
            raw |= {name: bytes_digest(path)} if path.suffix == ".h5" else {}
        else:
            left_out.append(name)
    for folder in (path for path in draft.folder.rglob("*") if path.is_dir()):
        fsync(folder)
    manifest = Manifest(
        identity=identity,
        digest=content_digest(identity, files),
        files=files,
        packages=package_versions(),
        device=draft.device,
        wall_time_s=round(draft.elapsed_s(), 3),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        volatile=tuple(left_out),
        peak_memory_mb=peak_memory_mb(),
        scan_s=draft.scan_s,
        raw=raw,
    )
    atomic_write_text(draft.folder / MANIFEST, sealed(manifest))


def _publish(draft: Path) -> Path:
    """Make a complete draft the next version. Its resume/ is deleted only now, when it is no longer needed."""
    shutil.rmtree(draft / "resume", ignore_errors=True)
    target = draft.parent
    number = max((version_number(path) for path in target.iterdir()), default=0) + 1
    while True:
        version = target / f"v{number:04d}"
        try:
            rename(draft, version)  # over no version: a folder that is not empty is not replaced
            break
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES) or not version.exists():
                raise
            number += 1  # another process has just taken it
    fsync(target)
    return version


def publish_complete_drafts(target: Path) -> None:
    """Rename drafts that were complete when a crash prevented the rename; what a process still holds is left to it."""
    for manifest in sorted(target.glob(f"{DRAFT}*/{MANIFEST}")):
        with suppress(LrlsError), locked(target, manifest.parent.name.removeprefix(DRAFT), wait_s=0.0):
            _publish_if_complete(manifest.parent)


def _publish_if_complete(draft: Path) -> None:
    """One that was damaged since is unfinished."""
    if not (draft / MANIFEST).is_file():
        return
    try:
        verified_manifest(draft)
    except LrlsError:
        say_damaged(shown(draft.parent))
        (draft / MANIFEST).unlink()
    else:
        _publish(draft)


@contextmanager
def locked(target: Path, name: str | None = None, *, wait_s: float | None = None) -> Iterator[None]:
    """Hold the lock of a target, or of one of its drafts.

    The lock is freed with the process, whatever ends it. Its file stays: to delete a file that others may have open
    would give them a lock of their own.

    Args:
        name: of the draft.
        wait_s: for another process that holds it; None: what `LRLS_WAIT_S` says, or 0.

    Raises:
        LrlsError: another process holds it, or the folder is not writable.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        file = target / (f".lock-{name}" if name else ".lock")
        lock, wait_s = FileLock(file), _wait_s() if wait_s is None else wait_s
        try:
            lock.acquire(timeout=min(wait_s, SILENT_S))
        except Timeout:
            if wait_s <= SILENT_S:
                raise
            say(f"waiting for another lrls process that writes in {shown(target)}")
            lock.acquire(timeout=wait_s - SILENT_S, poll_interval=1.0)
    except Timeout:
        raise LrlsError(f"another lrls process is writing in {shown(target)}; wait for it or stop it.") from None
    except OSError as error:
        if is_disk_full(error):
            raise
        raise LrlsError(f"{shown(target)} cannot be written to ({error.strerror}); set another workspace.") from None
    try:
        yield
    finally:
        lock.release()


def _wait_s() -> float:
    given = os.environ.get("LRLS_WAIT_S", "0")
    if not re.fullmatch(r"[0-9]{1,9}", given):
        raise LrlsError(f"LRLS_WAIT_S: found {plain(given)}, expected a number of seconds; correct it, or unset it.")
    return float(given)


def version_number(version: Path) -> int:
    """The number of a version folder; 0 for anything else."""
    match = re.fullmatch(r"v(\d{4,})", version.name)
    return int(match[1]) if match else 0
