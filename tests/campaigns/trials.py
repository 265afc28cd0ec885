"""A trial: a command in a fresh copy of its workspace, disturbed; then the same command undisturbed.

No trial waits for imports: this process imports everything once, and each command is a fork of it, under the library
of `faulty.c`. Pictures are tiny, and cases are worked on in the command's own process.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from campaigns.faulty import Fault, Faulty, read_trace
from campaigns.scenarios import Scenario, Workspaces
from conftest import MADE_UP, PICTURES, work_here

MOST_S = 900.0  # a command that takes longer hangs; others may share the processor
LEFT = re.compile(r"(^|/)(\.draft-[^/]*|\.work-[^/]*|\.lrls-tmp-[^/]*|\.[^/]*\.(tmp|old|draft)|lrls-pool-[^/]*)(/|$)")
IMPORTED = {  # by some commands only
    "preprocess rigid": ("ants",),
    "suggest-atlas": ("ants",),
    "predict dicom": ("highdicom",),
    "export onnx": ("onnx", "onnxruntime", "onnxscript", "torch.onnx"),
    "export monai": ("monai.bundle",),
}
EXISTS = re.compile(r"exists already|holds a cohort already")
HIDDEN = re.compile(r"/\.(?!\.?/)[A-Za-z0-9]|/tmp\w{8}\b")  # what no message may name


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: exit status; negative: by this signal; None: it hung.
    """

    code: int | None
    out: str
    err: str
    took_s: float

    @property
    def last(self) -> str:
        return (self.err.splitlines() or [""])[-1]


Snapshot = dict[str, str]
"""What a workspace holds: digests of artifacts by version, of files outside of the workspace by path."""


class Bench:
    """Runs trials below a folder of its own."""

    def __init__(self, folder: Path, faulty: Faulty, scenarios: Sequence[Scenario]) -> None:
        self.folder, self.faulty = folder, faulty
        self.trial = folder / "trial"
        self.workspaces = Workspaces(folder / "levels", self._made)
        (folder / "levels").mkdir(parents=True, exist_ok=True)
        import_everything()
        for module in {module for each in scenarios for module in IMPORTED.get(each.name, ())}:
            importlib.import_module(module)

    def fresh(self, scenario: Scenario) -> None:
        """A new copy for a trial, always at the same place."""
        self.copy(self.workspaces[scenario.level])

    def copy(self, level: Path) -> None:
        shutil.rmtree(self.trial, ignore_errors=True)
        shutil.copytree(level, self.trial, symlinks=True)
        (self.trial / "tmp").mkdir(exist_ok=True)

    def run(
        self, argv: list[str], *, fault: Fault | None = None, trace: Path | None = None, place: Path | None = None,
        disturb: Callable[[int], None] | None = None,
    ) -> Ended:  # fmt: skip
        """Run a command to its end.

        Args:
            place: its working folder; None: the trial.
            disturb: gets the process id once the command has begun.
        """
        place = place or self.trial
        (place / "tmp").mkdir(exist_ok=True)
        out, err = (self.folder / name for name in ("stdout", "stderr"))
        self.faulty.set(place, fault, trace)
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            _be_the_command(argv, place, out, err, self.faulty)
        if disturb:
            disturb(pid)
        code = _wait(pid, began + MOST_S)
        self.faulty.disarm()
        said = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
        return Ended(code, said[0], said[1], time.monotonic() - began)

    def snapshot(self) -> tuple[Snapshot, list[str]]:
        """What the trial holds, and what is wrong with it."""
        pid_file = self.folder / "snapshot"
        pid = os.fork()  # which keeps nothing of what it verified
        if not pid:
            _answer(pid_file, lambda: snapshot(self.trial))
        _wait(pid, time.monotonic() + MOST_S)
        found, wrong = json.loads(pid_file.read_text(encoding="utf-8"))
        return found, wrong

    def undisturbed(self, scenario: Scenario) -> Undisturbed:
        """The command without a fault, twice: what differs between both is not compared later."""
        self.fresh(scenario)
        before, _ = self.snapshot()
        found = []
        for number in range(2):
            self.fresh(scenario)
            trace = self.folder / f"trace{number}"
            trace.unlink(missing_ok=True)
            ended = self.run(scenario.argv, trace=trace)
            if ended.code != 0:
                raise SystemExit(f"{scenario.name} fails undisturbed ({ended.code}):\n{ended.out}{ended.err}")
            calls = self.faulty.calls
            now, wrong = self.snapshot()
            if wrong or left_behind(self.trial):
                raise SystemExit(f"{scenario.name} undisturbed: {[*wrong, *left_behind(self.trial)]}")
            found.append(now)
        first, second = found
        volatile = {name for name in first if first[name] != second.get(name)}
        return Undisturbed(
            before, second, volatile, read_trace(trace, self.trial) if trace.exists() else [], calls, ended.took_s,
            ended.out,
        )  # fmt: skip

    def _made(self, place: Path, argv: list[str]) -> None:
        ended = self.run(argv, place=place)
        if ended.code != 0:
            raise SystemExit(f"{' '.join(argv)} fails undisturbed ({ended.code}):\n{ended.out}{ended.err}")


@dataclass(frozen=True)
class Undisturbed:
    """What a command makes, and how.

    Args:
        before, after: the workspace.
        volatile: names whose content differs from run to run, such as times.
        calls: how many there are on the workspace's files.
        out: what it says.
    """

    before: Snapshot
    after: Snapshot
    volatile: set[str]
    trace: list[tuple[str, str]]
    calls: int
    took_s: float
    out: str

    def differing(self, now: Snapshot) -> list[str]:
        """What is not as an undisturbed command leaves it."""
        names = sorted(now.keys() ^ self.after.keys())
        return names + [n for n in self.after if n in now and n not in self.volatile and now[n] != self.after[n]]

    def halves(self, now: Snapshot) -> list[str]:
        """What is neither as it was before nor as it is when the command has ended."""
        told = []
        for name, digest in now.items():
            if name in self.volatile:
                continue
            if digest not in (self.before.get(name), self.after.get(name)):
                told.append(f"{name} is half-written" if name in self.after else f"{name} is there")
        return told + [f"{name} is gone" for name in self.before if name not in now and name in self.after]


