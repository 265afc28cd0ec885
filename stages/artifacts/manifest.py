"""Manifests (the content of `artifact.json`), and `Artifact`, the base class of all kinds.

A kind's `FORMAT` goes up with every change of its layout or of the meaning of its identity. Only the current format is
written and read. An artifact of an older format is still listed; the kind's command makes it again.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from stages.artifacts.digests import digest_of
from stages.artifacts.files import shown
from stages.errors import LrlsError

MANIFEST = "artifact.json"
PACKAGES = ("lrls", "torch", "monai", "numpy", "scipy", "antspyx", "SimpleITK", "h5py", "safetensors")


@dataclass(frozen=True)
class Identity:
    """Everything that an artifact's content depends on. A finished artifact with the same identity is up to date.

    Two machines that do the same work get the same identity: it holds no times, hosts or paths.
    """

    kind: str  # `KIND` of a class in `stages.artifacts.kinds`
    format_version: int
    made_by: str  # stage, e.g. "train-reg"
    config: dict[str, Any]  # the full configuration that the stage read, JSON-able
    seed: int
    round: int = 0
    inputs: dict[str, str] = field(default_factory=dict)  # role or "scan/<case>" -> content digest

    @property
    def digest(self) -> str:
        return digest_of(asdict(self))

    @property
    def outdated(self) -> bool:
        """Whether its format is older than the kind's current one."""
        return self.format_version < _kinds()[self.kind].FORMAT


@dataclass(frozen=True)
class Manifest:
    """The content of `artifact.json`."""

    identity: Identity
    digest: str  # of the content
    files: dict[str, str]  # relative path -> digest
    packages: dict[str, str]
    device: str
    wall_time_s: float  # over all sessions of a resumed stage
    created: str  # UTC, ISO 8601
    volatile: tuple[str, ...] = ()  # files that stay out of the content digest
    peak_memory_mb: float | None = None  # resident memory of the process that finished it, until then


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. Each kind is a subclass, listed in `stages.artifacts.kinds`."""

    KIND: ClassVar[str]
    FORMAT: ClassVar[int]  # the only format that is written and read
    MADE_WITH: ClassVar[str]  # the command, e.g. "lrls preprocess"
    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises LrlsError if the folder holds no finished artifact of this kind and format."""
        return cls(folder, read_manifest(folder, kind=cls))

    def damaged(self, name: str) -> LrlsError:
        """The error to raise if one of its files cannot be read."""
        return LrlsError(
            f"{shown(self.folder)}: {name} is damaged or truncated; make it again with `{self.MADE_WITH} --force`."
        )


def read_manifest(folder: Path, *, kind: type[Artifact] | None = None) -> Manifest:
    """Read `artifact.json`.

    Args:
        kind: the kind to accept; None: any.

    Raises:
        LrlsError: `artifact.json` is missing or not readable, of another kind, or of a newer or older format.
    """
    manifest = peek_manifest(folder, kind=kind)
    if manifest.identity.outdated:
        raise _outdated(folder, manifest.identity.kind, manifest.identity.format_version)
    return manifest


def peek_manifest(folder: Path, *, kind: type[Artifact] | None = None) -> Manifest:
    """As `read_manifest`, but accepts older formats too: to list artifacts, not to read their content."""
    try:
        values = json.loads((folder / MANIFEST).read_bytes())
        stored_kind, version = values["identity"]["kind"], values["identity"]["format_version"]
        expected = _kinds()[stored_kind].FORMAT if stored_kind in _kinds() else 0
        newer, older = version > expected, version < expected
    except (FileNotFoundError, NotADirectoryError):
        made_with = f"make it with `{kind.MADE_WITH}`." if kind else "name the folder of a finished one."
        missing = f"finished {kind.KIND} artifact" if kind else "finished artifact"
        raise LrlsError(f"{shown(folder)} holds no {missing} ({MANIFEST} is missing); {made_with}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise _unreadable(folder) from None
    if kind and stored_kind != kind.KIND:
        raise LrlsError(
            f"{shown(folder)} holds a {stored_kind} artifact, expected {kind.KIND}; name a folder of that kind."
        )
    if newer:
        raise LrlsError(
            f"{shown(folder)}: {stored_kind} format {version} is newer than this lrls reads ({expected or 'none'}); "
            "upgrade lrls or make it again."
        )
    try:
        identity = Identity(**values.pop("identity"))
        return Manifest(identity=identity, **{**values, "volatile": tuple(values["volatile"])})
    except (TypeError, KeyError, AttributeError):
        raise (_outdated(folder, stored_kind, version) if older else _unreadable(folder)) from None


def _outdated(folder: Path, kind: str, version: int) -> LrlsError:
    expected = _kinds()[kind]
    return LrlsError(
        f"{shown(folder)}: {kind} format {version} is older than this lrls reads ({expected.FORMAT}); "
        f"make it again with `{expected.MADE_WITH}`."
    )


def _unreadable(folder: Path) -> LrlsError:
    return LrlsError(f"{shown(folder)}: {MANIFEST} is not readable; delete that folder and make it again.")


def _kinds() -> Mapping[str, type[Artifact]]:
    from stages.artifacts.kinds import KINDS  # which imports this module

    return KINDS


def content_digest(identity: Identity, files: Mapping[str, str]) -> str:
    """Digest of an artifact's identity and files.

    Args:
        files: relative path -> digest.
    """
    return digest_of({"identity": identity.digest, "files": files})


def package_versions() -> dict[str, str]:
    """Versions of those `PACKAGES` that are installed."""
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process so far; None: unknown on this system."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
