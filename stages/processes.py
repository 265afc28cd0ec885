"""Where cases are mapped: in processes of their own, or by the workers of a Dask cluster (`stages.dask_cases`).

A process has one ITK thread and ends with its parent.

ANTs repeats itself only with a seed and one thread in the process. Its temporary files lie in a folder of the pool,
which is deleted with it, because they hold scans and transforms of patients.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stages.cores import available_cores
from stages.errors import LrlsError

if TYPE_CHECKING:
    from stages.config import Config
    from stages.dask_cases import OnDask

Broken = Callable[..., Any]
"""What stands in for the result of a case whose process was killed; gets the case's arguments."""

FOLDER = re.compile(r"lrls-pool-\w+")
_folders: set[Path] = set()  # of the pools of this process that have not ended
_works_on_cases = False  # whether this is a worker process: what it calls starts no others
OLD_S = 24 * 3600.0  # a pool writes into its folder more often
PLAIN = re.compile(r"[\w./~+-]+", re.ASCII)  # ANTs reads brackets, commas and spaces in paths as its own syntax


def begin_process(folder: str) -> None:
    """Process initialiser. Must run before `ants` or SimpleITK is imported.

    Args:
        folder: for the temporary files of this process.
    """
    global _works_on_cases
    _works_on_cases = True
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGUSR1"):  # Windows has none
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # sent to a whole group; the parent decides
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()


def _end_with_parent(folder: str) -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _start_tracker() -> None:
    """Start Python's tracker of semaphores, which outlives this process, without a place to print to.

    It cleans up behind processes that were told to stop, and what it says of that would stand behind our last line.
    """
    if os.name != "posix":
        return
    from multiprocessing.resource_tracker import ensure_running

    with suppress(OSError):
        shown, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)  # which it inherits
            ensure_running()
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            os.close(nowhere)


class Processes:
    """Worker processes that start when there is something to do and end with the `with` block.

    Args:
        workers: how many at most; None: one per core.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or available_cores()
        self._pool: ProcessPoolExecutor | None = None
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        return self

    def each(
        self, function: Callable[..., Any], arguments: Sequence[tuple], *, broken: Broken | None = None
    ) -> Iterator[Any]:
        """Results of a function over cases, as they finish; cases not begun when the caller stops asking are dropped.

        If a process is killed, the cases without a result are tried again one by one, so that only those that kill
        theirs are lost.

        Args:
            broken: what a lost case is replaced with; None: it is an error.

        Raises:
            LrlsError: a process was killed, and `broken` is None.
        """
        if _works_on_cases:
            yield from (function(*case) for case in arguments)
            return
        futures = {self.submit(function, case): case for case in arguments}
        try:
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    break
                yield future.result()
                del futures[future]
            else:
                return
        finally:
            for future in futures:
                future.cancel()
        self.end()
        for future, case in futures.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                yield future.result()
            else:
                yield self._alone(function, case, broken)

    def _alone(self, function: Callable[..., Any], case: tuple, broken: Broken | None) -> Any:
        try:
            return self.submit(function, case).result()
        except BrokenProcessPool:
            self.end()
            if broken is not None:
                return broken(*case)
            raise LrlsError(
                f"one of {self.workers} worker processes was killed, most likely for lack of memory; "
                "set preprocess.workers to fewer. The same command goes on where it stopped."
            ) from None

    def submit(self, function: Callable[..., Any], case: tuple) -> Future:
        """Begin one case; if its process is killed, the future has a `BrokenProcessPool`, and so have all after it."""
        if self._pool is None:
            _start_tracker()
            self._folder = _folder_for_temporary_files()
            _folders.add(self._folder)
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=get_context("spawn"), initializer=begin_process,
                initargs=(str(self._folder),),
            )  # fmt: skip
        try:
            return self._pool.submit(function, *case)
        except BrokenProcessPool as error:  # by a case that was submitted before
            future: Future = Future()
            future.set_exception(error)
            return future

    def end(self) -> None:
        """End the processes when they have done what they have begun; the next case starts others."""
        pool, folder = self._pool, self._folder
        self._pool = self._folder = None
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
            _folders.discard(folder)

    def kill(self) -> None:
        """End the processes at once; whoever waits for a case gets a `BrokenProcessPool`."""
        for process in list(getattr(self._pool, "_processes", None) or ()):
            with suppress(OSError):
                os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.end()
        else:  # cases that run are not waited for; their folder is deleted behind them
            threading.Thread(target=self.end).start()


def working(config: Config) -> Processes | OnDask:
    """What works on cases: local processes, or a Dask cluster, as `compute` says.

    Raises:
        LrlsError: the cluster cannot be used; see `stages.dask_cases`.
    """
    if config.compute.cases == "local" or _works_on_cases:
        return Processes(config.preprocess.workers)
    from stages.dask_cases import OnDask

    return OnDask(config.compute, [("workspace", config.workspace), ("data.folder", config.data.folder)])


def number_of_workers(config: Config) -> int:
    """How many cases are worked on at once; raises LrlsError as `working` does."""
    if config.compute.cases == "local":
        return config.preprocess.workers or available_cores()
    if config.compute.cluster == "local":
        return config.compute.jobs  # some may not have started yet, and a plan must not depend on that
    from stages.dask_clusters import workers_of

    return max(1, len(workers_of(config.compute)))


def in_processes(
    function: Callable[..., Any],
    arguments: Sequence[tuple],
    *,
    config: Config | None = None,
    workers: int | None = None,
    broken: Broken | None = None,
) -> Iterator[Any]:
    """Results of a function over cases, as they finish, by processes that end with the last one.

    Args:
        config: says where cases are worked on; None: here.
        workers: processes without `config`; None: one per core.
        broken: see `Processes.each`.

    Raises:
        LrlsError: a process was killed, and `broken` is None, or a Dask cluster cannot be used.
    """
    if config and not arguments:
        return
    with working(config) if config else Processes(workers) as processes:
        if isinstance(processes, Processes):
            processes.workers = min(processes.workers, max(1, len(arguments)))
        yield from processes.each(function, arguments, broken=broken)


def remove_temporary_files() -> None:
    """Delete what pools that were not closed have written; for a process that ends at once."""
    for folder in list(_folders):
        shutil.rmtree(folder, ignore_errors=True)


def _folder_for_temporary_files() -> Path:
    """A new folder whose path ANTs can read.

    Raises:
        LrlsError: there is no place for one.
    """
    places = dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", str(Path.home())])
    for place in places:
        if PLAIN.fullmatch(place.replace(os.sep, "/").partition(":")[2] or place):
            _sweep(Path(place))
            with suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="lrls-pool-", dir=place))
    raise LrlsError(
        "no folder for temporary files can be written to whose path has only letters, digits, '.', '_' and '-', "
        "which ANTs needs; set TMPDIR to one."
    )


def _sweep(place: Path) -> None:
    """Delete old folders of processes that were killed before they could; containers may share the place."""
    with suppress(OSError):
        for folder in place.glob("lrls-pool-*"):
            if FOLDER.fullmatch(folder.name) and folder.stat().st_mtime < time.time() - OLD_S:
                shutil.rmtree(folder, ignore_errors=True)
