"""Cases on two Dask workers against one and two local processes; kills; memory; and a cluster's time on paper.

    python docs/benchmarks/dask_cases.py --out dask              about 10 minutes on two idle cores
    python docs/benchmarks/dask_cases.py --out dask --part kills --scans 6      one part, shrunken
    python docs/benchmarks/dask_cases.py --paper dask/dask.json  the tables again, from what was measured

Without `--data` the scans are phantoms; with it, images of a folder, `images/` and `labels/` as `lrls init` knows
them, its first one the atlas (`--labels` has the label values). Every measurement is a command as a user types it.

speed    `preprocess`, `generate` and `predict` of all scans but the atlas: one local process, two, two Dask workers
kills    the same by Dask, with kill -9 of workers at ten random moments: digests must be those of the local run
memory   `predict` of many scans by Dask: memory of the command, by the share of scans that are done
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
KILLS = 10
WAYS = ("one local process", "two local processes", "two Dask workers")
STAGES = ("preprocess", "generate", "predict")
SETTINGS = {  # small, so that what is not the cases' own work shows
    "seed": 0, "device": "cpu", "precision": "fp32", "threads": 1,
    "preprocess": {"align": "rigid", "max_voxels": 40_000},
    "train_seg": {"steps": 5},
    "methods": {"unet": {"segmentation_network": "light"}},
}  # fmt: skip


class Bench:
    """Scans, a configuration and a trained network, in a folder of their own."""

    def __init__(self, out: Path, data: Path | None, labels: list[int], scans: int) -> None:
        self.out = out
        self.data = data or out / "phantoms"
        structures: dict[str, Any] = {f"label_{value}": value for value in labels}
        if data is None:
            sys.path.insert(0, str(ROOT))
            from stages.data.phantoms import STRUCTURES, write_phantoms

            write_phantoms(self.data, scans=scans + 1, force=True)
            structures = STRUCTURES
        images = sorted((self.data / "images").glob("*.nii.gz"))[: scans + 1]
        self.images, cases = images[1:], [image.name.removesuffix(".nii.gz") for image in images]
        part = {"folder": str(self.data), "atlases": cases[:1], "unlabeled": cases[1:]}
        config = SETTINGS | {"workspace": "unset", "data": part, "structures": structures}
        (out / "lrls.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def command(self, stage: str, workspace: str, way: list[str]) -> list[str]:
        where = ["--set", f"workspace={self.out / workspace}"]
        config = str(self.out / "lrls.yaml")
        if stage == "predict":
            images, answers = map(str, self.images), str(self.out / workspace / "answers")
            return ["predict", config, *images, "--method", "unet", "--out", answers, *where, *way]
        method = [] if stage == "preprocess" else ["--method", "syn" if stage == "generate" else "unet"]
        return [stage, config, *method, *where, *way]

    def answers(self, workspace: str) -> dict[str, str]:
        """Digests of everything that was written: artifacts by content, answers by bytes."""
        found = {}
        for manifest in sorted((self.out / workspace).glob("**/v0*/artifact.json")):
            name = manifest.parent.relative_to(self.out / workspace).as_posix()
            found[name] = json.loads(manifest.read_text(encoding="utf-8"))["digest"]
        for file in sorted((self.out / workspace / "answers").glob("[!.]*.*")):
            found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        return found


class Ran:
    """What a command took: wall time, its own processor time, and its memory as it went on."""

    def __init__(self, command: list[str], done: Path | None = None, disturb: Any = None) -> None:
        self.memory: list[tuple[int, float]] = []  # files that are done, and MiB
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        self.process = subprocess.Popen([sys.executable, "-m", "lrls_cli.main", *command], env=environment)
        stop = threading.Event()
        helper = threading.Thread(target=disturb, args=(stop,)) if disturb else None
        if helper:
            helper.start()
        watched = psutil.Process(self.process.pid)
        self.cpu_s = 0.0
        while self.process.poll() is None:
            try:
                times = watched.cpu_times()
                self.cpu_s = times.user + times.system
                if done:
                    self.memory.append((len(list(done.glob("*.nii.gz"))), watched.memory_info().rss / 2**20))
            except psutil.Error:
                break
            time.sleep(0.2)
        self.code = self.process.wait()
        self.wall_s = time.monotonic() - began
        stop.set()
        if helper:
            helper.join()


@contextmanager
def workers(out: Path, number: int = 2) -> Iterator[tuple[Path, psutil.Process]]:
    """A scheduler and workers, as `docs/cluster.md` says: the scheduler's file, and the process that starts workers."""
    file = out / "scheduler.json"
    file.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    common = ["--scheduler-file", str(file), "--dashboard-address", ":0", "--host", "127.0.0.1"]
    of_worker = ["--nworkers", str(number), "--nthreads", "1", "--local-directory", str(out / "dask-space")]
    with (out / "dask.log").open("w") as log:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *common, *options],
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )
            for kind, options in (("scheduler", ["--port", "0"]), ("worker", of_worker))
        ]  # fmt: skip
    try:
        while len(of_workers(psutil.Process(started[1].pid))) < number or not file.exists():
            time.sleep(0.2)
        yield file, psutil.Process(started[1].pid)
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def of_workers(starter: psutil.Process) -> list[psutil.Process]:
    """The worker processes, which `dask worker` starts again if they die."""
    return [child for child in starter.children() if any("spawn_main" in part for part in child.cmdline())]


