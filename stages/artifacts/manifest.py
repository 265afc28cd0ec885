"""Manifests: what `artifact.json` says of an artifact, and the class that every kind of artifact is.

A kind's `FORMAT` goes up with every change of its layout or of what its identity means. Only that format is written and
read; an artifact of an older one is still listed, and made again by the command that the kind names.
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
    """What an artifact is: one with the same identity is up to date.

    Holds nothing that differs between two machines which do the same work: no times, hosts or paths.
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
        """Whether its format is older than the one that is read."""
        return self.format_version < _kinds()[self.kind].FORMAT


@dataclass(frozen=True)
class Manifest:
    """What `artifact.json` says."""

    identity: Identity
    digest: str  # of the content
    files: dict[str, str]  # relative path -> digest
    packages: dict[str, str]
    device: str
    wall_time_s: float  # over all sessions of a resumed stage
    created: str  # UTC, ISO 8601
    volatile: tuple[str, ...] = ()  # files that stay out of the content digest
    peak_memory_mb: float | None = None  # resident, of the process that finished it, up to then


@dataclass(frozen=True)
class Artifact:
    """A finished artifact; each kind is a subclass in a file of its own, listed in `stages.artifacts.kinds`."""

    KIND: ClassVar[str]
    FORMAT: ClassVar[int]  # the only one that is written and read
    MADE_WITH: ClassVar[str]  # command that makes one, e.g. "lrls preprocess"
    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises LrlsError if the folder holds no finished artifact of this kind and format."""
        return cls(folder, read_manifest(folder, kind=cls))

    def damaged(self, name: str) -> LrlsError:
        """What to raise where one of its files cannot be read."""
        return LrlsError(
            f"{shown(self.folder)}: {name} is damaged or truncated; make it again with `{self.MADE_WITH} --force`."
        )


def read_manifest(folder: Path, *, kind: type[Artifact] | None = None) -> Manifest:
    """Read `artifact.json`.

    Args:
        kind: the only one to accept; none: any.

    Raises:
        LrlsError: there is none, it is not readable, of another kind than `kind`, or of a newer or an older format.
    """
    manifest = peek_manifest(folder, kind=kind)
    if manifest.identity.outdated:
        raise _outdated(folder, manifest.identity.kind, manifest.identity.format_version)
    return manifest


def peek_manifest(folder: Path, *, kind: type[Artifact] | None = None) -> Manifest:
    """As `read_manifest`, of an older format too: for saying what there is, not for reading what it holds."""
    try:
        values = json.loads((folder / MANIFEST).read_bytes())
        found, version = values["identity"]["kind"], values["identity"]["format_version"]
        expected = _kinds()[found].FORMAT if found in _kinds() else 0
        newer, older = version > expected, version < expected
    except (FileNotFoundError, NotADirectoryError):
        made_with = f"make it with `{kind.MADE_WITH}`." if kind else "name the folder of a finished one."
        what = f"finished {kind.KIND} artifact" if kind else "finished artifact"
        raise LrlsError(f"{shown(folder)} holds no {what} ({MANIFEST} is missing); {made_with}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise _unreadable(folder) from None
    if kind and found != kind.KIND:
        raise LrlsError(f"{shown(folder)} holds a {found} artifact, expected {kind.KIND}; name a folder of that kind.")
    if newer:
        raise LrlsError(
            f"{shown(folder)}: {found} format {version} is newer than this lrls reads ({expected or 'none'}); "
            "upgrade lrls or make it again."
        )
    try:
        identity = Identity(**values.pop("identity"))
        return Manifest(identity=identity, **{**values, "volatile": tuple(values["volatile"])})
    except (TypeError, KeyError, AttributeError):
        raise (_outdated(folder, found, version) if older else _unreadable(folder)) from None


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
    """Of what an artifact is and holds.

    Args:
        files: relative path -> digest.
    """
    return digest_of({"identity": identity.digest, "files": files})


def package_versions() -> dict[str, str]:
    """Of those of `PACKAGES` that are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def peak_memory_mb() -> float | None:
    """Resident memory of this process, at its peak so far; None: the system does not say."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