def ended_well(ended: Ended, scenario: Scenario) -> list[str]:
    """What is wrong with how a command ended that a fault hit."""
    wrong = []
    if ended.code is None:
        return ["it hangs"]
    if ended.code not in (0, 1):
        wrong.append(f"exit status {ended.code}")
    both = ended.out + ended.err
    if "Traceback" in both or "Exception ignored" in both:
        wrong.append(f"a traceback: {ended.last}")
    lines = [line for line in ended.err.splitlines() if line.startswith("lrls: ")]
    if ended.code == 1 and len(lines) != 1 and not (scenario.told_by_scan and ended.out and not lines):
        wrong.append(f"{len(lines)} lines: {ended.err[-300:]!r}")
    if ended.code == 1 and lines and not (ended.last.startswith("lrls: ") and lines[-1].endswith(".")):
        wrong.append(f"the line is not the last one, or has no end: {ended.err[-300:]!r}")
    if ended.code == 0 and lines:
        wrong.append("exit status 0 with an error")
    wrong += [
        f"a hidden path: {line}"
        for line in both.splitlines()
        if line.startswith(("lrls: ", "case ")) and HIDDEN.search(line)
    ]
    return wrong


def resumed_well(bench: Bench, scenario: Scenario, undisturbed: Undisturbed) -> list[str]:
    """What is wrong once the same command has run again."""
    return again_well(bench, scenario, undisturbed, refuses=False)


def again_well(bench: Bench, scenario: Scenario, undisturbed: Undisturbed, *, refuses: bool) -> list[str]:
    """The same; what `refuses` to replace a finished file may say so."""
    again = bench.run(scenario.argv)
    now, wrong = bench.snapshot()
    if refuses and ("--force" in scenario.argv or (again.code == 1 and EXISTS.search(again.last))):
        pass
    elif again.code != 0:
        wrong.append(f"the same command ends with {again.code}: {again.last or again.out[-200:]}")
    else:
        wrong += [f"not as undisturbed: {name}" for name in undisturbed.differing(now)]
    return wrong + [f"left behind: {name}" for name in left_behind(bench.trial)]


def hinders_removal(fault: Fault, at: str) -> bool:
    """Whether a fault may leave a temporary file behind: it cannot be removed then."""
    return fault.kind == "remove" or "remove" in fault.lasting or at.startswith("/tmp/")


def left_behind(folder: Path) -> list[str]:
    """Unfinished and temporary files."""
    tops = {match[0].strip("/") for name in files_in(folder) if (match := LEFT.search(name))}
    return sorted(tops | {f"tmp/{path.name}" for path in (folder / "tmp").iterdir()})


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def snapshot(folder: Path) -> tuple[Snapshot, list[str]]:
    """What a workspace holds, each artifact verified."""
    from stages.artifacts.store import history, verify
    from stages.errors import LrlsError

    found: Snapshot = {}
    wrong: list[str] = []
    runs = folder / "runs"
    try:
        for version, manifest in history(runs):
            name = version.relative_to(folder).as_posix()
            try:
                verify(version)
            except LrlsError as error:
                wrong.append(f"{name}: {error}")
            found[name] = manifest.digest if manifest.identity.kind != "plan" else "plan"
    except LrlsError as error:
        wrong.append(str(error))
    for name in files_in(folder):
        path = folder / name
        if name.startswith(("runs", "tmp")) or LEFT.search(name) or not path.is_file():
            continue
        if not Path(name).name.startswith(".lock"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found, wrong


def _answer(file: Path, work: Callable[[], object]) -> None:
    try:
        file.write_text(json.dumps(work()), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _wait(pid: int, end: float) -> int | None:
    """The exit status of a child, negative for a signal; None: it was killed because it took too long."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


def _be_the_command(argv: list[str], place: Path, out: Path, err: Path, faulty: Faulty) -> None:
    """What the child does, as a process that a user starts would."""
    code = 1
    try:
        for number, path in ((1, out), (2, err)):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(file, number)
            os.close(file)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.chdir(place)
        os.environ["TMPDIR"] = tempfile.tempdir = str(place / "tmp")
        sys.argv = argv
        from lrls_cli.main import main

        faulty.arm()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        except BaseException:
            traceback.print_exc()
        faulty.disarm()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def import_everything() -> None:
    """What commands import, so that forks need not; what takes time and no part in writing files is replaced."""
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import SimpleITK
    import torch

    import lrls_cli.main  # noqa: F401
    import stages.planning.plans
    import stages.report
    import stages.report_unlabeled
    import stages.speed
    import stages.sweep
    import stages.workflow  # noqa: F401

    torch.set_num_threads(1)  # a process that has used several does not fork well
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])  # imports more

    patch = pytest.MonkeyPatch()
    for name in PICTURES:
        patch.setattr(f"stages.pictures.{name}", small_picture)
    work_here(patch)
    patch.setattr("stages.planning.plans.measure", lambda *_, **__: MADE_UP)
    patch.setattr("stages.speed._measured", lambda ways: ways[0])


def small_picture(*shown: object, **__: object) -> None:
    """A picture written as Matplotlib writes its own."""
    from PIL import Image

    (path,) = (each for each in shown if isinstance(each, Path))
    Image.new("L", (8, 8)).save(path)
