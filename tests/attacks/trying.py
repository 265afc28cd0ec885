"""What the attack programs share: each try runs in a forked child under a limit of time and memory."""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Ended:
    """How a try ended: "done" with a result, "refused" with a line, "traceback", "hang", "killed" or "memory"."""

    how: str
    told: str = ""
    result: Any = None
    memory_mb: float = 0.0
    seconds: float = 0.0


def import_everything() -> None:
    """What commands import, once; without pictures, and without processes of their own."""
    import stages

    sys.path.insert(0, str(Path(stages.__file__).parent.parent / "tests"))
    import monai.metrics  # noqa: F401
    import torch
    from conftest import draw_no_pictures, work_here

    import stages.answering.predictor
    import stages.predict
    import stages.workflow

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    patch = pytest.MonkeyPatch()
    draw_no_pictures(patch)
    work_here(patch)
    patch.setattr("stages.answering.predictor.in_processes", lambda work, calls, **_: (work(*call) for call in calls))


def tried(work: Callable[[], Any], *, seconds: float, more_mb: float) -> Ended:
    """Call `work` in a child; its result must be JSON-able.

    Args:
        seconds: more is a hang.
        more_mb: memory beyond what this process holds; more is too much.
    """
    own_mb = _resident_mb()
    began = time.monotonic()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _work(work, writing, int((own_mb + more_mb) * 4e6))
    os.close(writing)
    os.set_blocking(reading, False)
    said, status, usage = b"", None, None
    while status is None and time.monotonic() - began < seconds:
        select.select([reading], [], [], 0.2)
        said += available(reading)
        done, state, usage = os.wait4(pid, os.WNOHANG)
        status = state if done else None
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.wait4(pid, 0)
        os.close(reading)
        return Ended("hang", seconds=time.monotonic() - began)
    said += available(reading)
    os.close(reading)
    assert usage is not None
    memory_mb, took = max(0.0, usage.ru_maxrss / 1024 - own_mb), time.monotonic() - began
    if os.WIFSIGNALED(status) or not said:
        return Ended("killed", f"status {status}", memory_mb=memory_mb, seconds=took)
    how, told, result = json.loads(said)
    return Ended("memory" if memory_mb > more_mb else how, told, result, memory_mb, took)


def available(reading: int) -> bytes:
    pieces = []
    try:
        while piece := os.read(reading, 2**20):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces)


def _work(work: Callable[[], Any], writing: int, most_bytes: int) -> None:
    from stages.errors import LrlsError

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        room = resource.getrlimit(resource.RLIMIT_AS)[1]
        address_space = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (address_space + most_bytes, room))
        out = io.StringIO()
        try:
            with redirect_stdout(out), redirect_stderr(out):
                ended = ["done", "", work()]
        except LrlsError as error:
            plain = str(error).isprintable() and len(str(error)) < 2000
            ended = ["refused" if plain else "traceback", str(error)[:2000], None]
        except BaseException:
            ended = ["traceback", traceback.format_exc()[-4000:], None]
        data = json.dumps(ended).encode()
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def table(counts: dict[str, Counter[str]]) -> str:
    """A row per kind of try, a column per outcome."""
    columns = sorted({outcome for counter in counts.values() for outcome in counter})
    width = max(len(kind) for kind in [*counts, "all"])
    lines = [" " * width + "  " + "  ".join(columns)]
    total: Counter[str] = Counter()
    for kind in sorted(counts):
        total += counts[kind]
    for kind, counter in [*sorted(counts.items()), ("all", total)]:
        cells = "  ".join(str(counter[column]).rjust(len(column)) for column in columns)
        lines.append(f"{kind.ljust(width)}  {cells}")
    return "\n".join(lines)


def failed(counts: dict[str, Counter[str]]) -> int:
    """Tries that ended as none may: their outcomes are told in capital letters."""
    return sum(n for counter in counts.values() for outcome, n in counter.items() if outcome[:4].isupper())


def run_attack(
    attack: Callable[..., dict[str, Counter[str]]], about: str, target: str, *, tries: int, on_project: bool
) -> None:
    """The command line of an attack; exits with 1 if a try ended as none may.

    Args:
        target: "config" or "model", the file to name.
        on_project: the attack works on copies of the file's folder, which then lie beside it.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument(target, type=Path)
    parser.add_argument("--tries", type=int, default=tries)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of a try, to see it in full")
    arguments = parser.parse_args()
    path = getattr(arguments, target).resolve()
    import_everything()
    with tempfile.TemporaryDirectory(dir=path.parent.parent if on_project else None) as scratch:
        counts = attack(
            path.parent if on_project else path, tries=arguments.tries, seed=arguments.seed, scratch=Path(scratch),
            only=arguments.only,
        )  # fmt: skip
    print(table(counts))
    sys.exit(min(1, failed(counts)))
