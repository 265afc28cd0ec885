"""A cache of facts about scans in the workspace: small JSON files under `<workspace>/.scans`.

    files.json                digests of files when they were last looked at (`stages.data.contents`)
    facts/<key>.json          digests, geometry, classes and faults of an image or label map (`stages.data.facts`)
    alignments/<key>.json     how a scan was aligned to a reference (`stages.data.alignments`)

A file that is missing, damaged, of another version or cannot be written costs only time. Several processes may read
and write at once: each file appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.artifacts.digests import digest_of


def kept_folder(workspace: Path) -> Path:
    return workspace / ".scans"


def read_kept(path: Path) -> Any | None:
    """The value that `keep` wrote; None: it is missing or damaged."""
    try:
        stored = json.loads(path.read_bytes())
        if stored["digest"] == digest_of(stored["value"]):
            return stored["value"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def keep(path: Path, value: Any) -> None:
    """Write a JSON-able value, in full or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps({"digest": digest_of(value), "value": value}))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
