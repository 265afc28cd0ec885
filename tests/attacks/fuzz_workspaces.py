"""What is fuzzed: artifacts of a workspace, what it and a folder of answers keep, and exported models.

These are a stranger's, so that digests are right again after a change.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import SimpleITK as sitk
from attacks.flips import finished_project
from attacks.fuzz import Files, Reader
from attacks.fuzz_files import YAML
from attacks.fuzz_scans import as_files, made, volume, written
from attacks.garbled import TEXT, json_changed, values_changed
from attacks.hostile_workspaces import change_table
from attacks.mutations import CONTENTS, as_json, flip_zip, forge_zip

MANIFEST = "artifact.json"
LARGEST = 400_000  # bytes of an artifact that is fuzzed
PROPERTIES = (
    "settings", "table", "total_s", "budget_s", "measured", "verdict", "summary", "fields", "steps", "allowed_s",
)  # fmt: skip


@cache
def _own_project() -> Path:
    import yaml
    from conftest import SETTINGS, Project, merged, write_scans

    folder = Path(tempfile.mkdtemp(prefix="fuzzed-"))
    scans = write_scans(folder / "scans")

    def new_project(folder: Path, **changes: Any) -> Project:
        folder.mkdir()
        settings = merged(merged(SETTINGS, {"data": {"folder": str(scans)}}), changes)
        (folder / "lrls.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        return Project(folder)

    finished_project(folder / "project", new_project)
    return folder / "project"


def _artifacts(project: Callable[[], Path]) -> list[Files]:
    """Each finished artifact that is small; a change in a large one takes long."""
    folders = [path.parent for path in sorted(project().rglob(f"v*/{MANIFEST}"))]
    return [files for files in map(as_files, folders) if sum(map(len, files.values())) < LARGEST]


def artifact_changed(files: Files, draw: Random) -> Files:
    """A JSON file or table has other values."""
    name = draw.choice([name for name in sorted(files) if name.endswith((".json", ".csv"))])
    if name.endswith(".csv"):
        return _sealed({**files, name: change_table(files[name].decode(errors="replace"), draw).encode()}, draw)
    if name != MANIFEST:
        return _sealed({**files, name: json_changed(files[name], draw)}, draw)
    return _sealed({**files, name: as_json(values_changed(json.loads(files[name]), draw)).encode()}, draw)


def _sealed(files: Files, draw: Random) -> Files:
    """With right digests, for most inputs and as far as there can be such."""
    from stages.artifacts.digests import digest_of

    if draw.random() < 0.05:
        return files
    try:
        manifest = json.loads(files[MANIFEST])
        manifest.pop("seal", None)
        for name in manifest["files"]:
            if name in files and not name.endswith(".h5"):
                manifest["files"][name] = hashlib.sha256(files[name]).hexdigest()
        manifest["digest"] = digest_of({"identity": digest_of(manifest["identity"]), "files": manifest["files"]})
        manifest["seal"] = digest_of(manifest)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return files
    return {**files, MANIFEST: json.dumps(manifest).encode()}


def read_artifact(folder: Path) -> None:
    """Everything that a command reads of it; the first refusal is raised when all is read."""
    from stages.artifacts.cohort import Cohort
    from stages.artifacts.kinds import KINDS
    from stages.artifacts.manifest import peek_manifest
    from stages.errors import LrlsError

    kind = KINDS[peek_manifest(folder).identity.kind]
    artifact = kind.open(folder)
    reads: list[Callable[[], Any]] = []
    for name in PROPERTIES:
        if hasattr(kind, name):
            reads.append(lambda name=name: getattr(artifact, name))
    if hasattr(kind, "read"):
        reads.append(artifact.read)  # type: ignore[attr-defined]
    if isinstance(artifact, Cohort):
        reads += [artifact.fallen_back, artifact.reference, lambda: artifact.scans("cpu")]  # type: ignore[arg-type]
    refused = []
    for read in reads:
        try:
            read()
        except LrlsError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _models(project: Callable[[], Path]) -> list[Files]:
    from conftest import Project

    def write(folder: Path) -> None:
        Project(project()).made("export", "--method", "best", "--out", str(folder / "model.zip"))

    return [made(write)]


def model_changed(files: Files, draw: Random) -> Files:
    """The files of a model, or the zip that holds them."""
    if draw.random() < 0.3:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.zip"
            (flip_zip if draw.random() < 0.9 else forge_zip)(_unzipped(files), path, draw)
            return {"model.zip": path.read_bytes()}
    changed = CONTENTS[draw.choice(sorted(CONTENTS))](_unzipped(files), draw)
    return made(lambda folder: _zipped(changed, folder / "model.zip"))


def _unzipped(files: Files) -> Files:
    from io import BytesIO

    with zipfile.ZipFile(BytesIO(files["model.zip"])) as file:
        return {name: file.read(name) for name in file.namelist()}


def _zipped(files: Files, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name), data)


def read_model(folder: Path) -> None:
    from stages.answering.exported import open_model

    open_model(folder / "model.zip")


CONFIG = YAML.replace("[a, b]", "[a]").replace("[c]", "[b]").replace("[d]", "[]")


def _kept() -> list[Files]:
    def write(folder: Path) -> None:
        for case, dtype in (("a", np.int16), ("b", np.float32)):
            (folder / "images").mkdir(exist_ok=True)
            sitk.WriteImage(volume(dtype), str(folder / "images" / f"{case}.nii"))
        (folder / "labels").mkdir()
        (folder / "labels" / "a.nii").write_bytes(written("a.nii", np.uint8)["a.nii"])
        (folder / "lrls.yaml").write_text(CONFIG.replace("structures: {liver: 1, tumour: [2, 3]}",
                                                         "structures: {liver: 1, tumour: [2, 3, 4]}"))  # fmt: skip
        read_kept_facts(folder)

    return [made(write)]


def read_kept_facts(folder: Path) -> None:
    from stages.config import load_config
    from stages.data.facts import Known, examine, faults_of, notices_of

    config = load_config(folder / "lrls.yaml")
    known = Known(config)
    looked = known.look({"a": True, "b": False})
    facts = known.facts(looked)
    for case, scan in looked.items():
        found = facts.get(case) or examine(config, scan).facts
        told = [*faults_of(config, found), *notices_of(found)]
        if not all(str(fault).isprintable() for fault in told):
            raise ValueError("a fault with control characters")


def _kept_digests(files: Files, draw: Random) -> Files:
    """Kept values with right digests, and under the names that they have on the machine that reads them."""
    from stages.artifacts.digests import digest_of

    repaired = dict(files)
    for name, data in files.items():
        try:
            value = json.loads(data)["value"]
            repaired[name] = json.dumps({"digest": digest_of(value), "value": value}).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return repaired


def _answers() -> list[Files]:
    from stages.answering.answered import Answered, AnswerFolder, record_of
    from stages.answering.quality import Quality

    def write(folder: Path) -> None:
        (folder / "scan.nii").write_bytes(written("scan.nii")["scan.nii"])
        answers = AnswerFolder(folder / "out", [("scan", folder / "scan.nii")], "m", force=False)
        (folder / "out" / "scan.nii.gz").write_bytes(b"answer")
        quality = Quality({"confidence": 0.5}, 0.0, 0.9, 0.1, 0.8, ("folding",), {"liver": (1.0, 2.0)})
        answered = Answered("scan", {"liver": 1.5}, quality)
        answers.add(record_of(answered, folder / "scan.nii", ["scan.nii.gz"], folder / "out", 1))

    return [made(write)]


def _record_digests(files: Files, draw: Random) -> Files:
    from stages.artifacts.digests import digest_of

    repaired = dict(files)
    for name, data in files.items():
        try:
            record = json.loads(data)
            record.pop("digest")
            repaired[name] = json.dumps(record | {"digest": digest_of(record)}).encode()
        except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
            continue
    return repaired


def read_answers(folder: Path) -> None:
    from stages.answering.answered import AnswerFolder, recorded_files

    recorded_files(folder / "out")
    answers = AnswerFolder(folder / "out", [("scan", folder / "scan.nii")], "m", force=True)
    answers.done("scan", folder / "scan.nii")
    answers.all()


def workspaces(project: Callable[[], Path] = _own_project) -> dict[str, Reader]:
    """Readers of what a project has made.

    Args:
        project: the folder of a finished one; by default it is made when it is asked for.
    """
    return {
        "artifacts": Reader(lambda: _artifacts(project), read_artifact, (json_changed, *TEXT),
                            changed=r".*\.(json|csv)", repaired=_sealed, of_all=(artifact_changed,)),
        "models": Reader(lambda: _models(project), read_model, of_all=(model_changed,)),
        "kept facts": Reader(_kept, read_kept_facts, (json_changed, *TEXT), changed=r"runs/.*\.json",
                             repaired=_kept_digests),
        "answers": Reader(_answers, read_answers, (json_changed, *TEXT), changed=r"out/.*\.json",
                          repaired=_record_digests),
    }  # fmt: skip
