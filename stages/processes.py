"""Cases in processes of their own: each has one ITK thread and ends with its parent.

ANTs repeats itself only with a seed and one thread in the process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import Any, Self

from stages.errors import LrlsError


def begin_process() -> None:
    """Process initialiser. Must run before `ants` or SimpleITK is imported."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Processes:
    """Worker processes that start when there is something to do and end with the `with` block.

    Args:
        workers: how many at most; None: one per core.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def each(self, function: Callable[..., Any], arguments: Sequence[tuple]) -> Iterator[Any]:
        """Results of a function over cases, as they finish; cases not begun when the caller stops asking are dropped.

        Raises:
            LrlsError: a process was killed.
        """
        if not arguments:
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"), initializer=begin_process)
        futures = [self._pool.submit(function, *case) for case in arguments]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise LrlsError(
                f"one of {self.workers} worker processes was killed, most likely for lack of memory; "
                "set preprocess.workers to fewer. The same command goes on where it stopped."
            ) from None
        finally:
            for future in futures:
                future.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)


def in_processes(
    function: Callable[..., Any], arguments: Sequence[tuple], *, workers: int | None = None
) -> Iterator[Any]:
    """Results of a function over cases, as they finish, by processes that end with the last one.

    Args:
        workers: processes; None: one per core.

    Raises:
        LrlsError: a process was killed.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(arguments)))
    with Processes(workers) as processes:
        yield from processes.each(function, arguments)
