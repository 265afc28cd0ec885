"""Processes that train together, one a rank, as `torchrun` starts them. Everything else runs in one process.

The first one, rank 0, decides, prints and writes; the others hear from it what it decided. Without `torchrun` there is
one process, and everything here returns at once what it was given.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from stages.errors import LostProcess, LrlsError, shortened

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TOGETHER = ("train-reg", "train-seg")  # commands
WAIT = timedelta(hours=2)  # for another process, which may draw pages or write a checkpoint meanwhile
HEARD_S = 2.0  # for the line of a process that ended
FIRST_S = 5.0  # for the first process to come to a fault
_store: Any = None  # where a process that ends leaves its line


def rank() -> int:
    """The place of this process among those that train together, from 0."""
    return int(os.environ.get("RANK", 0)) if ranks() > 1 else 0


def ranks() -> int:
    """Processes that train together; 1 without `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "MASTER_ADDR" in os.environ else 1


def local_rank() -> int:
    """The place of this process among those on its machine; the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if ranks() > 1 else 0


def ranks_here() -> int:
    """Those of the processes that run on this machine, which share its cores and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if ranks() > 1 else 1


@contextmanager
def joined(command: Sequence[str]) -> Iterator[None]:
    """Inside, the processes that `torchrun` started hear one another, and the first one alone prints.

    GPUs speak NCCL, processors gloo.

    Args:
        command: the first word of the command line.

    Raises:
        LrlsError: they cannot reach one another, or the command is none that trains.
    """
    global _store
    if ranks() == 1:
        yield
        return
    if command and command[0] not in TOGETHER:
        raise LrlsError(
            f"torchrun: found `{shortened(command[0])}`, expected {' or '.join(TOGETHER)}, which alone run in several "
            f"processes; type `lrls {shortened(command[0])} ...` without torchrun."
        )
    import torch
    import torch.distributed as dist

    try:
        _store, number, size = next(dist.rendezvous("env://", timeout=WAIT))
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=_store, rank=number, world_size=size, timeout=WAIT)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise LrlsError(
            f"the {ranks()} processes of torchrun cannot reach one another ({shortened(str(error), 120)}); "
            "add --standalone on one machine, or give --rdzv-endpoint on several."
        ) from None
    with _silent() if number else nullcontext():
        yield
    dist.destroy_process_group()  # after an error the process ends, and the others must not hear of it before its line


@contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def is_joined() -> bool:
    """Whether other processes hear this one."""
    if ranks() == 1:
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


@contextmanager
def _heard() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # what gloo and NCCL raise; of memory, collectives take none
        raise LostProcess from None


def from_first(value: T) -> T:
    """What the first process has, in every process.

    Raises:
        LostProcess: it ended.
    """
    if not is_joined():
        return value
    import torch
    import torch.distributed as dist

    box = [value]
    with _heard():
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def from_all(value: T) -> list[T]:
    """What every process has, by rank; raises as `from_first`."""
    if not is_joined():
        return [value]
    import torch.distributed as dist

    box: list[Any] = [None] * ranks()
    with _heard():
        dist.all_gather_object(box, value)
    return box


def any_of(flag: bool) -> bool:
    """Whether it is true in any process, in every process; raises as `from_first`."""
    return any(from_all(flag))


def mean_of(values: Tensor) -> Tensor:
    """Mean over the processes of a tensor without gradient, in every process; raises as `from_first`."""
    if not is_joined():
        return values
    import torch
    import torch.distributed as dist

    values = values.detach().clone(memory_format=torch.contiguous_format)
    with _heard():
        dist.all_reduce(values)
    return values / ranks()


def leave_line(line: str) -> None:
    """Leave the line that this process ends with to the first one, which prints it if it has none of its own.

    Before they hear one another, all meet the same faults. `torchrun` stops the others as soon as one has ended, so the
    first one gets time to print.
    """
    if _store is None:
        time.sleep(FIRST_S)
        return
    with suppress(RuntimeError):
        _store.set(f"line/{rank()}", line)


def line_of_others() -> str | None:
    """The line that another process ended with, if it left one within `HEARD_S`.

    `torchrun` stops this process meanwhile, too; what it has to say comes first.
    """
    if _store is None:
        return None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    until = time.monotonic() + HEARD_S
    with suppress(RuntimeError):
        while time.monotonic() < until:
            for number in range(1, ranks()):
                if _store.check([f"line/{number}"]):
                    return _store.get(f"line/{number}").decode()
            time.sleep(0.05)
    return None
