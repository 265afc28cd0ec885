"""How a command ends when it is told to stop, or when the system refuses something."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages import stopping
from stages.artifacts.files import PASSING, is_disk_full
from stages.errors import shortened

INTERRUPTED = 128 + signal.SIGINT  # what typer makes of Ctrl-C
REMEDIES = {
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "name another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "name another place",
    errno.EXDEV: "name a place that lies on one disk",
    **dict.fromkeys(PASSING, "run the same command again"),
    errno.EMFILE: "close other programs, or raise the limit of open files",
}


def stopped_by(code: object) -> bool:
    """Whether an exit code says that the user or the system stopped the command."""
    return code == INTERRUPTED or code in stopping.codes().values()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, the signals that end a process unwind it as Ctrl-C does, so that everything is closed and kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping.forget()
    before = {number: signal.getsignal(number) for number in stopping.codes()}
    for number, handler in before.items():
        if handler == signal.SIG_DFL:  # under nohup, SIGHUP stays ignored
            signal.signal(number, stopping.stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_children(code: int) -> None:
    """End this process with its workers, if it has any, which would otherwise finish their scans first.

    Everything else is closed by now. What Python does at its end waits for queues that nobody empties any more.
    """
    if "multiprocessing" not in sys.modules:
        return
    from multiprocessing import active_children, util

    from stages.processes import remove_temporary_files

    children = active_children()
    for child in children:
        child.terminate()
    if children:
        for child in children:
            child.join(1.0)
        remove_temporary_files()
        util._run_finalizers(0)  # type: ignore[attr-defined]  # semaphores, of which Python warns otherwise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def refused(error: BaseException) -> str:
    """One line on an error of the system: what could not be read or written, why, and what to do."""
    names = [name for name in (getattr(error, "filename2", None), getattr(error, "filename", None)) if name is not None]
    what = _visible(names[0]) if names and isinstance(names[0], str | bytes) else "a file"
    if is_disk_full(error):
        return f"no room on the disk{f' for {what}' if names else ''}; make some, and run the same command again."
    if not isinstance(error, OSError) or error.errno is None:
        return f"{what} cannot be read or written ({shortened(str(error), 120)}); run the same command again."
    reason = os.strerror(error.errno)
    return f"{what}: {reason[0].lower()}{reason[1:]}; {REMEDIES.get(error.errno, 'name another place')}."


def _visible(name: str | bytes) -> str:
    """A path as users know it: our hidden files stand in a folder of theirs, temporary ones in the system's."""
    path, temporary = Path(os.fsdecode(name)), Path(tempfile.gettempdir())
    if path.is_relative_to(temporary) and re.match(r"tmp\w{8}(/|$)", path.relative_to(temporary).as_posix()):
        return f"{temporary} (TMPDIR)"
    hidden = next((place for place, part in enumerate(path.parts) if part.startswith(".") and part.strip(".")), None)
    return str(path if hidden is None else Path(*path.parts[:hidden]))
