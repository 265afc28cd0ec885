"""A stage may be killed at any moment: nothing half done is ever seen, and the same command ends with the same content.

So that no kill waits for imports, this file is also a program: it imports everything once and forks a child per run
(`python test_kills.py PROJECT SCRATCH`, see `drive`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, draw_no_pictures

from stages.artifacts.files import temporary_of
from stages.artifacts.manifest import MANIFEST
from stages.artifacts.store import history, verify, versions

TENTHS = 10
IN_FINAL_WRITE = 6  # kills from the moment that artifact.json is opened
JOBS = 2  # at a time
STAGES = {
    "preprocess": ("cohort", "preprocess"),
    "train-reg": ("brbs/registration", "train-reg", "--method", "brbs"),
    "generate": ("brbs/generated", "generate", "--method", "brbs"),
    "generate-propagated": ("voxelmorph/generated", "generate", "--method", "voxelmorph"),
    "train-seg": ("brbs/segmentation", "train-seg", "--method", "brbs"),
    "eval": ("brbs/scores", "eval", "--method", "brbs"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, new_project, no_pictures_in_module) -> Project:
    """A workspace with everything that any of the stages reads."""
    training = {"steps": 4, "checkpoint_steps": 2, "ema": 0.5}
    settings = {"train_reg": training, "train_seg": training, "generate": {"samples": 3}}
    small = {"shape": [16, 16, 16], "spacing_mm": 3.0}
    project = new_project(tmp_path_factory.mktemp("finished"), preprocess=small, **settings)
    project.made("run", "--method", "brbs")
    project.made("run", "--method", "voxelmorph", "--until", "train-reg")
    return project


@pytest.fixture(scope="module")
def told(finished, tmp_path_factory) -> Path:
    """Folder with what `drive` found out, a JSON file per stage."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    scratch = tmp_path_factory.mktemp("kills")
    driver = [sys.executable, __file__, str(finished.folder), str(scratch)]
    done = subprocess.run(driver, capture_output=True, encoding="utf-8", timeout=600, check=False)
    (scratch / "errors.txt").write_text(done.stderr)
    return scratch


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_any_moment_is_finished_by_the_same_command(stage, told):
    assert (told / f"{stage}.json").exists(), (told / "errors.txt").read_text()
    undisturbed, kills = json.loads((told / f"{stage}.json").read_text())

    assert undisturbed == {"ended": "finished", "versions": ["v0001"], "drafts": [], "digest": undisturbed["digest"]}
    assert len(kills) == TENTHS + IN_FINAL_WRITE
    for moment, outcome in kills.items():
        assert outcome == undisturbed, f"killed at {moment}\n{(told / 'errors.txt').read_text()}"


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from stages.processes import in_processes

def work(file):
    Path(file).with_suffix(".tmp").write_text(str(os.getpid()))
    os.rename(Path(file).with_suffix(".tmp"), file)
    time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background begins without
    try:
        list(in_processes(work, [(sys.argv[1],)]))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_no_process_behind(how, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    file = tmp_path / "pid"
    command = [sys.executable, str(tmp_path / "program.py"), str(file)]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True)
    wait_until(file.exists)
    worker = int(file.read_text())
    try:
        if how == signal.SIGINT:  # a terminal sends it to all
            os.killpg(program.pid, how)
        else:
            program.kill()
        assert program.wait(120) == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[how]
        wait_until(lambda: not is_running(worker))
    finally:
        program.kill()
        if is_running(worker):
            os.kill(worker, signal.SIGKILL)
    assert "Traceback" not in program.communicate()[1]


def wait_until(condition: Callable[[], bool], most_s: float = 120.0) -> None:
    end = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# The program


def drive(project: Path, scratch: Path) -> None:
    """Run every stage undisturbed, then kill it at many moments and run it again; write `<stage>.json`.

    Args:
        project: a finished one; every run gets a copy that lacks what the stage makes.
        scratch: folder for the copies.
    """
    import_everything()
    for stage in STAGES:
        before = scratch / stage / "before"
        shutil.copytree(project, before)
        shutil.rmtree(before / "runs" / STAGES[stage][0], ignore_errors=True)
        if stage == "preprocess":
            shutil.rmtree(before / "runs" / ".scans")  # nothing is known of the scans
        jobs = [fork(lambda number=number, stage=stage: job(number, scratch / stage, stage)) for number in range(JOBS)]
        if any([os.waitpid(pid, 0)[1] for pid in jobs]):
            continue
        told = [json.loads((scratch / stage / f"{number}.json").read_text()) for number in range(JOBS)]
        undisturbed, kills = told[0]
        for other, more in told[1:]:
            if other == undisturbed:  # else: kills will be missing
                kills |= more
        (scratch / f"{stage}.json").write_text(json.dumps([undisturbed, kills]))


