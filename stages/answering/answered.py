"""The folder that `lrls predict` writes to: what it must not touch, and what it holds already.

.lrls/<key>.json   a record per scan that is done: digests of the scan, the model and the files, and the rows of the
                   tables. A stopped command goes on behind these scans.
.lrls/former.json  files of other models' answers, and their digests; only `lrls review` asks for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.answering.quality import Quality
from stages.artifacts.digests import digest_of
from stages.artifacts.draft import locked
from stages.artifacts.files import atomic_write_text
from stages.data.contents import bytes_digest, files_of
from stages.data.new_scans import files_of_scan
from stages.data.writers import remove_leftovers
from stages.errors import LrlsError

RECORDS = ".lrls"
FORMER = "former.json"
LOCK = ".lock"
OPENING_S = 600.0  # that parts of a folder wait for one another when they begin
MOST_BYTES = 50_000_000  # of a record
FOLDERS = ("qc", "probabilities", "transforms")
OF_ALL = ("volumes.csv", "qc.csv", "outliers.csv", "outliers.png")  # of all scans of the folder


@dataclass(frozen=True)
class Answered:
    """A scan that is done.

    Args:
        volumes_ml: of each structure.
        quality: estimates and flags.
    """

    case: str
    volumes_ml: dict[str, float]
    quality: Quality


class AnswerFolder:
    """The folder of the answers.

    Args:
        out: the folder, which need not exist.
        scans: (case, file or DICOM folder) to answer.
        model: digest of the model and of what is asked of it; answers of one folder have one.
        force: write into a folder with other files.
        channels: files of a scan.
        is_shared: other processes answer other scans into the folder at the same time.

    Raises:
        LrlsError: it cannot be written to, holds other files, or a scan lies in it.
    """

    def __init__(
        self, out: Path, scans: Sequence[tuple[str, Path]], model: str, *, force: bool, channels: int = 1,
        is_shared: bool = False,
    ) -> None:  # fmt: skip
        self.out, self.model, self.channels, self.is_shared = out, model, channels, is_shared
        if not is_shared or (out.exists() and not out.is_dir()):
            self._open(scans, force)
            return
        refuse_overlap(out, scans)
        if out.is_dir() and not self._is_empty() and not force and not (out / RECORDS).is_dir():
            raise not_empty(out)
        with locked(out / RECORDS, wait_s=OPENING_S):  # one after the other
            self._open(scans, force)

    def _open(self, scans: Sequence[tuple[str, Path]], force: bool) -> None:
        out, model = self.out, self.model
        if out.exists() and not out.is_dir():
            raise LrlsError(f"--out {out} is a file; name a folder.")
        refuse_overlap(out, scans)
        if out.is_dir() and not self._is_empty() and not force and not self._is_of_this_model():
            raise not_empty(out)
        try:
            former = {} if self._is_of_this_model() else recorded_files(out)
            if not self._is_of_this_model():
                is_of_another = (out / RECORDS / "model.json").is_file()
                for name in OF_ALL if is_of_another else ():
                    (out / name).unlink(missing_ok=True)
                for entry in (out / RECORDS).iterdir() if (out / RECORDS).is_dir() else ():
                    if entry.name != LOCK:
                        entry.unlink()
            (out / "qc").mkdir(parents=True, exist_ok=True)
            (out / RECORDS).mkdir(exist_ok=True)
            if former:
                atomic_write_text(out / RECORDS / FORMER, json.dumps({"files": former}))
            if not self._is_of_this_model():
                atomic_write_text(out / RECORDS / "model.json", json.dumps({"model": model}))
        except OSError as error:
            raise LrlsError(f"--out {out} cannot be written to ({error.strerror}); name another folder.") from None
        for folder in () if self.is_shared else (out, out / "qc"):
            remove_leftovers(folder)
        records = (self._read(file) for file in sorted((out / RECORDS).glob("*.json")))
        self._records: dict[str, dict[str, Any]] = {record["case"]: record for record in records if record}

    def _is_empty(self) -> bool:
        """Whether nothing lies in it but the lock of a process that is about to begin."""
        if any(entry.name != RECORDS for entry in self.out.iterdir()):
            return False
        records = self.out / RECORDS
        return not records.exists() or (records.is_dir() and all(each.name == LOCK for each in records.iterdir()))

    def _is_of_this_model(self) -> bool:
        try:
            return json.loads((self.out / RECORDS / "model.json").read_text(encoding="utf-8")) == {"model": self.model}
        except (OSError, ValueError, RecursionError):
            return False

    def done(self, case: str, scan: Path) -> Answered | None:
        """The record of a scan, if neither it nor its answer has changed since."""
        record = self._records.get(case)
        try:
            if record is None or record["scan"] != _digest_of(case, scan, self.channels):
                return None
            for name, digest in record["files"].items():
                file = self.out / name
                if not file.is_file() or bytes_digest(file) != digest:  # a device would be read without end
                    return None
        except OSError:
            return None
        return _answered(record)

    def add(self, record: dict[str, Any]) -> None:
        """Record a scan whose files are written, by its `record_of`."""
        record = {"case": record["case"], "model": self.model} | record
        file = self.out / RECORDS / f"{digest_of(record['case'])[:32]}.json"
        atomic_write_text(file, json.dumps(record | {"digest": digest_of(record)}))
        self._records[record["case"]] = record

    def all(self) -> list[Answered]:
        """All scans of the folder, by name."""
        return [_answered(record) for _, record in sorted(self._records.items())]

    def _read(self, file: Path) -> dict[str, Any] | None:
        """A record of this model; None: it is of another model, or damaged."""
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            digest = record.pop("digest")
            if digest != digest_of(record) or record["model"] != self.model:
                return None
            texts = (record["case"], record["scan"], *record["files"].values(), *record["quality"]["flags"])
            if not all(isinstance(text, str) and text.isprintable() for text in texts):
                return None
            float(sum(_answered(record).volumes_ml.values()))  # raises TypeError unless they are numbers
            return record
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def not_empty(out: Path) -> LrlsError:
    return LrlsError(f"--out {out} is not empty; name another folder, or write into it with --force.")


def record_of(answered: Answered, scan: Path, files: Sequence[str], out: Path, channels: int) -> dict[str, Any]:
    """What is recorded of a scan that is done, but for the model.

    Args:
        files: what was written of it, as paths in `out`.
        channels: files of a scan.
    """
    return {
        "case": answered.case,
        "scan": _digest_of(answered.case, scan, channels),
        "files": {name: bytes_digest(out / name) for name in files},
        "volumes_ml": answered.volumes_ml,
        "quality": asdict(answered.quality),
    }


def _digest_of(case: str, scan: Path, channels: int) -> str:
    digests = [scan_digest(file) for file in files_of_scan(scan, case, channels)]
    return digests[0] if len(digests) == 1 else digest_of(digests)


def recorded_files(folder: Path) -> dict[str, str]:
    """Digests of the files that the records of a folder of answers list, whatever model gave them, by path in it.

    Records that are damaged list none.
    """
    files: dict[str, str] = {}
    for record in sorted((folder / RECORDS).glob("*.json"), key=lambda file: file.name != FORMER):
        try:
            if record.is_file() and record.stat().st_size <= MOST_BYTES:
                listed = json.loads(record.read_text(encoding="utf-8"))["files"]
                files |= {name: digest for name, digest in listed.items() if isinstance(digest, str)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return files


def _answered(record: Mapping[str, Any]) -> Answered:
    quality = dict(record["quality"])
    quality["flags"] = tuple(quality["flags"])
    if intervals := quality.get("volume_intervals_ml"):
        quality["volume_intervals_ml"] = {name: (low, high) for name, (low, high) in intervals.items()}
    return Answered(record["case"], record["volumes_ml"], Quality(**quality))


def scan_digest(scan: Path) -> str:
    """Of the bytes of a scan's files and, of a DICOM folder, their names."""
    return digest_of([[file.name if scan.is_dir() else "", bytes_digest(file)] for file in files_of(scan)])


