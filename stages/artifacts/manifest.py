"""Manifests (the content of `artifact.json`), and `Artifact`, the base class of all kinds.

A kind's `FORMAT` goes up with every change of its layout or of the meaning of its identity. Only the current format is
written and read. An artifact of an older format is still listed; the kind's command makes it again.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from stages.artifacts.digests import digest_of
from stages.artifacts.files import is_passing, open_regular, plain, shown
from stages.artifacts.intact import verify_files
from stages.errors import LrlsError

MANIFEST = "artifact.json"
SEAL = "seal"  # key in `artifact.json`: digest of everything else in it
MOST_BYTES = 64 * 2**20  # of a JSON file
MOST_NUMBER = 10**6  # of a format or round
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
    scan_s: float | None = None  # of scores: wall time of an answer, mean over the scans
    raw: dict[str, str] = field(default_factory=dict)  # HDF5 file -> digest of its bytes; `files` has its content's


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
        """Open an artifact for its content: all of its files are verified.

        Raises:
            LrlsError: the folder holds no finished artifact of this kind and format, or a file changed.
        """
        return cls(folder, verified_manifest(folder, kind=cls))

    def damaged(self, name: str) -> LrlsError:
        """The error to raise if one of its files cannot be read."""
        return damage(self.folder, name, self.MADE_WITH)

    def path(self, name: str) -> Path:
        """One of its files, by its name in the manifest: no other file of the machine is read in its place.

        Raises:
            LrlsError: it has no such file.
        """
        if name not in self.manifest.files:
            raise self.damaged(name)
        return self.folder / name

    def read_json(self, name: str) -> Any:
        """The value in one of its files.

        Raises:
            LrlsError: the file cannot be read.
        """
        try:
            return parsed(self.path(name))
        except UNREADABLE:
            raise self.damaged(name) from None


def damage(folder: Path, name: str, made_with: str) -> LrlsError:
    return LrlsError(
        f"{shown(folder)}: {plain(name)} is damaged or truncated; make it again with `{made_with} --force`."
    )


UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError)
"""What reading a damaged JSON file and looking at its values may raise."""


def parsed(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, or is huge.
    """
    with open_regular(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError("too large")
    return json.loads(data)


def read_manifest(folder: Path, *, kind: type[Artifact] | None = None) -> Manifest:
    """Read `artifact.json`.

    Args:
        kind: the kind to accept; None: any.

    Raises:
        LrlsError: `artifact.json` is missing, damaged, of another kind, or of a newer or older format.
    """
    manifest = peek_manifest(folder, kind=kind)
    if manifest.identity.outdated:
        raise _outdated(folder, manifest.identity.kind, manifest.identity.format_version)
    return manifest


def verified_manifest(folder: Path, *, kind: type[Artifact] | None = None) -> Manifest:
    """As `read_manifest`; all files are as they were written.

    Raises:
        LrlsError: also if a file changed or is missing.
    """
    manifest = read_manifest(folder, kind=kind)
    made_with = _kinds()[manifest.identity.kind].MADE_WITH
    verify_files(folder, manifest.files, manifest.raw, f"make it again with `{made_with} --force`.")
    return manifest


def peek_manifest(folder: Path, *, kind: type[Artifact] | None = None) -> Manifest:
    """As `read_manifest`, but accepts older formats too: to list artifacts, not to read their content."""
    try:
        values = parsed(folder / MANIFEST)
        stored_kind, version = values["identity"]["kind"], values["identity"]["format_version"]
        if not _is_int(version) or abs(version) > MOST_NUMBER or not isinstance(stored_kind, str):
            raise TypeError
        expected = _kinds()[stored_kind].FORMAT if stored_kind in _kinds() else 0
        newer, older = version > expected or not expected, version < expected
    except (FileNotFoundError, NotADirectoryError):
        made_with = f"make it with `{kind.MADE_WITH}`." if kind else "name the folder of a finished one."
        missing = f"finished {kind.KIND} artifact" if kind else "finished artifact"
        raise LrlsError(f"{shown(folder)} holds no {missing} ({MANIFEST} is missing); {made_with}") from None
    except PermissionError:
        raise LrlsError(f"{shown(folder)}: {MANIFEST} cannot be read; correct its permissions.") from None
    except UNREADABLE as error:
        if isinstance(error, OSError) and is_passing(error):
            why = f"{MANIFEST} cannot be read ({error.strerror})"
            raise LrlsError(f"{shown(folder)}: {why}; run the same command again.") from None
        raise _unreadable(folder) from None
    told = plain(stored_kind, most=40)
    if kind and stored_kind != kind.KIND:
        raise LrlsError(f"{shown(folder)} holds a {told} artifact, expected {kind.KIND}; name a folder of that kind.")
    if newer:
        raise LrlsError(
            f"{shown(folder)}: {told} format {version} is newer than this lrls reads ({expected or 'none'}); "
            "upgrade lrls or make it again."
        )
    try:
        seal = values.pop(SEAL, None)
        if seal is not None and seal != digest_of(values):
            raise _changed(folder)
        manifest = _manifest_of(values)
    except UNREADABLE:
        raise (_outdated(folder, stored_kind, version) if older else _unreadable(folder)) from None
    # Before there were seals, the digest was all that told of a change.
    if not older and manifest.digest != content_digest(manifest.identity, manifest.files):
        raise _changed(folder)
    return manifest


def _manifest_of(values: dict[str, Any]) -> Manifest:
    """Raises one of `UNREADABLE` unless every value has its type and no text can mislead a terminal or a path."""
    identity = Identity(**values["identity"])
    manifest = Manifest(**{**values, "identity": identity, "volatile": tuple(values["volatile"])})
    texts = (identity.made_by, manifest.device, manifest.created, *manifest.packages.values(), *manifest.packages)
    digests = (manifest.digest, *manifest.files.values(), *manifest.raw.values())
    assert identity.digest  # raises ValueError for numbers that are none
    sound = (
        all(isinstance(text, str) and text.isprintable() for text in (*texts, *identity.inputs.values()))
        and all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
        and all(_is_inside(name) for name in (*manifest.files, *manifest.raw, *manifest.volatile))
        and all(role.isprintable() for role in identity.inputs)
        and isinstance(identity.config, dict)
        and _is_int(identity.seed)
        and _is_int(identity.round)
        and 0 <= identity.round <= MOST_NUMBER
        and _is_amount(manifest.wall_time_s)
        and all(amount is None or _is_amount(amount) for amount in (manifest.peak_memory_mb, manifest.scan_s))
    )
    if not sound:
        raise ValueError
    return manifest


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_amount(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and 0 <= value < math.inf


def _is_inside(name: str) -> bool:
    """Whether the name of a file leads nowhere else."""
    return name.isprintable() and "\\" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def sealed(manifest: Manifest) -> str:
    """The content of `artifact.json`."""
    values = asdict(manifest)
    return json.dumps({**values, SEAL: digest_of(values)}, indent=2) + "\n"


def _outdated(folder: Path, kind: str, version: int) -> LrlsError:
    expected = _kinds()[kind]
    return LrlsError(
        f"{shown(folder)}: {kind} format {version} is older than this lrls reads ({expected.FORMAT}); "
        f"make it again with `{expected.MADE_WITH}`."
    )


def _changed(folder: Path) -> LrlsError:
    return LrlsError(f"{shown(folder)}: {MANIFEST} changed since it was written; delete that folder and make it again.")


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
