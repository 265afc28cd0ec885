"""Which precision and how many threads are the fastest on this processor: measured, in about a second.

What a processor lists says little: some that list `avx512_bf16` take three times as long in bfloat16. A measurement is
kept in the workspace, so that the same command finds the same result; without one it holds for this process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from stages.cores import available_cores
from stages.text_files import read_json

MARGIN = 0.1  # by which another way must be faster than the usual one
ROUNDS = 3  # of which the fastest counts: a neighbour slows single ones down
HOPELESS = 1.5  # times the fastest in the first round: not measured again
FILE = ".machine.json"
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Way(NamedTuple):
    """A precision, "fp32" or "bf16", and a number of threads."""

    precision: str
    threads: int


def fastest(ways: Sequence[Way], seconds: Callable[[Way], float]) -> Way:
    """The first way, unless another one is faster by `MARGIN`; then the fastest.

    Args:
        ways: the usual one first.
        seconds: the time of a fixed piece of work.
    """
    if len(ways) == 1:
        return ways[0]
    best = {way: seconds(way) for way in ways}
    limit = HOPELESS * min(best.values())
    hopeful = [way for way in ways if best[way] <= limit]
    for _ in range(ROUNDS - 1):
        for way in hopeful:
            best[way] = min(best[way], seconds(way))
    winner = min(ways, key=best.__getitem__)
    return winner if best[winner] < (1 - MARGIN) * best[ways[0]] else ways[0]


def fastest_here(workspace: Path | None, *, precision: str | None = None, threads: int | None = None) -> Way:
    """The fastest way on this processor.

    Args:
        workspace: where measurements are kept; None, or a folder that is not there or cannot be written: nowhere.
        precision, threads: what is set by hand.
    """
    cores = available_cores()
    numbers = [threads] if threads else list(dict.fromkeys([cores, 1, min(2, cores)]))
    precisions = [precision] if precision else ["fp32", *(["bf16"] if cpu_has_bf16() else [])]
    ways = tuple(Way(*way) for way in product(precisions, numbers))
    if len(ways) == 1:
        return ways[0]
    key = hashlib.sha256(json.dumps([_processor(), torch.__version__, ways]).encode()).hexdigest()
    file = workspace / FILE if workspace and workspace.is_absolute() else None
    kept = _kept(file)
    if (found := kept.get(key)) in [list(way) for way in ways]:
        return Way(*found)
    way = _measured(ways)
    if file and file.parent.is_dir():
        _keep(file, kept | {key: list(way)})
    return way


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX), however fast."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@lru_cache
def _measured(ways: tuple[Way, ...]) -> Way:
    threads = torch.get_num_threads()
    try:
        block = _Block()
        block.seconds(ways[0])  # wakes threads and fills caches
        return fastest(ways, block.seconds)
    finally:
        torch.set_num_threads(threads)


class _Block:
    """Two 3D convolutions as in the networks, forward and backward."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            layers = [nn.Conv3d(16, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.LeakyReLU(0.2)]
            self.network = nn.Sequential(*layers, nn.Conv3d(32, 32, 3, padding=1))
            self.image = torch.rand(1, 16, 20, 20, 20)
        self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.image = self.image.contiguous(memory_format=torch.channels_last_3d)

    def seconds(self, way: Way) -> float:
        torch.set_num_threads(way.threads)
        began = time.monotonic()
        with torch.enable_grad(), torch.autocast("cpu", TYPES[way.precision], enabled=way.precision != "fp32"):
            answer = self.network(self.image)
        answer.float().square().mean().backward()
        return time.monotonic() - began


@lru_cache
def _processor() -> str:
    """Model and abilities of the processor, and how many cores of it are ours."""
    about = ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        about = "\n".join(sorted(set(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", text, re.M))))
    return f"{about}\n{torch.backends.cpu.get_cpu_capability()}, {available_cores()} cores"


def _kept(file: Path | None) -> dict[str, object]:
    if file is None or not file.is_file():
        return {}
    try:
        kept = read_json(file)
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(file: Path, values: dict[str, object]) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        try:
            temporary.write_text(json.dumps(values), encoding="utf-8")
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
