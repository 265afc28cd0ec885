"""Workspaces of strangers: JSON files, tables and HDF5 files with nasty values, and digests made right again.

    cd tests && PYTHONPATH=.. python -m attacks.hostile_workspaces lrls.yaml [--tries 400] [--seed 0] [--only 17]

The project is as for `attacks.flips`. A command must refuse in one line or answer; a traceback, a hang, memory beyond
the bound, or control characters in what is said make this exit with 1.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from attacks.flips import ANSWERS, USED_BY, answer, copied, files_below
from attacks.mutations import NASTY, as_json, places_in
from attacks.trying import run_attack, tried

SECONDS, MORE_MB = 60.0, 1000.0
MANIFEST = "artifact.json"


def mutated(values: Any, draw: random.Random) -> Any:
    """JSON with one or two values that are nasty, gone or scaled."""
    for _ in range(draw.choice((1, 1, 2))):
        places = [place for place in places_in(values) if place]
        if not places:
            return draw.choice(NASTY)
        *way, last = draw.choice(places)
        node = values
        for key in way:
            node = node[key]
        how = draw.random()
        if how < 0.7:
            node[last] = draw.choice(NASTY)
        elif how < 0.8:
            del node[last]
        elif isinstance(node[last], int | float):
            node[last] = node[last] * draw.choice((-1, 0, 0.5, 1000, 1e9))
        elif isinstance(node, dict):
            node[draw.choice(("hook", "x" * 50_000, "\x1b[2J"))] = draw.choice(NASTY)
    return values


def change_table(text: str, draw: random.Random) -> str:
    rows = [line.split(",") for line in text.splitlines()]
    row = draw.choice(rows)
    row[draw.randrange(len(row))] = draw.choice(("", "x", "nan", "inf", "1e999", "-1", '"', "\x1b[2J", "=1+1", "a,b"))
    return "\n".join(",".join(row) for row in rows) + "\n"


def change_h5(file: Path, draw: random.Random) -> None:
    """A dataset of another type, shape, place or values."""
    import h5py
    import numpy as np

    with h5py.File(file, "r+") as opened:
        names: list[str] = []
        opened.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = draw.choice(names)
        values, kind = opened[name][()], draw.randrange(7)
        attributes = dict(opened[name].attrs)
        del opened[name]
        if kind == 0:
            kinds = ("S4", "S1") if values.dtype == object else ("f8", "i8", "u1", "f2", "S4", "?")
            opened[name] = values.astype(draw.choice(kinds))
        elif kind == 1:
            opened[name] = values[..., None] if draw.random() < 0.5 else values.ravel()[: draw.choice((0, 1, 7))]
        elif kind == 2:
            opened.create_dataset(name, (1024, 2**20, 2**20), "f2", chunks=(1, 1, 64))
        elif kind == 3:
            opened[name] = h5py.SoftLink("/reference") if draw.random() < 0.5 else h5py.ExternalLink("/etc/passwd", "/")
        elif kind == 4:
            opened.create_dataset(name, values.shape, values.dtype if values.dtype != object else "f2",
                                  external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])  # fmt: skip
        elif kind == 5 and values.dtype != object:
            with np.errstate(invalid="ignore"):
                filled = np.full(values.shape, draw.choice((0, 1, 200, -1, float("nan"))), "f8").astype(values.dtype)
            opened[name] = filled
        if name in opened and isinstance(opened.get(name, getlink=True), h5py.HardLink):
            for key, value in attributes.items():
                opened[name].attrs[key] = draw.choice((value, "x", [float("nan")] * 3, 1))


def forge(file: Path, artifact: Path, draw: random.Random) -> None:
    """Change a file, then all digests."""
    from stages.artifacts.digests import digest_of

    manifest = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    if file.name == MANIFEST:
        manifest.pop("seal")
        manifest = mutated(manifest, draw)
    else:
        if file.suffix == ".h5":
            change_h5(file, draw)
        elif file.suffix == ".csv":
            file.write_text(change_table(file.read_text(encoding="utf-8"), draw), encoding="utf-8")
        else:
            file.write_text(as_json(mutated(json.loads(file.read_text(encoding="utf-8")), draw)), encoding="utf-8")
        raw = hashlib.sha256(file.read_bytes()).hexdigest()
        name = file.relative_to(artifact).as_posix()
        manifest["raw" if file.suffix == ".h5" else "files"][name] = raw
        manifest.pop("seal")
    try:
        plain = json.loads(as_json(manifest))
        plain["digest"] = digest_of({"identity": digest_of(plain["identity"]), "files": plain["files"]})
        if draw.random() < 0.9:
            manifest |= {"digest": plain["digest"]}
        manifest["seal"] = digest_of(json.loads(as_json(manifest)))
    except (ValueError, RecursionError, TypeError, KeyError):
        pass
    (artifact / MANIFEST).write_text(as_json(manifest), encoding="utf-8")


def attack(project: Path, *, tries: int, seed: int, scratch: Path, only: int | None = None) -> dict[str, Counter[str]]:
    """Counts of outcomes by the kind of file."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(tries) if only is None else [only]:
        draw = random.Random(f"{seed} {number}")
        name = draw.choice(sorted(ANSWERS))
        each = copied(project, scratch / "sound")
        by_suffix: dict[str, list[Path]] = defaultdict(list)
        for path in files_below(each.workspace, USED_BY[name]):
            if path.suffix in (".json", ".csv", ".h5") and ".scans" not in path.parts:
                by_suffix[MANIFEST if path.name == MANIFEST else path.suffix].append(path)
        kind = draw.choice(sorted(by_suffix))
        file = draw.choice(by_suffix[kind])
        artifact = file.parent if (file.parent / MANIFEST).exists() else file.parent.parent
        forge(file, artifact, draw)
        ended = tried(lambda: answer(each, ANSWERS[name], scratch / "out"), seconds=SECONDS, more_mb=MORE_MB)  # noqa: B023
        outcome = "answered" if ended.how == "done" else ended.how if ended.how == "refused" else ended.how.upper()
        said = ended.told if outcome != "answered" else ended.result["said"] + ended.result["told"]
        if "\x1b" in said:
            outcome = "ESCAPES"
        counts[kind][outcome] += 1
        if outcome.isupper() or only is not None:
            last = ended.told.strip().splitlines()[-1:] or [""]
            print(f"{number} {name}, {file.relative_to(each.workspace)}: {outcome}: {last[0][:300]}")
        if only is not None:
            print(ended.told, ended.result)
        for folder in ("sound", "out"):
            shutil.rmtree(scratch / folder, ignore_errors=True)
    return counts


if __name__ == "__main__":
    run_attack(attack, __doc__, "config", tries=400, on_project=True)
