"""Everything that a workspace holds: finished artifacts, what stopped runs left, and what cannot be read."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from stages.artifacts.draft import DRAFT, version_number
from stages.artifacts.files import shown
from stages.artifacts.manifest import MANIFEST, Manifest, peek_manifest
from stages.errors import LrlsError

WORK = ".work-"  # folder beside the versions: scans on the grid that are not in a cohort yet


@dataclass(frozen=True)
class Unfinished:
    """What a stopped run left; the same command resumes from it.

    Args:
        num_bytes: size of its files.
        age_s: since the last of them was written.
    """

    folder: Path
    num_bytes: int
    age_s: float


@dataclass(frozen=True)
class Found:
    """The content of a workspace.

    Args:
        finished: oldest first.
        unreadable: a line each.
    """

    finished: list[tuple[Path, Manifest]] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def look_through(workspace: Path) -> Found:
    """List a workspace, whatever its state."""
    found = Found()

    def closed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            where = shown(Path(error.filename)) if error.filename else shown(workspace)
            found.unreadable.append(f"{where} cannot be read ({error.strerror}); correct its permissions.")

    for place, folders, files in os.walk(workspace, onerror=closed):
        folder = Path(place)
        for name in [name for name in folders if name.startswith((DRAFT, WORK))]:
            folders.remove(name)
            found.unfinished.append(_unfinished(folder / name))
        if version_number(folder) and MANIFEST in files:
            folders.clear()
            try:
                found.finished.append((folder, peek_manifest(folder)))
            except LrlsError as error:
                found.unreadable.append(str(error))
    found.finished.sort(key=lambda entry: (entry[1].created, entry[0].parent, version_number(entry[0])))
    found.unfinished.sort(key=lambda each: each.folder)
    found.unreadable.sort()
    return found


def _unfinished(folder: Path) -> Unfinished:
    num_bytes, newest = 0, 0.0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                about = os.lstat(Path(place) / name)
            except OSError:  # a run that goes on has just renamed it
                continue
            num_bytes, newest = num_bytes + about.st_size, max(newest, about.st_mtime)
    newest = newest or folder.stat().st_mtime
    return Unfinished(folder, num_bytes, max(0.0, time.time() - newest))