def import_everything() -> None:
    """What a stage imports; pictures and processes, which take time and belong to other tests, are replaced."""
    import monai.metrics  # noqa: F401
    import torch

    import stages.processes
    import stages.workflow

    torch.set_num_threads(1)  # a process that has used several does not fork well
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])  # imports more

    draw_no_pictures(pytest.MonkeyPatch())
    stages.processes.Processes.each = lambda _, function, arguments, **broken: (function(*each) for each in arguments)


def job(number: int, scratch: Path, stage: str) -> None:
    """One undisturbed run, and every `JOBS`th of the kills."""
    target, *command = STAGES[stage]

    def copy(name: str) -> Project:
        shutil.rmtree(scratch / f"{name}_{number}", ignore_errors=True)
        shutil.copytree(scratch / "before", scratch / f"{name}_{number}")
        return Project(scratch / f"{name}_{number}")

    undisturbed = copy("undisturbed")
    seen = scratch / f"events_{number}.json"
    began = time.monotonic()
    os.waitpid(fork(lambda: run(undisturbed, command, seen=seen)), 0)
    took_s = time.monotonic() - began
    outcome = finish(undisturbed, target, command)

    events = json.loads(seen.read_text())
    first = next(place for place, event in enumerate(events) if temporary_of(Path(MANIFEST)).name in event)
    last = max(place for place, event in enumerate(events) if ".draft-" in event) + 1  # just renamed
    final = [first + round(k * (last - first) / (IN_FINAL_WRITE - 1)) for k in range(IN_FINAL_WRITE)]
    moments: list[float | int] = [(k + 0.5) / TENTHS * took_s for k in range(TENTHS)] + final
    kills = {}
    for place in range(number, len(moments), JOBS):
        name = f"tenth {place}" if place < TENTHS else f"{place - TENTHS}: {events[final[place - TENTHS]]}"
        while not kill(copy("killed"), command, moments[place]):
            moments[place] *= 0.9  # the run had ended before
        project = Project(scratch / f"killed_{number}")
        for folder, _ in history(project.workspace):
            verify(folder)
        kills[name] = finish(project, target, command)
    (scratch / f"{number}.json").write_text(json.dumps([outcome, kills]))


def kill(project: Project, command: list[str], moment: float | int) -> bool:
    """Kill a run after so many seconds (float) or before the event of that number (int); whether it had not ended."""
    by_event = isinstance(moment, int)
    pid = fork(lambda: run(project, command, kill_at=moment if by_event else None))
    if not by_event:
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def finish(project: Project, target: str, command: list[str]) -> dict[str, Any]:
    """Run the command to its end; what the target then holds."""
    status = os.waitpid(fork(lambda: run(project, command)), 0)[1]
    folder = project.workspace / target
    found = versions(folder)
    for each in found:
        verify(each)
    return {
        "ended": "finished" if status == 0 else f"status {status}",
        "versions": [each.name for each in found],
        "drafts": [each.name for each in folder.glob(".draft-*")],
        "digest": project.digests()[f"{target}/{found[-1].name}"] if found else "",
    }


def run(project: Project, command: list[str], *, kill_at: int | None = None, seen: Path | None = None) -> None:
    """Run the command in this process; kill it before the event `kill_at`, or write all events to `seen`.

    An event is a call that opens, renames or removes something in the workspace.
    """
    events: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            text = f"{event} {arguments}"
            if str(project.workspace) in text:
                if len(events) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                events.append(text.replace(str(project.workspace), ""))

    sys.addaudithook(hook)
    project.made(*command)
    if seen:
        seen.write_text(json.dumps(events))


def fork(work: Callable[[], None]) -> int:
    """Do the work in a child and return its process id; its status is 0 if nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    drive(Path(sys.argv[1]), Path(sys.argv[2]))
