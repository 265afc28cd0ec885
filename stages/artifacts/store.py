"""The store: how stages write, find, open and check artifacts.

An artifact is a folder `target/vNNNN` with an `artifact.json`. It is whole or absent: a stage works in a hidden draft
beside it, `artifact.json` is written last, and one rename makes the draft a version; versions are never overwritten.

    target/.lock                 held by the one process that writes here
    target/.draft-<identity>/    unfinished; its resume/ holds training state and progress and is not kept
    target/v0001/                finished

Digests are SHA-256 in hex. The *identity digest* says what was asked for (same identity: up to date); the *content
digest* says what came out, without times, hosts and logs, and is what later stages list as their input.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from stages.errors import LrlsError

if TYPE_CHECKING:
    import h5py
    import numpy as np
    import torch

# The newest format of each kind that this code reads and the only one that it writes.
FORMAT_VERSIONS = {
    "cohort": 2,
    "registration": 2,
    "generated": 1,
    "segmentation": 1,
    "scores": 1,
    "comparison": 2,
    "plan": 1,
    "suggestion": 1,
    "calibration": 2,
}
MADE_WITH = {
    "cohort": "lrls preprocess",
    "registration": "lrls train-reg",
    "generated": "lrls generate",
    "segmentation": "lrls train-seg",
    "scores": "lrls eval",
    "comparison": "lrls compare",
    "plan": "lrls run --budget",
    "suggestion": "lrls suggest-atlas",
    "calibration": "lrls calibrate",
}
MANIFEST = "artifact.json"
VOLATILE = ("log.jsonl", "*.png")  # fnmatch patterns of the path in the folder
PACKAGES = ("lrls", "torch", "monai", "numpy", "scipy", "antspyx", "SimpleITK", "h5py", "safetensors")
_SLAB_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Identity:
    """What an artifact is: one with the same identity is up to date.

    Holds nothing that differs between two machines which do the same work: no times, hosts or paths.
    """

    kind: str  # a key of FORMAT_VERSIONS
    format_version: int
    made_by: str  # stage, e.g. "train-reg"
    config: dict[str, Any]  # the full configuration that the stage read, JSON-able
    seed: int
    round: int = 0
    inputs: dict[str, str] = field(default_factory=dict)  # role or "scan/<case>" -> content digest

    @property
    def digest(self) -> str:
        return digest_of(asdict(self))


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


@dataclass
class Draft:
    """An artifact in the making."""

    folder: Path
    result: Path = field(init=False)  # the finished version, once the `with` block has ended
    _earlier_s: float = field(init=False, repr=False)
    _started: float = field(init=False, repr=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.resume.mkdir(parents=True, exist_ok=True)
        clock = self.resume / "wall_time_s"
        self._earlier_s = float(clock.read_text()) if clock.exists() else 0.0

    @property
    def resume(self) -> Path:
        """Folder for training state and progress; a finished artifact has none."""
        return self.folder / "resume"

    def elapsed_s(self) -> float:
        """Wall time of this session and the earlier ones."""
        return self._earlier_s + time.monotonic() - self._started

    def add_elapsed(self, seconds: float) -> None:
        """Count work that was done before there was a draft; a resumed draft may have counted it already."""
        self._earlier_s = max(self._earlier_s, seconds)

    def save_elapsed(self) -> None:
        """Keep the wall time so far; call it with every checkpoint, since a killed process cannot."""
        atomic_write_text(self.resume / "wall_time_s", f"{self.elapsed_s():.3f}")


@contextmanager
def new_artifact(target: Path, identity: Identity, *, device: str, volatile: tuple[str, ...] = ()) -> Iterator[Draft]:
    """Write the next version of `target`: whole when the block ends normally, absent otherwise.

    A draft of the same identity that a stopped run left behind is handed out again as it is. Ask `find_finished`
    first: this always makes a new version.

    Args:
        volatile: patterns of files that stay out of the content digest, besides `VOLATILE`.

    Raises:
        LrlsError: another process writes in `target`, it is not writable, or the disk is full.
    """
    assert identity.format_version == FORMAT_VERSIONS[identity.kind], "FORMAT_VERSIONS lists what is written"
    with working_in(target):
        _publish_complete_drafts(target)
        draft = Draft(target / f".draft-{identity.digest[:16]}")
        try:
            yield draft
        except BaseException:
            with suppress(OSError):
                draft.save_elapsed()
            raise
        _complete(draft, identity, device, VOLATILE + volatile)
        draft.result = _publish(draft.folder)


@contextmanager
def working_in(target: Path) -> Iterator[None]:
    """Be the one process that writes in `target`.

    Raises:
        LrlsError: another process writes in `target`, it is not writable, or the disk is full.
    """
    try:
        with _locked(target):
            yield
    except LrlsError:
        raise
    except Exception as error:
        if _is_disk_full(error):
            raise LrlsError(
                f"no room on the disk for {_shown(target)}; free some and run the same command again: it resumes."
            ) from error
        raise


def _complete(draft: Draft, identity: Identity, device: str, volatile: tuple[str, ...]) -> None:
    """Write `artifact.json`; from here on the draft is a finished artifact that only lacks its name."""
    for leftover in draft.folder.rglob(".*.tmp"):  # of atomic writes that were killed
        leftover.unlink()
    files, left_out = {}, []
    for path in sorted(path for path in draft.folder.rglob("*") if path.is_file()):
        name = path.relative_to(draft.folder).as_posix()
        if name.startswith("resume/"):
            continue
        _fsync(path)
        if not any(fnmatchcase(name, pattern) for pattern in volatile):
            files[name] = file_digest(path)
        else:
            left_out.append(name)
    for folder in (path for path in draft.folder.rglob("*") if path.is_dir()):
        _fsync(folder)
    manifest = Manifest(
        identity=identity,
        digest=_content_digest(identity, files),
        files=files,
        packages=_package_versions(),
        device=device,
        wall_time_s=round(draft.elapsed_s(), 3),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        volatile=tuple(left_out),
        peak_memory_mb=_peak_memory_mb(),
    )
    atomic_write_text(draft.folder / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")


def _peak_memory_mb() -> float | None:
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _publish(draft: Path) -> Path:
    """Make a complete draft the next version. Only now may what it would resume from go."""
    shutil.rmtree(draft / "resume", ignore_errors=True)
    target = draft.parent
    taken = [_number(path) for path in target.iterdir()]
    version = target / f"v{max(taken, default=0) + 1:04d}"
    os.rename(draft, version)
    _fsync(target)
    return version


def _publish_complete_drafts(target: Path) -> None:
    """Finish what a crash between writing `artifact.json` and the rename left behind."""
    for manifest in sorted(target.glob(f".draft-*/{MANIFEST}")):
        _publish(manifest.parent)


def read_manifest(folder: Path, *, kind: str | None = None) -> Manifest:
    """Read `artifact.json`.

    Raises:
        LrlsError: there is none, it is not readable, of another kind than `kind`, or of a newer format.
    """
    try:
        values = json.loads((folder / MANIFEST).read_bytes())
        found, version = values["identity"]["kind"], values["identity"]["format_version"]
        newer = version > FORMAT_VERSIONS.get(found, 0)
        if not newer:
            identity = Identity(**values.pop("identity"))
            manifest = Manifest(identity=identity, **{**values, "volatile": tuple(values["volatile"])})
    except (FileNotFoundError, NotADirectoryError):
        made_with = f"make it with `{MADE_WITH[kind]}`." if kind else "name the folder of a finished one."
        what = f"finished {kind} artifact" if kind else "finished artifact"
        raise LrlsError(f"{_shown(folder)} holds no {what} ({MANIFEST} is missing); {made_with}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise LrlsError(
            f"{_shown(folder)}: {MANIFEST} is not readable; delete that folder and make it again."
        ) from None
    if kind and found != kind:
        raise LrlsError(f"{_shown(folder)} holds a {found} artifact, expected {kind}; name a folder of that kind.")
    if newer:
        raise LrlsError(
            f"{_shown(folder)}: {found} format {version} is newer than this lrls reads "
            f"({FORMAT_VERSIONS.get(found, 'none')}); upgrade lrls or make it again."
        )
    return manifest


def versions(target: Path) -> list[Path]:
    """Finished versions, oldest first."""
    if not target.is_dir():
        return []
    return sorted((path for path in target.iterdir() if _number(path) and (path / MANIFEST).is_file()), key=_number)


def latest(
    target: Path,
    *,
    kind: str,
    made_from: Mapping[str, Manifest] | None = None,
    settings: Mapping[str, Any] | None = None,
    round: int = 0,
) -> Path:
    """The newest finished version of a round.

    Args:
        made_from: only versions with these inputs count, by role: weights of an older cohort do not fit a newer one.
        settings: only versions whose configuration has these values count: weights do not say of which network.

    Raises:
        LrlsError: there is none, or it is not of that kind.
    """
    finished = versions(target)
    if not finished:
        raise LrlsError(f"{_shown(target)} holds no finished {kind} artifact; make it with `{MADE_WITH[kind]}`.")
    wanted = {role: manifest.digest for role, manifest in (made_from or {}).items()}
    for folder in reversed(finished):
        identity = read_manifest(folder, kind=kind).identity
        if (
            identity.format_version == FORMAT_VERSIONS[kind]
            and identity.round == round
            and all(identity.inputs.get(role) == digest for role, digest in wanted.items())
            and all(identity.config.get(key) == value for key, value in (settings or {}).items())
        ):
            return folder
    of_round = f" --round {round}" if round else ""
    raise LrlsError(
        f"{_shown(target)}: no version was made from the newest {' and '.join(wanted)} with these settings; "
        f"make one with `{MADE_WITH[kind]}{of_round}`."
    )


def with_digest(target: Path, digest: str) -> Path | None:
    """The finished version with this content digest, as inputs name it; None: it is gone."""
    return next((folder for folder in versions(target) if read_manifest(folder).digest == digest), None)


def find_finished(target: Path, identity: Identity) -> Path | None:
    """The newest finished version with this identity: what is up to date."""
    if any(target.glob(f".draft-*/{MANIFEST}")):
        # Where another process holds the lock, it publishes them itself, and `new_artifact` says that it is there.
        with suppress(LrlsError), _locked(target):
            _publish_complete_drafts(target)
    for folder in reversed(versions(target)):
        if read_manifest(folder).identity.digest == identity.digest:
            return folder
    return None


def verify(folder: Path) -> None:
    """Recompute the digest of every file.

    Raises:
        LrlsError: a file changed or is missing.
    """
    manifest = read_manifest(folder)
    remedy = f"make it again with `{MADE_WITH[manifest.identity.kind]} --force`."
    if manifest.digest != _content_digest(manifest.identity, manifest.files):
        raise LrlsError(f"{_shown(folder)}: {MANIFEST} changed since it was written; {remedy}")
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise LrlsError(f"{_shown(folder)}: {name} is missing; {remedy}")
        try:
            unchanged = file_digest(folder / name) == digest
        except (OSError, RuntimeError, KeyError, ValueError):  # what h5py raises for damaged files
            unchanged = False
        if not unchanged:
            raise LrlsError(f"{_shown(folder)}: {name} changed since it was written; {remedy}")


def history(workspace: Path) -> list[tuple[Path, Manifest]]:
    """Every finished artifact below the workspace, oldest first; inputs match by `Manifest.digest`."""
    folders = {path.parent for path in workspace.rglob(f"v*/{MANIFEST}") if _number(path.parent)}
    entries = [(folder, read_manifest(folder)) for folder in folders]
    return sorted(entries, key=lambda entry: (entry[1].created, entry[0].parent, _number(entry[0])))


# Digests


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of an HDF5 file's content, so that its book-keeping does not count."""
    if path.suffix == ".h5":
        import h5py

        digest = hashlib.sha256()
        with h5py.File(path, "r") as file:
            _update_h5(digest, file)
        return digest.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _update_h5(digest: hashlib._Hash, item: h5py.Group | h5py.Dataset) -> None:
    """Names, attributes, types, shapes and values in sorted order, whatever the order and layout on disk."""
    import h5py
    import numpy as np

    def header(*fields: object) -> None:
        digest.update(_canonical(fields))

    header(item.name, type(item).__name__)
    for name in sorted(item.attrs):
        value = np.asarray(item.attrs[name])
        header("attribute", name, _type_name(value.dtype), value.shape)
        _update_values(digest, value)
    if isinstance(item, h5py.Dataset):
        header(_type_name(item.dtype), item.shape)
        if item.shape == ():
            _update_values(digest, np.asarray(item[()]))
        elif item.shape is not None and item.size:
            # Slabs along the first axis give the same bytes for every chunk layout; whole chunks are read once only.
            step = item.chunks[0] if item.chunks else 1
            row_bytes = item.dtype.itemsize * item.size // item.shape[0]
            rows = max(_SLAB_BYTES // row_bytes // step, 1) * step
            for start in range(0, item.shape[0], rows):
                _update_values(digest, item[start : start + rows])
    else:
        for name in sorted(item):
            _update_h5(digest, item[name])


def _type_name(dtype: np.dtype) -> str:
    return str(dtype.descr if dtype.names else dtype.str)


def _update_values(digest: hashlib._Hash, values: np.ndarray) -> None:
    if values.dtype.names:  # field by field: the padding between fields has no defined bytes
        for name in values.dtype.names:
            _update_values(digest, values[name])
    elif values.dtype.hasobject:  # strings and arrays of varying length
        for value in values.ravel():
            raw = value.encode() if isinstance(value, str) else value
            raw = raw if isinstance(raw, bytes) else raw.tobytes() if hasattr(raw, "tobytes") else repr(raw).encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)
    else:
        digest.update(values.tobytes())


