"""Where and in which precision networks run."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import dtype as TorchType

from stages.config import Config
from stages.cores import available_cores
from stages.errors import LrlsError
from stages.memory import available_bytes, limit_memory


@dataclass(frozen=True)
class Device:
    """A torch device and the type that convolutions run in; losses and heads stay in float32."""

    torch: torch.device
    dtype: TorchType

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.torch.type, dtype=self.dtype)

    def free_bytes(self) -> int | None:
        """Memory that networks may still take; None: unknown."""
        return torch.cuda.mem_get_info(self.torch)[0] if self.torch.type == "cuda" else available_bytes()

    def __str__(self) -> str:
        precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype]
        where = torch.cuda.get_device_name(self.torch) if self.torch.type == "cuda" else "cpu"
        return f"{where}, {precision}, {torch.get_num_threads()} threads"


def choose_device(config: Config) -> Device:
    """The device and precision that the configuration asks for.

    Raises:
        LrlsError: CUDA is asked for, and torch finds no GPU.
    """
    torch.set_num_threads(config.threads or available_cores())
    keep_freed_memory()
    if config.device == "cuda" and not torch.cuda.is_available():
        raise LrlsError("device is cuda, but torch finds no CUDA GPU; set device: auto, or install torch's CUDA build.")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    if not on_gpu:  # CUDA reserves addresses beyond the memory
        limit_memory()
    if config.precision == "fp32":
        return Device(device, torch.float32)
    fast = torch.cuda.is_bf16_supported() if on_gpu else cpu_has_bf16()
    return Device(device, torch.bfloat16 if fast or config.precision == "bf16" else torch.float32)


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


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