def killer(starter: psutil.Process, moments: list[float], killed: list[float]) -> Any:
    """Kills a random worker at moments (s after the start)."""

    def disturb(stop: threading.Event) -> None:
        began = time.monotonic()
        for moment in sorted(moments):
            if stop.wait(max(0.0, moment - (time.monotonic() - began))):
                return
            while not (alive := of_workers(starter)):  # the last one killed is being started again
                if stop.wait(0.1):
                    return
            random.choice(alive).kill()
            killed.append(round(time.monotonic() - began, 1))

    return disturb


def speed(bench: Bench, scheduler: Path) -> dict[str, Any]:
    options = (["--set", "preprocess.workers=1"], ["--set", "preprocess.workers=2"], ["--scheduler", str(scheduler)])
    found: dict[str, Any] = {"cases": len(bench.images), "wall_s": {}, "cpu_s": {}, "same": True}
    for place, way in enumerate(WAYS):
        for stage in STAGES:
            if stage == "predict":
                Ran(bench.command("train-seg", f"way{place}", []))  # a network of few steps
            ran = Ran(bench.command(stage, f"way{place}", options[place]))
            if ran.code:
                sys.exit(f"{stage} by {way} failed.")
            found["wall_s"].setdefault(stage, {})[way] = round(ran.wall_s, 2)
            found["cpu_s"].setdefault(stage, {})[way] = round(ran.cpu_s, 2)
        found["same"] &= bench.answers(f"way{place}") == bench.answers("way0")
    found["start_s"] = round(Ran(bench.command("preprocess", "way0", [])).wall_s, 2)  # of a command with nothing to do
    found["bytes"] = bytes_of(bench, "way0")
    found["empty"] = empty(bench, scheduler)
    return found


def empty(bench: Bench, scheduler: Path, cases: int = 200) -> dict[str, float]:
    """Seconds a case that does nothing takes: on the wall, with two workers, and of this process."""
    sys.path.insert(0, str(ROOT))
    from stages.compute_settings import ComputeSettings
    from stages.dask_cases import OnDask
    from stages.dask_clusters import disconnect

    with OnDask(ComputeSettings(cases="dask", scheduler=str(scheduler)), [("--out", bench.out)]) as on_dask:
        list(on_dask.each(abs, [(place,) for place in range(4)]))  # starts the processes beside the workers
        wall_s, cpu_s = time.monotonic(), time.process_time()
        list(on_dask.each(abs, [(place,) for place in range(cases)]))
        wall_s, cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
    disconnect()
    return {"wall_s": round(wall_s / cases, 4), "cpu_s": round(cpu_s / cases, 4)}


def bytes_of(bench: Bench, workspace: str) -> dict[str, Any]:
    """Bytes a case that are read and written, and the voxels of the grid."""
    folder, cases = bench.out / workspace, len(bench.images)

    def each(pattern: str) -> float:
        return sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file()) / cases

    cohort, generated = each("cohort/v0001/*.h5"), each("syn/generated/v0001/*.h5")
    grid = json.loads((folder / "cohort" / "v0001" / "cohort.json").read_text(encoding="utf-8"))["grid"]
    scan = sum(image.stat().st_size for image in bench.images) / cases
    return {  # predict also reads scans for their digests; what is generated is written once more, to resume from
        "voxels": grid["shape"],
        "read": {"preprocess": scan, "generate": cohort, "predict": 2 * scan},
        "written": {
            "preprocess": 2 * cohort,
            "generate": 2 * generated,
            "predict": each("answers/**/*"),
        },
    }


