"""An unfinished artifact: a hidden folder beside the versions, which becomes the next version when it is complete."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock, Timeout

from stages.artifacts.checked import read_record, say_damaged, write_record
from stages.artifacts.digests import file_digest
from stages.artifacts.files import atomic_write_text, fsync, is_disk_full, shown
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

DRAFT = ".draft-"  # a folder of this name and an identity is unfinished
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


@contextmanager
def new_artifact(target: Path, identity: Identity, *, volatile: tuple[str, ...] = ()) -> Iterator[Draft]:
    """Write the next version of `target`: complete if the block ends normally, absent otherwise.

    If a stopped run left a draft of the same identity, that draft is yielded again, unchanged. This always makes a new
    version; stages call `make`, which reuses a version that is up to date.

    Args:
        volatile: patterns of files that stay out of the content digest, besides `VOLATILE`.

    Raises:
        LrlsError: another process writes in `target`, it is not writable, or the disk is full.
    """
    assert identity.format_version == KINDS[identity.kind].FORMAT, (
        "artifacts are written only in their kind's current format"
    )
    with working_in(target):
        publish_complete_drafts(target)
        draft = Draft(target / f"{DRAFT}{identity.digest[:16]}")
        try:
            yield draft
        except BaseException:
            with suppress(OSError):
                draft.save_elapsed()
            raise
        _complete(draft, identity, VOLATILE + volatile)
        draft.result = _publish(draft.folder)


@contextmanager
def working_in(target: Path) -> Iterator[None]:
    """Hold `target` so that no other process writes in it.

    Raises:
        LrlsError: another process writes in `target`, it is not writable, or the disk is full.
    """
    try:
        with locked(target):
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
    for path in sorted(path for path in draft.folder.rglob("*") if path.is_file()):
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
    taken = [version_number(path) for path in target.iterdir()]
    version = target / f"v{max(taken, default=0) + 1:04d}"
    os.rename(draft, version)
    fsync(target)
    return version


def publish_complete_drafts(target: Path) -> None:
    """Rename drafts that were complete when a crash prevented the rename; one that was damaged since is unfinished."""
    for manifest in sorted(target.glob(f"{DRAFT}*/{MANIFEST}")):
        try:
            verified_manifest(manifest.parent)
        except LrlsError:
            say_damaged(shown(target))
            manifest.unlink()
        else:
            _publish(manifest.parent)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of a target; LrlsError if another process holds it or the folder is not writable."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target / ".lock", timeout=0)
        lock.acquire()
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


def version_number(version: Path) -> int:
    """The number of a version folder; 0 for anything else."""
    match = re.fullmatch(r"v(\d{4,})", version.name)
    return int(match[1]) if match else 0