def _content_digest(identity: Identity, files: Mapping[str, str]) -> str:
    return digest_of({"identity": identity.digest, "files": files})


def digest_of(values: object) -> str:
    """Of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(_canonical(values)).hexdigest()


def _canonical(values: object) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


# Weights and training state


def save_weights(modules: Mapping[str, torch.nn.Module], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write `packed_weights`."""
    atomic_write_bytes(path, packed_weights(modules, metadata))


def packed_weights(modules: Mapping[str, torch.nn.Module], metadata: Mapping[str, Any]) -> bytes:
    """Parameters and buffers of networks as safetensors, in float32, under the keys "network/parameter".

    The metadata is one JSON string, since several safetensors keys are not written in a stable order; it carries a
    checksum too, as the format has none.
    """
    import safetensors.torch
    import torch

    assert not any("/" in name for name in modules)
    tensors = {}
    for name, module in modules.items():
        for key, tensor in module.state_dict().items():
            kept = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
            tensors[f"{name}/{key}"] = kept.clone(memory_format=torch.contiguous_format)
    head = {"metadata": metadata, "checksum": _checksum(tensors, metadata)}
    return safetensors.torch.save(tensors, metadata={"lrls": _canonical(head).decode()})


def load_weights(modules: Mapping[str, torch.nn.Module], path: Path) -> dict[str, Any]:
    """Fill networks from a file of `save_weights` and return its metadata; other networks in it are left alone.

    Args:
        modules: by name; a part of a network by "network/part".

    Raises:
        LrlsError: the file is missing, truncated or changed, or does not fit the networks, which then stay as they are.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads(file.metadata()["lrls"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        metadata, checksum = head["metadata"], head["checksum"]
    except FileNotFoundError:
        raise LrlsError(f"{_shown(path)} is missing; make it again with --force.") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise LrlsError(f"{_shown(path)} is truncated or damaged; make it again with --force.") from None
    if checksum != _checksum(tensors, metadata):
        raise LrlsError(f"{_shown(path)} changed since it was written; make it again with --force.")
    fill(modules, tensors, _shown(path))
    return metadata


def fill(modules: Mapping[str, torch.nn.Module], tensors: Mapping[str, torch.Tensor], shown: str) -> None:
    """Fill networks with tensors of the keys "network/parameter"; those of other networks are left alone.

    Args:
        modules: by name; a part of a network by "network/part".
        shown: where they come from, for messages.

    Raises:
        LrlsError: they do not fit the networks, which then stay as they are.
    """
    states = {}
    for name, module in modules.items():
        prefix = f"{name}." if "/" in name else f"{name}/"
        expected = {f"{prefix}{key}": tensor for key, tensor in module.state_dict().items()}
        found = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        remedy = "use the configuration that it was trained with, or train again."
        for key in sorted(expected.keys() | found.keys()):
            shapes = [tuple(side[key].shape) if key in side else "nothing" for side in (found, expected)]
            if shapes[0] != shapes[1]:
                raise LrlsError(f"{shown}: tensor {key}: found {shapes[0]}, the network expects {shapes[1]}; {remedy}")
        states[name] = {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    for name, module in modules.items():
        module.load_state_dict(states[name])


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> str:
    import torch

    digest = hashlib.sha256(_canonical(metadata))
    for key, tensor in sorted(tensors.items()):
        digest.update(_canonical([key, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_state(obj: object, path: Path) -> None:
    """Write resumable training state: tensors and plain values in dicts, lists and tuples."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(obj, buffer)
    atomic_write_bytes(path, buffer.getvalue())