def kills(bench: Bench, scheduler: Path, starter: psutil.Process, undisturbed: dict[str, float]) -> dict[str, Any]:
    killed: dict[str, list[float]] = {}
    for number, stage in zip((3, 3, KILLS - 6), STAGES, strict=True):
        if stage == "predict":
            Ran(bench.command("train-seg", "killed", []))
        seconds = undisturbed.get(stage, 30.0)
        moments = [random.uniform(0.2, 0.9) * seconds for _ in range(number)]
        disturb = killer(starter, moments, killed.setdefault(stage, []))
        ran = Ran(bench.command(stage, "killed", ["--scheduler", str(scheduler)]), disturb=disturb)
        if ran.code:
            return {"killed_at_s": killed, "same": False, "failed": stage}
    return {"killed_at_s": killed, "same": bench.answers("killed") == bench.answers("way0")}


def memory(bench: Bench, scheduler: Path, many: int) -> dict[str, Any]:
    folder, answers = bench.out / "many", bench.out / "many-answers"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(answers, ignore_errors=True)
    folder.mkdir()
    for place in range(many):
        os.link(bench.images[place % len(bench.images)], folder / f"scan_{place:05d}.nii.gz")
    config = [str(bench.out / "lrls.yaml"), "--set", f"workspace={bench.out / 'way0'}", "--method", "unet"]
    ran = Ran(["predict", config[0], str(folder), *config[1:], "--out", str(answers), "--scheduler", str(scheduler)],
              done=answers)  # fmt: skip
    early = [mib for number, mib in ran.memory if number <= many // 2]
    late = [mib for number, mib in ran.memory if number > many // 2]
    return {
        "scans": many,
        "code": ran.code,
        "wall_s": round(ran.wall_s, 1),
        "answered": len(list(answers.glob("*.nii.gz"))),
        "peak_mib_first_half": round(max(early, default=0)),
        "peak_mib_second_half": round(max(late, default=0)),
    }


# Tables


def table(found: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = []
    if "speed" in found:
        part = found["speed"]
        lines += [f"{part['cases']} scans; wall time (s), and speed-up against one local process", ""]
        lines += ["| | " + " | ".join(WAYS) + " | Dask's speed-up / two processes' | overhead a case (s) |"]
        lines += ["|---" * 6 + "|"]
        for stage, wall in part["wall_s"].items():
            one, two, dask = (wall[way] for way in WAYS)
            cells = [f"{wall[way]:.1f} ({one / wall[way]:.2f} x)" for way in WAYS]
            overhead = (dask - two) * 2 / part["cases"]
            lines.append(f"| `{stage}` | " + " | ".join(cells) + f" | {two / dask:.2f} | {overhead:+.3f} |")
        wall_ms, cpu_ms = (1000 * part["empty"][name] for name in ("wall_s", "cpu_s"))
        lines += [
            "",
            f"A case that does nothing takes {wall_ms:.0f} ms, {cpu_ms:.0f} ms of them the command's own work.",
        ]
        lines += ["", f"The same files, whatever worked on them: {'yes' if part['same'] else 'NO'}."]
    if "kills" in found:
        moments = sum(map(len, found["kills"]["killed_at_s"].values()))
        same = "yes" if found["kills"]["same"] else "NO"
        lines.append(f"kill -9 of a worker at {moments} random moments: the same files: {same}.")
    if "memory" in found:
        part = found["memory"]
        halves = [part[f"peak_mib_{half}_half"] for half in ("first", "second")]
        lines.append(
            f"{part['answered']} of {part['scans']} scans predicted: the command's memory peaks at {halves[0]} MiB in "
            f"the first half and at {halves[1]} MiB in the second."
        )
    return "\n".join(lines)


def paper(found: dict[str, Any], *, cores: int, grid_voxels: int, disk_bytes_s: float) -> str:
    """2 000 and 50 000 scans on 1, 10 and 100 nodes: what limits, from the measured parts, as Markdown.

    A case's seconds and bytes grow with the voxels of the grid. Three things run side by side, and the slowest one
    says how long it takes: workers (seconds of a case by one local process, less those of starting), the command
    itself (its own processor seconds a case by Dask; it also receives what comes back and writes artifacts; what an
    empty case costs it does not grow) and the file system.
    """
    part = found["speed"]
    voxels = part["bytes"]["voxels"]
    scale = grid_voxels / (voxels[0] * voxels[1] * voxels[2])
    one, _, dask = WAYS
    cases = part["cases"]
    lines = [
        f"{cores} cores a node, one worker a core; a grid of {grid_voxels} voxels; a file system of "
        f"{disk_bytes_s / 1e9:g} GB/s; a case's costs grow {scale:.1f} times with the voxels.",
        "",
        "| | scans | nodes | wall time | read | written | what limits |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        case_s = max(part["wall_s"][stage][one] - part["start_s"], 0.0) / cases * scale
        client_s = max(part["cpu_s"][stage][dask] - part["start_s"], 0.0) / cases
        if stage != "predict":  # whose answers stay on the workers
            fixed_s = min(client_s, part["empty"]["cpu_s"])
            client_s = fixed_s + (client_s - fixed_s) * scale
        read, written = (part["bytes"][way][stage] * scale for way in ("read", "written"))
        for scans in (2000, 50_000):
            for nodes in (1, 10, 100):
                limits = {
                    "the workers": scans * case_s / (cores * nodes),
                    "the command": scans * client_s,
                    "the file system": scans * (read + written) / disk_bytes_s,
                }
                limit, seconds = max(limits.items(), key=lambda item: item[1])
                sizes = " | ".join(f"{scans * size / 1e9:.3g} GB" for size in (read, written))
                lines.append(f"| `{stage}` | {scans} | {nodes} | {duration(seconds)} | {sizes} | {limit} |")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for scans, workspaces and dask.json")
    parser.add_argument("--data", type=Path, help="folder with images/ and labels/; default: phantoms are made")
    parser.add_argument("--labels", type=int, nargs="+", default=[1], help="with --data: label values")
    parser.add_argument("--part", choices=["speed", "kills", "memory"], action="append", help="default: all")
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--many", type=int, default=300)
    parser.add_argument("--paper", type=Path, help="only print the tables of this dask.json")
    parser.add_argument("--cores", type=int, default=32, help="of a node, on paper")
    parser.add_argument("--grid-voxels", type=int, default=1_500_000, help="on paper; the default of max_voxels")
    parser.add_argument("--disk-gb-s", type=float, default=1.0, help="of the file system, on paper")
    asked = parser.parse_args()
    on_paper = {"cores": asked.cores, "grid_voxels": asked.grid_voxels, "disk_bytes_s": asked.disk_gb_s * 1e9}
    if asked.paper:
        found = json.loads(asked.paper.read_text(encoding="utf-8"))
        print(table(found), paper(found, **on_paper), sep="\n\n")
        return
    if asked.out is None:
        parser.error("--out is missing")
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("way*"), out.glob("killed"):
        for workspace in old:
            shutil.rmtree(workspace)
    random.seed(0)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that workers end, too
    parts = asked.part or ["speed", "kills", "memory"]
    bench = Bench(out, asked.data, asked.labels, asked.scans)
    found: dict[str, Any] = {}

    def keep(part: str, measured: dict[str, Any]) -> None:
        found[part] = measured
        (out / "dask.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    with workers(out) as (scheduler, starter):
        if "speed" in parts:
            keep("speed", speed(bench, scheduler))
        else:  # what the other parts compare with, and the network
            for stage in ("preprocess", "generate", "train-seg", "predict"):
                Ran(bench.command(stage, "way0", ["--set", "preprocess.workers=2"]))
        if "kills" in parts:
            wall = found.get("speed", {}).get("wall_s", {})
            keep("kills", kills(bench, scheduler, starter, {stage: wall[stage][WAYS[2]] for stage in wall}))
        if "memory" in parts:
            keep("memory", memory(bench, scheduler, asked.many))
    print(table(found), *([paper(found, **on_paper)] if "speed" in parts else []), sep="\n\n")


if __name__ == "__main__":
    main()
