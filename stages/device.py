"""Where and in which precision networks run."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import dtype as TorchType

from stages import ranks
from stages.config import Config
from stages.cores import available_cores
from stages.errors import LrlsError
from stages.memory import available_bytes, limit_memory
from stages.progress import say
from stages.speed import TYPES, cpu_has_bf16, fastest_here


@dataclass(frozen=True)
class Device:
    """A torch device and the type that convolutions run in; losses and heads stay in float32."""

    torch: torch.device
    dtype: TorchType
    ranks: int = 1  # processes that train together, each on a device of its own

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.torch.type, dtype=self.dtype)

    def free_bytes(self) -> int | None:
        """Memory that networks may still take; None: unknown."""
        if self.torch.type != "cuda":
            return available_bytes()
        kept = torch.cuda.memory_reserved(self.torch) - torch.cuda.memory_allocated(self.torch)  # by torch, for reuse
        return torch.cuda.mem_get_info(self.torch)[0] + kept

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        return "fp32" if self.dtype == torch.float32 else "bf16"

    def __str__(self) -> str:
        where = torch.cuda.get_device_name(self.torch) if self.torch.type == "cuda" else "cpu"
        together = f", {self.ranks} processes" if self.ranks > 1 else ""
        return f"{where}, {self.precision}, {torch.get_num_threads()} threads{together}"


def choose_device(config: Config) -> Device:
    """The device, precision and number of threads that the configuration asks for, or that are the fastest here.

    Raises:
        LrlsError: CUDA is asked for, and torch finds no GPU, or fewer than processes that train together.
    """
    keep_freed_memory()
    if config.device == "cuda" and not torch.cuda.is_available():
        raise LrlsError("device is cuda, but torch finds no CUDA GPU; set device: auto, or install torch's CUDA build.")
    asked = None if config.precision == "auto" else config.precision
    if config.device != "cpu" and torch.cuda.is_available():
        torch.set_num_threads(config.threads or available_cores())
        torch.backends.cudnn.allow_tf32 = False  # torch's default rounds float32 convolutions to ten bits
        fast = asked == "bf16" or (asked is None and torch.cuda.is_bf16_supported(including_emulation=False))
        return Device(_own_gpu(), torch.bfloat16 if fast else torch.float32, ranks.ranks())
    limit_memory()  # not with CUDA, which reserves addresses beyond the memory
    if asked == "bf16" and not cpu_has_bf16():
        _say_slow()
    found = None if ranks.rank() else fastest_here(config.workspace, precision=asked, threads=config.threads)
    way = ranks.from_first(found) or fastest_here(config.workspace, precision=asked, threads=config.threads)
    torch.set_num_threads(way.threads)
    return Device(torch.device("cpu"), TYPES[way.precision], ranks.ranks())


def _own_gpu() -> torch.device:
    """The GPU of this process, one for each of those that train together.

    Raises:
        LrlsError: there are fewer than processes.
    """
    if ranks.ranks() == 1:
        return torch.device("cuda")
    if ranks.ranks_here() > torch.cuda.device_count():
        raise LrlsError(
            f"torchrun started {ranks.ranks_here()} processes here, and there are {torch.cuda.device_count()} GPUs; "
            f"give --nproc-per-node {torch.cuda.device_count()}, or set device: cpu."
        )
    torch.cuda.set_device(ranks.local_rank())
    return torch.device("cuda", ranks.local_rank())


@lru_cache
def _say_slow() -> None:
    say("note: precision is bf16, which this processor has no instructions for; fp32 is faster here.")


def keep_freed_memory() -> None:
    """Have glibc's malloc reuse big tensors' memory instead of returning it to the system in every step.

    Fresh pages are cleared by the kernel one fault at a time, which is over half of a CPU training step's time on large
    grids. Other allocators and systems are left as they are.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**30)