def load_state(path: Path) -> Any:
    """Read training state, on the CPU; nothing in it is executed.

    Raises:
        LrlsError: the file is missing or not readable.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged bytes make the unpickler raise nearly anything
        raise LrlsError(
            f"{_shown(path)}: training state is missing or damaged; delete {_shown(path.parent)} and run the same "
            "command again: it starts over."
        ) from None


# Files


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is there in full or not at all, whenever the process is killed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _fsync(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """As `atomic_write_bytes`, in UTF-8."""
    atomic_write_bytes(path, text.encode())


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise LrlsError(f"another lrls process is writing in {_shown(target)}; wait for it or stop it.") from None
    except OSError as error:
        if _is_disk_full(error):
            raise
        raise LrlsError(f"{_shown(target)} cannot be written to ({error.strerror}); set another workspace.") from None
    try:
        yield
    finally:
        lock.release()


def _number(version: Path) -> int:
    """The number of a version folder; 0 for anything else."""
    match = re.fullmatch(r"v(\d{4,})", version.name)
    return int(match[1]) if match else 0


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether it, or what it was raised from, is a full disk; h5py and torch often keep only the message."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if re.search(r"No space left on device|Disk quota exceeded|errno = 28\b", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _package_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _shown(path: Path) -> str:
    """A path as users write it: relative where it lies below the working folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
