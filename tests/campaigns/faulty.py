"""The library of `faulty.c`: built with the machine's compiler, and steered by a file that processes share."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("faulty.c")
KINDS = ("open to read", "open to write", "read", "write", "fsync", "rename", "mkdir", "remove", "close")
NEEDS_ROOM = ("open to write", "write", "fsync", "mkdir")
NAME = "FAULTY_CONTROL"


class Control(ctypes.Structure):
    """`struct control` of `faulty.c`."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("armed", "kind", "error", "lasting", "lasting_error", "signal", "traced")),
        ("clock_back_s", ctypes.c_int),
        *((name, ctypes.c_long) for name in ("nth", "fired", "all")),
        ("counted", ctypes.c_long * len(KINDS)),
        ("root", ctypes.c_char * 512),
        ("trace", ctypes.c_char * 512),
    )


class Fault(NamedTuple):
    """What happens at the n-th call.

    Args:
        kind: of the call; "" for any.
        nth: from 1.
        error: errno; 0: half of the bytes are moved.
        lasting: kinds whose later calls fail, too.
        then: errno of those; 0: the same.
        signal: sent to the process instead.
        clock_back_s: by how much the clock goes back, instead.
    """

    kind: str
    nth: int
    error: int = 0
    lasting: tuple[str, ...] = ()
    then: int = 0
    signal: int = 0
    clock_back_s: int = 0

    def __str__(self) -> str:
        if self.clock_back_s:
            return f"the clock goes back by {self.clock_back_s} s at call {self.nth}"
        what = f"signal {self.signal}" if self.signal else errno.errorcode.get(self.error, "short")
        if self.lasting:
            what += f", then {errno.errorcode[self.then or self.error]}"
        return f"{self.kind or 'call'} {self.nth}: {what}"


@contextmanager
def working_folder() -> Iterator[Path]:
    """A folder in memory where there is one, because trials copy and flush a lot; deleted at the end."""
    if NAME in os.environ:  # see `restarted_with_library`
        folder = Path(os.environ[NAME]).parent
    else:
        memory = Path("/dev/shm")
        folder = Path(tempfile.mkdtemp(prefix="lrls-campaign-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cannot() -> str | None:
    """Why nothing can be injected here; None: it can."""
    if not sys.platform.startswith("linux"):
        return "calls are intercepted on Linux only"
    if not (shutil.which("cc") or shutil.which("gcc")):
        return "no C compiler (cc) is installed"
    return None


def build(folder: Path) -> Path:
    """Compile the library into a folder."""
    library = folder / "libfaulty.so"
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def restarted_with_library(folder: Path) -> Faulty:
    """This program again with the library below it, once; then what steers it."""
    control = folder / "control"
    if os.environ.get(NAME) != str(control):
        control.write_bytes(bytes(ctypes.sizeof(Control)))
        environment = os.environ | {NAME: str(control), "LD_PRELOAD": str(build(folder)), "PYTHONHASHSEED": "0"}
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    return Faulty(control)


class Faulty:
    """Steers the library in this process and its children."""

    def __init__(self, control: Path) -> None:
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(Control))
        self.control = Control.from_buffer(self._map)

    def set(self, root: Path, fault: Fault | None = None, trace: Path | None = None) -> None:
        """What will happen below a folder once it is armed; counts begin anew."""
        control = self.control
        ctypes.memset(ctypes.byref(control), 0, ctypes.sizeof(Control))
        control.root = os.fsencode(root)
        if trace:
            control.trace, control.traced = os.fsencode(trace), 1
        if fault:
            control.kind = KINDS.index(fault.kind) if fault.kind else -1
            control.error, control.signal, control.nth = fault.error, fault.signal, fault.nth
            control.clock_back_s = fault.clock_back_s
            control.lasting = sum(1 << KINDS.index(kind) for kind in fault.lasting)
            control.lasting_error = fault.then or fault.error

    def arm(self) -> None:
        self.control.armed = 1

    def disarm(self) -> None:
        self.control.armed = 0

    @property
    def fired(self) -> int:
        return int(self.control.fired)

    @property
    def calls(self) -> int:
        """Calls below the root since `set`."""
        return int(self.control.all)


def read_trace(path: Path, root: Path) -> list[tuple[str, str]]:
    """Calls in order: the kind, and the path below the root, in which numbers of one kind are alike."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        kind, _, name = line.partition("\t")
        found.append((kind, re.sub(r"[0-9a-f]{6,}|\d+", "#", name.removeprefix(str(root)))))
    return found


ALL = KINDS
VARIANTS: dict[str, Sequence[dict]] = {
    "open to read": ({"error": errno.EACCES}, {"error": errno.EIO}, {"error": errno.EIO, "lasting": ALL}),
    "open to write": (
        {"error": errno.EACCES}, {"error": errno.ENOSPC, "lasting": NEEDS_ROOM}, {"error": errno.EIO},
    ),
    "read": ({"error": errno.EIO}, {"error": 0}, {"error": errno.EIO, "lasting": ALL}),
    "write": (
        {"error": errno.ENOSPC, "lasting": NEEDS_ROOM}, {"error": errno.EIO}, {"error": 0},
        {"error": 0, "lasting": NEEDS_ROOM, "then": errno.ENOSPC}, {"error": errno.ENOSPC},
    ),
    "fsync": ({"error": errno.EIO}, {"error": errno.ENOSPC, "lasting": NEEDS_ROOM}),
    "rename": ({"error": errno.EACCES}, {"error": errno.EIO}, {"error": errno.ENOSPC}),
    "mkdir": ({"error": errno.EACCES}, {"error": errno.ENOSPC, "lasting": NEEDS_ROOM}),
    "remove": ({"error": errno.EACCES}, {"error": errno.EIO}),
    "close": ({"error": errno.EIO}, {"error": errno.ENOSPC, "lasting": NEEDS_ROOM}),
}  # fmt: skip


def points(trace: Sequence[tuple[str, str]], most: int | None, turn: int = 0) -> list[Fault]:
    """Faults to inject into a command: every call in turn, or a choice in which all files are met.

    Args:
        most: faults a kind of call; None: every call.
        turn: how variants are dealt out; another turn gives a point another variant.
    """
    chosen: list[Fault] = []
    for kind in KINDS:
        calls = [name for called, name in trace if called == kind]
        numbers = list(range(1, len(calls) + 1))
        if most is not None and len(numbers) > most:
            first = {name: place for place, name in reversed(list(enumerate(calls, start=1)))}
            last = {name: place for place, name in enumerate(calls, start=1)}
            numbers = sorted({*first.values(), *last.values()})
            if len(numbers) > most:
                numbers = [numbers[(2 * k + 1 + turn) * len(numbers) // (2 * most) % len(numbers)] for k in range(most)]
        for place, number in enumerate(numbers):
            chosen.append(Fault(kind, number, **VARIANTS[kind][(place + turn) % len(VARIANTS[kind])]))
    return chosen
