"""What a report of a bug needs: versions, processor, memory, devices, and what `auto` chooses here.

Nothing here says whose machine it is: no name of a host, of a user, or of a folder.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from stages.config import Config
from stages.cores import available_cores
from stages.device import choose_device
from stages.memory import available_bytes

PACKAGES = (
    "lrls", "torch", "monai", "antspyx", "SimpleITK", "numpy", "scipy", "pandas", "h5py", "pydicom", "highdicom",
    "pydantic", "safetensors", "matplotlib", "typer", "rich", "onnx", "onnxscript", "onnxruntime",
)  # fmt: skip


def about_this_machine(config: Config | None = None) -> dict[str, Any]:
    """Sections of names and values.

    Args:
        config: its device, precision and threads; None: those that nothing is set of.
    """
    total, free = _total_bytes(), available_bytes()
    asked = config or Config.model_validate({"workspace": ".", "data": {"folder": "."}, "structures": {"any": 1}})
    chosen = choose_device(asked)
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": f"{available_cores()} of {os.cpu_count() or 1}",
            "memory": f"{_gb(free)} free of {_gb(total)}",
        }
        | {f"GPU {k}": text for k, text in enumerate(_gpus())},
        "chosen": {
            "device": "cuda" if chosen.torch.type == "cuda" else "cpu",
            "precision": "bf16" if chosen.dtype == torch.bfloat16 else "fp32",
            "threads": torch.get_num_threads(),
            "asked for": f"device {asked.device}, precision {asked.precision}, threads {asked.threads or 'auto'}",
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _processor() -> str:
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()


def _total_bytes() -> int | None:
    with suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    every = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return [f"{each.name}, {_gb(each.total_memory)}, CUDA {torch.version.cuda}" for each in every]


def _gb(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 2**30:.1f} GiB"
