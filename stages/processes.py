"""Cases in processes of their own: one ITK thread each, and no life after the parent.

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
from typing import Any

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


def in_processes(
    function: Callable[..., Any], arguments: Sequence[tuple], *, workers: int | None = None
) -> Iterator[Any]:
    """Results of a function over cases, as they come.

    Args:
        workers: processes; None: one per core.

    Raises:
        LrlsError: a process was killed.
    """
    if not arguments:
        return
    workers = min(workers or len(os.sched_getaffinity(0)), len(arguments))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=begin_process) as pool:
        futures = [pool.submit(function, *each) for each in arguments]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise LrlsError(
                f"one of {workers} worker processes was killed, most likely for lack of memory; "
                "set preprocess.workers to fewer. The same command goes on where it stopped."
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
