"""Being told to stop by a signal: at once, or, where work would be lost, at the next moment that keeps it.

A scheduler sends SIGUSR1 some time before a job's limit, and SIGTERM when it wants the machine. Either ends a command
with exit code `STOPPED`; the same command goes on from there.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try the same again
STOP = signal.SIGTERM
KEEPING = ("SIGUSR1", "SIGTERM")  # Windows has no SIGUSR1
_code = 0  # to end with; 0: nobody has told this process to stop
_waiting = 0  # blocks that end their work first


def codes() -> dict[signal.Signals, int]:
    """The signals that stop a command besides Ctrl-C, and the exit codes that they lead to."""
    codes = {getattr(signal, name): STOPPED for name in KEEPING if hasattr(signal, name)}
    if hasattr(signal, "SIGHUP"):  # the terminal is gone
        codes[signal.SIGHUP] = 128 + signal.SIGHUP
    return codes


def stop(number: int, frame: FrameType | None = None) -> None:
    """Signal handler. The first signal counts: a second one must not cut the first one's work short."""
    global _code
    if _code:
        return
    _code = codes()[signal.Signals(number)]
    if not _waiting:
        sys.exit(_code)


def is_told() -> bool:
    """Whether a signal came; who asks ends its work, and `at_step_ends` stops the command."""
    return bool(_code)


@contextmanager
def at_step_ends() -> Iterator[None]:
    """Inside, a signal only makes `is_told` true, and the command stops at the end of the block."""
    global _waiting
    _waiting += 1
    try:
        yield
    finally:
        _waiting -= 1
    if _code and not _waiting:
        sys.exit(_code)


def forget() -> None:
    """Begin anew: another command in the same process was not told to stop."""
    global _code
    _code = 0
