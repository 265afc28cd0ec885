"""What runs on a Dask worker: one case at a time, in a clean process beside it, as on this machine.

The worker stays able to answer its scheduler while ANTs computes for minutes, a case that kills its process does not
kill the worker, and temporary files lie in a folder that goes with that process. What is said to the worker are
bytes, which its own log and the cluster's pages cannot show.
"""

from __future__ import annotations

import os
import pickle
import platform
import shutil
import socket
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from multiprocessing import current_process
from pathlib import Path
from typing import Any

from stages.errors import LrlsError
from stages.processes import Processes

IDLE_S = 60.0  # after which the process beside the worker ends
PACKAGES = ("lrls", "torch", "antspyx", "SimpleITK", "numpy")
KILLED = b"killed"  # instead of a result: the case killed its process twice
STOPPED = b"stopped"  # whoever asked has gone
LACKS = b"lacks"  # the process does not hold what all cases share yet

Needs = tuple[tuple[str, str], ...]
"""Versions that a worker must have."""


@lru_cache
def versions() -> Needs:
    """What results depend on, as installed here."""
    found = [("python", ".".join(platform.python_version_tuple()[:2]))]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "none"))
    return tuple(found)


def other_version(needs: Needs) -> str | None:
    """The first package of which this worker has another version, with both; None: there is none."""
    found = dict(versions())
    for name, needed in needs:
        if found.get(name) != needed:
            return f"{name} {found.get(name)}, this command has {needed}"
    return None


def look(needs: Needs, sees: Sequence[tuple[str, str]], probe: tuple[str, str], writes: str) -> dict[str, Any]:
    """What this worker is: asked of every worker before it gets a case.

    Args:
        sees: settings, and the folders that they name.
        probe: a file that whoever asks has just written, and its contents.
        writes: the folder that results go into.

    Returns:
        "process": its host and number; "fault": why it cannot be used, or None.
    """
    fault = None
    if other := other_version(needs):
        fault = f"has {other}; install the same there"
    else:
        for setting, folder in sees:
            if not os.path.isdir(folder):
                fault = f"does not see {setting}, {folder}; workers need the same folders: use a shared file system"
        try:
            same = Path(probe[0]).read_text(encoding="utf-8") == probe[1]
        except OSError:
            same = False
        if fault is None and not same:
            fault = f"sees another folder as {writes}; workers need the same one: use a shared file system"
        elif fault is None and not os.access(Path(probe[0]).parent, os.W_OK):
            fault = f"may not write into {writes}; run it as the same user"
    return {"process": (socket.gethostname(), os.getpid()), "fault": fault}


class _Beside:
    """The process beside this worker, and what it holds."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # one case at a time
        self.processes = Processes(1)
        self.run = ""  # whose case it works on, or has worked on last
        self.holds = ""  # name of what all cases share, as the process has it
        self.stopped = False
        self.timer: threading.Timer | None = None

    def work(self, run: str, call: bytes, name: str, shared: bytes) -> bytes:
        with self.lock:
            self.run, self.stopped = run, False
            if self.timer:
                self.timer.cancel()
            try:
                return self._twice(call, name, shared)
            finally:
                self.timer = threading.Timer(IDLE_S, self._end_idle)
                self.timer.daemon = True
                self.timer.start()

    def _twice(self, call: bytes, name: str, shared: bytes) -> bytes:
        for _ in range(2):
            try:
                result = self._ask(call, name, shared if name != self.holds else None)
                if result == LACKS:
                    result = self._ask(call, name, shared)
                self.holds = name
                return result
            except BrokenProcessPool:
                self.holds = ""
                self.processes.end()
                if self.stopped:
                    return STOPPED
        return KILLED

    def _ask(self, call: bytes, name: str, shared: bytes | None) -> bytes:
        current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # which Dask's workers are, for no
        # reason that matters here: this one's process ends with it
        return self.processes.submit(_case, (call, name, shared)).result()

    def _end_idle(self) -> None:
        if self.lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self.lock.release()

    def _end(self) -> None:
        self.holds = ""
        self.processes.end()

    def stop(self, run: str) -> None:
        if run != self.run:
            return
        self.stopped = True
        self.processes.kill()
        self._end_idle()


_beside = _Beside()


def work(run: str, needs: Needs, call: bytes, name: str, shared: bytes) -> bytes:
    """Work on a case; what Dask calls.

    Args:
        run: who asks; see `stop`.
        needs: versions; a worker that joined after the others were looked at may have others.
        call: a pickled function, its arguments and, by place, those of them that are shared.
        name, shared: of the pickled arguments that cases share, which are sent to a worker once.

    Returns:
        A pickled result or failure, or one of `KILLED` and `STOPPED`.
    """
    if other := other_version(needs):
        line = f"a Dask worker has {other}; install the same there. The same command goes on."
        return pickle.dumps((False, LrlsError(line), ""))
    try:
        return _beside.work(run, call, name, shared)
    except Exception as error:  # Dask's log would show what it was given
        return _packed_failure(error)


def stop(run: str) -> None:
    """End what this worker does for somebody, at once, with its temporary files."""
    _beside.stop(run)


_held: tuple[str, Sequence[Any]] = ("", ())  # in the process beside the worker: name and values of what cases share


def _case(call: bytes, name: str, shared: bytes | None) -> bytes:
    """In the process beside the worker: one case, and its temporary files deleted."""
    global _held
    if shared is None and _held[0] != name:
        return LACKS
    folder, before = tempfile.mkdtemp(), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        if shared is not None:
            _held = "", ()  # what it held before leaves the memory first
            _held = name, pickle.loads(shared)
        function, arguments, places = pickle.loads(call)
        return packed_success(function(*filled_in(arguments, places, _held[1])))
    except Exception as error:
        return _packed_failure(error)
    finally:
        tempfile.tempdir = before
        os.environ["TMPDIR"] = before or ""
        shutil.rmtree(folder, ignore_errors=True)


def filled_in(arguments: Sequence[Any], places: Mapping[int, int], shared: Sequence[Any]) -> list[Any]:
    """Arguments with those that are shared; `places` says which of them stands where."""
    return [shared[places[k]] if k in places else argument for k, argument in enumerate(arguments)]


def packed_success(result: Any) -> bytes:
    """Pickled: (True, result, "")."""
    import cloudpickle

    return cloudpickle.dumps((True, result, ""))


def _packed_failure(error: Exception) -> bytes:
    """Pickled: (False, the exception, where it was raised)."""
    told = "".join(traceback.format_exception(error))
    with suppress(Exception):
        packed = pickle.dumps((False, error, told))
        pickle.loads(packed)  # some exceptions cannot be made again
        return packed
    return pickle.dumps((False, RuntimeError(type(error).__name__), told))


def kept(shared: bytes) -> bytes:
    """What cases share, for Dask to hand from worker to worker; made again if all that held it have gone."""
    return shared
