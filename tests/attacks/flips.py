"""Damage: flips and cuts in a workspace's finished artifacts and drafts, and what commands that answer make of them.

    cd tests && PYTHONPATH=.. python -m attacks.flips lrls.yaml [--tries 260] [--seed 0] [--only 17]

The project must have run best, unet and brbs (see `finished_project`). Every try works on a copy. A command must refuse
in one line, make it again, or answer as from the undamaged workspace; anything else makes this exit with 1.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from attacks.trying import Ended, run_attack, tried

SECONDS, MORE_MB = 60.0, 1000.0
ANSWERS: dict[str, tuple[str, ...]] = {  # commands that answer from what is finished
    "run": ("run", "--method", "best"),
    "eval": ("eval", "--method", "best"),
    "eval brbs": ("eval", "--method", "brbs"),
    "compare": ("compare", "--method", "unet", "--method", "best"),
    "compare again": ("compare", "--method", "unet", "--method", "best", "--force"),
    "calibrate": ("calibrate", "--method", "best", "--couples", "9"),
    "calibrate again": ("calibrate", "--method", "best", "--couples", "9", "--force"),
    "export": ("export", "--method", "best", "--out", "OUT/model.zip"),
    "export network": ("export", "--method", "brbs", "--network-only", "--out", "OUT/model"),
    "nnunet": ("export", "--method", "best", "--to", "nnunet", "--couples", "2", "--out", "OUT/Dataset101_X"),
    "predict": ("predict", "SCAN", "--method", "best", "--out", "OUT/labels"),
    "history": ("history",),
    "train-seg": ("train-seg", "--method", "brbs", "--force"),
    "generate": ("generate", "--method", "brbs", "--force"),
}
USED_BY = {  # artifacts that a command reads, so that most of the damage is where it looks
    "run": ("cohort", "test", "best"),
    "eval": ("cohort", "test", "best"),
    "eval brbs": ("cohort", "test", "brbs"),
    "compare": ("compare", "unet/scores", "best/scores"),
    "compare again": ("unet", "best", "cohort"),
    "calibrate": ("cohort", "best"),
    "calibrate again": ("cohort", "best/segmentation", "best/generated"),
    "export": ("cohort", "best/segmentation", "best/calibration", "best/generated"),
    "export network": ("cohort", "brbs"),
    "nnunet": ("cohort", "best"),
    "predict": ("cohort", "best/segmentation", "best/calibration", "best/generated"),
    "history": ("",),
    "train-seg": ("cohort", "brbs/registration", "brbs/generated"),
    "generate": ("cohort", "brbs/registration"),
}
STOPS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {  # what stops: function, what it makes, its command
    "train-reg": ("stages.training.runs.save_weights", "brbs", "registration", ("train-reg", "--method", "brbs")),
    "train-seg": ("stages.training.runs.save_weights", "brbs", "segmentation", ("train-seg", "--method", "brbs")),
    "generate": ("stages.generating.path_bank.write_table", "brbs", "generated", ("generate", "--method", "brbs")),
    "eval": ("stages.evaluate._pictures", "brbs", "scores", ("eval", "--method", "brbs")),
    "preprocess": ("stages.preprocess._assemble", "", "cohort", ("preprocess",)),
    "complete": ("stages.artifacts.draft._publish", "brbs", "scores", ("eval", "--method", "brbs")),
}  # fmt: skip


def finished_project(folder: Path, new_project: Any, **changes: Any) -> Any:
    """A project with everything that the commands above read."""
    small = {"shape": [16, 16, 16], "spacing_mm": 3.0}
    methods = {"best": {"coarse_steps": 1, "fine_steps": 1}}
    project = new_project(folder, preprocess=small, methods=methods, **changes)
    for method in ("best", "unet", "brbs"):
        project.made("run", "--method", method)
    project.made("calibrate", "--method", "best", "--couples", "9")
    project.made("compare", "--method", "unet", "--method", "best")
    return project


def copied(project: Path, to: Path) -> Any:
    from conftest import Project

    data = Project(project).config.data.folder
    shutil.copytree(project, to)
    values = yaml.safe_load((to / "lrls.yaml").read_text(encoding="utf-8"))
    values["data"]["folder"] = str(data)
    (to / "lrls.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return Project(to)


def answer(project: Any, command: tuple[str, ...], out: Path) -> dict[str, Any]:
    """What a command says and writes, without times and places."""
    from stages.errors import LrlsError

    out.mkdir()
    scan = sorted((project.config.data.folder / "images").iterdir())[-1]
    words = [str(scan) if word == "SCAN" else word.replace("OUT", str(out)) for word in command]
    before = {path for path in project.workspace.rglob("v*/artifact.json")}
    done = project.lrls(*words)
    if done.code:
        last = done.err.strip().splitlines()[-1:]  # behind lines of progress
        raise LrlsError(last[0].removeprefix("lrls: ") if last else f"exit {done.code}")
    made = {}
    for path in set(project.workspace.rglob("v*/artifact.json")) - before:
        name = path.parent.parent.relative_to(project.workspace).as_posix()
        made[name] = json.loads(path.read_text(encoding="utf-8"))["digest"]
    files = {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix != ".png"
    }
    said = done.out.replace(str(out), "OUT").replace(str(project.folder), "PROJECT")
    said = re.sub(r"\S+ s a scan", "SECONDS a scan", said)
    if made:  # a table of a comparison says how long things took, its folder another number
        said = re.sub(r"v\d{4}", "v", said)
    return {"said": said, "files": files, "made": made, "told": done.err}


def damage(file: Path, draw: random.Random) -> str:
    """Flip a few bits, write zeros, or cut."""
    data = bytearray(file.read_bytes())
    how = draw.choice(("flip", "flip", "flip", "zeros", "cut", "longer"))
    if not data:
        how = "longer"
    if how == "flip":
        for _ in range(draw.choice((1, 1, 3))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "zeros":
        start = draw.randrange(len(data))
        end = min(len(data), start + draw.choice((1, 64, 4096)))
        data[start:end] = bytes(end - start)
    elif how == "cut":
        data = data[: draw.randrange(len(data))]
    else:
        data += draw.randbytes(draw.choice((1, 100)))
    file.write_bytes(bytes(data))
    return how


def outcome_of(ended: Ended, expected: dict[str, Any]) -> str:
    """How a command took the damage."""
    if ended.how == "refused":
        return "refused"
    if ended.how != "done":
        return ended.how.upper()
    found = ended.result
    if found["made"].items() - expected["made"].items():
        same = all(found["made"][name] == digest for name, digest in expected["made"].items() if name in found["made"])
        again = set(found["made"]) - set(expected["made"])
        return "made again" if same and again and found["files"] == expected["files"] else "USED IN SILENCE"
    if any(found[part] != expected[part] for part in ("said", "files", "made")):
        told = found["said"] + found["told"]
        return (
            "told" if re.search("artifact.json (changed|is not readable)|cannot be read", told) else "USED IN SILENCE"
        )
    return "made again" if "made again" in found["told"] or "starts over" in found["told"] else "no effect"


def files_below(workspace: Path, places: tuple[str, ...]) -> list[Path]:
    files = [path for place in places for path in (workspace / place).rglob("*") if path.is_file()]
    return sorted(path for path in files if not path.name.startswith(".lock") and path.suffix != ".png")


def attack(project: Path, *, tries: int, seed: int, scratch: Path, only: int | None = None) -> dict[str, Counter[str]]:
    """Counts of outcomes by command; half of the tries are in finished artifacts, half as many in drafts."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    expected: dict[str, dict[str, Any]] = {}
    drafts: dict[str, Path] = {}
    kinds = [("answer", name) for name in ANSWERS] + [("draft", name) for name in STOPS]
    for number in range(tries) if only is None else [only]:
        draw = random.Random(f"{seed} {number}")
        where, name = kinds[number % len(kinds)]
        command = ANSWERS[name] if where == "answer" else STOPS[name][3]
        start = project
        if where == "draft":
            if name not in drafts:
                drafts[name] = stopped(project, scratch / f"stopped {name}", name)
            start = drafts[name]
        kind = f"{where}: {name}"
        if kind not in expected:
            sound = copied(start, scratch / "sound")
            ended = tried(lambda: answer(sound, command, scratch / "out"), seconds=600, more_mb=3000)  # noqa: B023
            assert ended.how == "done", (kind, ended)
            expected[kind] = ended.result
            _clear(scratch)
        each = copied(start, scratch / "sound")
        if where == "answer":
            choice = files_below(each.workspace, USED_BY[name] if draw.random() < 0.9 else ("",))
        else:
            left = [path for end in (".draft-*", ".work-*") for path in each.workspace.rglob(end)]
            choice = [path for folder in left for path in files_below(folder, ("",))]
        by_kind: dict[str, list[Path]] = defaultdict(list)
        for path in choice:
            by_kind[path.suffix + path.parent.name[:1]].append(path)
        file = draw.choice(by_kind[draw.choice(sorted(by_kind))])
        how = damage(file, draw)
        ended = tried(lambda: answer(each, command, scratch / "out"), seconds=SECONDS, more_mb=MORE_MB)  # noqa: B023
        outcome = outcome_of(ended, expected[kind])
        counts[kind][outcome] += 1
        if outcome.isupper() or only is not None:
            last = ended.told.strip().splitlines()[-1:] or [""]
            print(f"{number} {kind}, {how} in {file.relative_to(each.workspace)}: {outcome}: {last[0][:300]}")
        if only is not None:
            print(ended.told, json.dumps(ended.result, indent=1), json.dumps(expected[kind], indent=1), sep="\n")
        _clear(scratch)
    return counts


def _clear(scratch: Path) -> None:
    for name in ("sound", "out"):
        shutil.rmtree(scratch / name, ignore_errors=True)


def stopped(project: Path, to: Path, name: str) -> Path:
    """A copy of the project in which a stage was stopped before it had ended."""
    function, method, kind, command = STOPS[name]
    copy = copied(project, to)
    shutil.rmtree(copy.workspace / method / kind)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(function, stop)
        copy.lrls(*command)
    return to


if __name__ == "__main__":
    run_attack(attack, __doc__, "config", tries=260, on_project=True)
