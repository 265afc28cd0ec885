"""Load: many scans, one large scan, a large report, two commands on one workspace, and an hour's work of one process.

    python docs/benchmarks/load.py --out load                       every part at full size: about 90 minutes on a core
    python docs/benchmarks/load.py --out load --part ct             one part
    python docs/benchmarks/load.py --out load --part ct --lrls ../before        of another checkout
    python docs/benchmarks/load.py --paper load/load.json           the tables again, from what was measured

many     `predict` of 1 000 small scans by one command: memory and seconds a scan, from the first tenth to the last
ct       one CT of 512 x 512 x 600 through `check`, `preprocess` and `predict`: peak memory by stage
report   500 scored scans in one report: time, sizes
two      the same command twice at once on one workspace: both finish or one says who has the lock; digests
soak     one process that predicts a few scans over and over: memory, open files, temporary files

Memory is what all processes of a command hold together, sampled ten times a second: resident sets, so that pages that
two of them share count twice. Scans are phantoms. What is measured is written to load.json after each part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import SimpleITK as sitk
from load_kit import LRLS, MIB, ROOT, SETTINGS, Load, digests, files_in, opens, tenths, watched, write_ct


def many(load: Load, args: argparse.Namespace) -> dict[str, Any]:
    model, new, out = args.model or load.model(), load.out / "new", load.out / "many"
    folder, cases, _ = load.phantoms(4)
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for number in range(args.scans):
        shutil.copy(folder / "images" / f"{cases[number % len(cases)]}.nii.gz", new / f"scan_{number:05d}.nii.gz")
    records = out / ".lrls"

    def done() -> int:
        return max(0, len(os.listdir(records)) - 1) if records.is_dir() else 0

    ran = load.run("predict", str(model), str(new), "--out", str(out), progress=done)
    rows = tenths(ran.samples, args.scans)
    again = load.run("predict", str(model), str(new), "--out", str(out))
    return {
        "scans": args.scans, "wall_s": round(ran.wall_s, 1), "s_a_scan": round(ran.wall_s / args.scans, 3),
        "tenths": rows, "answers": len(list(out.glob("*.nii.gz"))), "temporary_files_left": load.left(),
        "again_s": round(again.wall_s, 1), "again_peak_mib": round(again.peak_mib, 1),
    }  # fmt: skip


def ct(load: Load, args: argparse.Namespace) -> dict[str, Any]:
    _, _, structures = load.phantoms(4)
    data = load.out / ("ct_" + "x".join(map(str, args.size)))
    if not (data / "labels" / "large.nii.gz").exists():
        write_ct(data, "small", [max(8, n // 8) for n in args.size], 1)
        write_ct(data, "large", args.size, 0)
    parts = {"folder": str(data), "atlases": ["large"], "unlabeled": ["small"]}
    window = {"method": "window", "window": [-200, 300]} if args.window else {"method": "percentiles"}
    preprocess = SETTINGS["preprocess"] | {"max_voxels": args.voxels, "intensity": window}  # type: ignore[operator]
    name = f"ct_{load.lrls.name}"
    shutil.rmtree(load.out / name, ignore_errors=True)
    config = load.project(name, parts, structures=structures, preprocess=preprocess)
    new = data / "new"
    new.mkdir(exist_ok=True)
    if not (new / "large.nii.gz").exists():
        shutil.copy(data / "images" / "large.nii.gz", new / "large.nii.gz")
    out = load.out / name / "answers"
    commands = {
        "check": ["check", str(config)], "preprocess": ["preprocess", str(config)],
        "train-seg": ["run", str(config), "--method", "unet", "--until", "train-seg"],
        "predict": ["predict", str(config), str(new), "--method", "unet", "--out", str(out)],
    }  # fmt: skip
    rows = []
    for stage, command in commands.items():
        ran = load.run(*command)
        rows.append({"stage": stage, "wall_s": round(ran.wall_s, 1), "peak_mib": round(ran.peak_mib, 1)})
    return {
        "size": list(args.size), "float32_mib": round(float(np.prod(args.size)) * 4 / MIB, 1), "stages": rows,
        "digests": digests(load.out / name / "runs") | files_in(out), "temporary_files_left": load.left(),
    }  # fmt: skip


def report(load: Load, args: argparse.Namespace) -> dict[str, Any]:
    folder, cases, structures = load.phantoms(4)
    data = load.out / "scored"
    shutil.rmtree(data, ignore_errors=True)
    tests = [f"test_{number:04d}" for number in range(args.reported)]
    first = cases[0]
    for kind in ("images", "labels"):
        (data / kind).mkdir(parents=True)
        shutil.copy(folder / kind / f"{first}.nii.gz", data / kind)
    shutil.copy(folder / "images" / f"{cases[1]}.nii.gz", data / "images")
    for number, case in enumerate(tests):  # no two alike, as a scan in two parts is refused
        image = sitk.ReadImage(str(folder / "images" / f"{cases[-1]}.nii.gz"))
        image[0, 0, 0] = number + 1
        sitk.WriteImage(image, str(data / "images" / f"{case}.nii.gz"))
        shutil.copy(folder / "labels" / f"{cases[-1]}.nii.gz", data / "labels" / f"{case}.nii.gz")
    parts = {"folder": str(data), "atlases": [first], "unlabeled": [cases[1]], "test": tests}
    shutil.rmtree(load.out / "reporting", ignore_errors=True)
    config = load.project("reporting", parts, structures=structures)
    scored = load.run("run", str(config), "--method", "affine")
    out = load.out / "reporting" / "report"
    ran = load.run("report", str(config), "--method", "affine", "--out", str(out))
    sizes = [file.stat().st_size for file in out.rglob("*") if file.is_file()]
    return {
        "scans": args.reported, "scored_s": round(scored.wall_s, 1), "scored_peak_mib": round(scored.peak_mib, 1),
        "report_s": round(ran.wall_s, 1), "report_peak_mib": round(ran.peak_mib, 1),
        "index_mb": round((out / "index.html").stat().st_size / 1e6, 2), "folder_mb": round(sum(sizes) / 1e6, 1),
        "files": len(sizes), "opens": opens(out / "index.html"),
    }  # fmt: skip


def two(load: Load, args: argparse.Namespace) -> dict[str, Any]:
    folder, cases, structures = load.phantoms(12)
    parts = {"folder": str(folder), "atlases": cases[:1], "unlabeled": cases[1:-6]}
    found: dict[str, Any] = {"rounds": args.rounds, "finished": 0, "locked": [], "same": True}
    expected: dict[str, str] = {}
    for number in range(args.rounds + 1):
        name = f"two_{number}"
        shutil.rmtree(load.out / name, ignore_errors=True)
        config = load.project(name, parts, structures=structures)
        command = ["run", str(config), "--method", "unet", "--until", "train-seg"]
        pipes: Any = {"env": load.environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        alone = number == 0  # the first round, whose digests are those of all others
        started = [subprocess.Popen([*LRLS, *command], **pipes) for _ in range(1 if alone else 2)]
        for process in started:
            said, _ = process.communicate()
            last = said.strip().splitlines()[-1] if said.strip() else ""
            if process.returncode == 0:
                found["finished"] += not alone
            elif not alone and said.count("Traceback") == 0 and "another lrls process is writing in" in last:
                found["locked"].append(last)
            else:
                sys.exit(f"one of two commands ended with {process.returncode}: {said[-500:]}")
        made = digests(load.out / name / "runs")
        expected = expected or made
        found["same"] &= made == expected
    found["temporary_files_left"] = load.left()
    return found


def soaking(model: str, scans: Sequence[str], out: Path, minutes: float, log: Path) -> None:
    """Predict scans over and over in this process, and write what it holds after each turn."""
    sys.path.append(str(ROOT))  # behind the checkout that is measured
    from stages.answering.exported import open_model
    from stages.predict import predict

    opened, process, began = open_model(Path(model)), psutil.Process(), time.monotonic()
    with log.open("w") as file:
        while (at_s := time.monotonic() - began) < 60 * minutes:
            shutil.rmtree(out, ignore_errors=True)
            failures = predict(opened, [Path(scan) for scan in scans], out, tell=lambda _: None)
            kept = sum(len(files) for _, _, files in os.walk(os.environ["TMPDIR"]))
            held, files = watched(os.getpid())
            row = [at_s, held, files, len(process.children()), process.num_threads(), kept, len(failures)]
            file.write(json.dumps(row) + "\n")
            file.flush()


def soak(load: Load, args: argparse.Namespace) -> dict[str, Any]:
    model = args.model or load.model()
    folder, cases, _ = load.phantoms(4)
    scans, log = [str(folder / "images" / f"{case}.nii.gz") for case in cases[:2]], load.out / "soak.jsonl"
    given = json.dumps([str(model), scans, str(load.out / "soaked"), args.minutes, str(log)])
    command = [sys.executable, __file__, "--soaking", given]
    done = subprocess.run(command, env=load.environment, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"the soak ended with {done.returncode}: {done.stderr[-500:]}")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return soaked(rows, len(scans)) | {"minutes": args.minutes, "temporary_files_left": load.left()}


def soaked(rows: Sequence[Sequence[float]], scans: int) -> dict[str, Any]:
    """Means over the first and the last quarter of the turns, without the first few, in which libraries load."""
    names = ("at_s", "mib", "files", "children", "threads", "temporary_files", "failures")
    settled = rows[min(len(rows) // 10, 5) :]
    quarter = max(1, len(settled) // 4)
    parts = {"first_quarter": settled[:quarter], "last_quarter": settled[-quarter:]}
    means = {
        part: {name: round(float(np.mean([row[k] for row in some])), 1) for k, name in enumerate(names)}
        for part, some in parts.items()
    }
    failures, peak = sum(row[-1] for row in rows), round(max(row[1] for row in rows), 1)
    return {"turns": len(rows), "scans": scans * len(rows), "failures": failures, "peak_mib": peak} | means


PARTS: dict[str, Callable[[Load, argparse.Namespace], dict[str, Any]]] = {
    "many": many, "ct": ct, "report": report, "two": two, "soak": soak,
}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """What was measured, for people."""
    lines = []
    for part, values in found.items():
        lines += [f"{part}: " + ", ".join(f"{k} {v}" for k, v in values.items() if not isinstance(v, list | dict)), ""]
        for name, rows in values.items():
            if isinstance(rows, list) and rows and isinstance(rows[0], dict):
                lines += ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
                lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows] + [""]
            elif isinstance(rows, dict) and name != "digests":
                lines += [f"{name}: " + ", ".join(f"{key} {value}" for key, value in rows.items()), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("load"))
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--lrls", type=Path, default=ROOT, help="folder of the checkout to measure")
    parser.add_argument("--scans", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 600))
    parser.add_argument("--voxels", type=int, default=200_000, help="of the CT's grid, at most")
    parser.add_argument("--window", action="store_true", help="of the CT: a fixed window in place of percentiles")
    parser.add_argument("--reported", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", type=Path, help="an exported model to use; default: one of few steps is trained")
    parser.add_argument("--soaking", help=argparse.SUPPRESS)
    parser.add_argument("--paper", type=Path, help="print the tables of an earlier run")
    args = parser.parse_args()
    if args.paper:
        print(table(json.loads(args.paper.read_text(encoding="utf-8"))))
        return
    if args.soaking:
        model, scans, out, minutes, log = json.loads(args.soaking)
        soaking(model, scans, Path(out), minutes, Path(log))
        return
    load, file = Load(args.out.resolve(), args.lrls.resolve()), args.out / "load.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for part in args.part or PARTS:
        found[part] = PARTS[part](load, args)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(table({part: found[part]}), flush=True)


if __name__ == "__main__":
    main()