def refuse_overlap(out: Path, scans: Sequence[tuple[str, Path]]) -> None:
    """Nothing is written into a folder that a scan lies in, whatever names or links lead there.

    Raises:
        LrlsError: a scan lies in `out` or in one of its folders, `out` lies in a DICOM series, or a folder of the
            answers is a link to somewhere else.
    """
    own = {identity for folder in (out, *(out / name for name in FOLDERS)) if (identity := _identity(folder))}
    around = {identity for folder in (out, *out.resolve().parents) if (identity := _identity(folder))}
    for case, scan in scans:
        if own & set(_folders_of(scan)):
            raise LrlsError(f"--out {out} is where scan {case} lies, and would be written over; name another folder.")
        if scan.is_dir() and _identity(scan) in around:
            raise LrlsError(f"--out {out} lies in the DICOM series of scan {case}; name another folder.")
    inside = (link for name in FOLDERS[1:] for link in _links_in(out / name))
    for folder in (out / RECORDS, *(out / name for name in FOLDERS), *inside):
        if folder.is_symlink():
            raise LrlsError(f"--out {out}: {folder.name} in it is a link; remove it, or name another folder.")


def _links_in(folder: Path) -> Iterator[Path]:
    if folder.is_dir() and not folder.is_symlink():
        yield from (entry for entry in folder.iterdir() if entry.is_symlink())


def _folders_of(scan: Path) -> Iterator[tuple[int, int]]:
    """The folders that a scan lies in: by its own name, and where links lead."""
    for place in (Path(os.path.abspath(scan)), scan.resolve()):
        for folder in place.parents:
            if identity := _identity(folder):
                yield identity
    if scan.is_dir() and (identity := _identity(scan)):
        yield identity


def _identity(folder: Path) -> tuple[int, int] | None:
    """What stays the same whatever the name: device and number."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
