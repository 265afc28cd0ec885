"""How much faster two processes take a training step of two samples than one process does, on this machine.

    python docs/benchmarks/torchrun_step.py

One process with one thread takes steps of batch 2; two processes with one thread each take the same steps together, a
sample each. They are timed in turns on cores of their own, so leave two cores idle; it takes under three minutes. A
step of `best` draws couples, deforms and augments them, and moves S. Drawing and averaging gradients are timed by
themselves, too. Losses of the steps are compared. Writes `results/torchrun_step.json` and `results/torchrun_step.md`
beside this file.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from brbs_step import CLASSES, make_batch, processor, report, smooth_noise  # noqa: E402

from stages import ranks  # noqa: E402
from stages.config import TrainSettings  # noqa: E402
from stages.device import Device, keep_freed_memory  # noqa: E402
from stages.methods import METHODS  # noqa: E402
from stages.methods.recipe import Task  # noqa: E402
from stages.parts.augmentation import AUGMENTATIONS  # noqa: E402
from stages.parts.batches.drawing import Draw  # noqa: E402
from stages.parts.batches.scans import Scans  # noqa: E402
from stages.parts.together import Stream  # noqa: E402
from stages.training import loop  # noqa: E402
from stages.training.sharing import average_gradients  # noqa: E402

SHAPE = (64, 64, 64)
BATCH = 2
WARM = 2


class Bank:
    """A path bank in memory: smooth displacements of the atlas towards two scans."""

    couples = ((0, 1), (0, 2))

    def __init__(self, shape: tuple[int, int, int]) -> None:
        generator = torch.Generator().manual_seed(3)
        self.paths = [2 * smooth_noise(3, shape, generator)[0] for _ in self.couples]

    def displacement(self, couple: int) -> Tensor:
        return self.paths[couple]

    def style(self, couple: int) -> Tensor:
        raise AssertionError("best does not look at style")


class Steps:
    """Steps of `best`, drawn, moved and averaged as the training loop does; the time of each part in s."""

    def __init__(self, shape: tuple[int, int, int], *, together: bool) -> None:
        batch = make_batch(shape, CLASSES, seed=0)
        images = torch.cat([batch.atlas, batch.first, batch.second]).half()
        labels = {0: batch.label[0]}
        self.data = Scans(["a", "1", "2"], images, labels, [0], [1, 2], CLASSES, (1.0, 1.0, 1.0), bank=Bank(shape))
        method = METHODS["best"]
        ((_, learn),) = method.recipe(Task(shape, CLASSES, num_atlases=1), method.settings()).training_steps()
        (self.phase,) = learn.phases
        (self.player,) = self.phase.players
        self.optimizer = loop._optimizer(self.player, TrainSettings(optimizer="adamw"))
        self.optimizer.param_groups[0]["lr"] = 1e-3
        generator = Stream("cpu")
        generator.manual_seed(0)
        if together:
            generator.rank, generator.ranks = ranks.rank(), ranks.ranks()
        self.draw = Draw(BATCH // generator.ranks, *AUGMENTATIONS["strong"], generator)

    def take(self) -> dict[str, float]:
        began = time.perf_counter()
        batch = self.phase.batches(self.data, self.draw)
        drawn = time.perf_counter()
        device = Device(torch.device("cpu"), torch.float32)
        terms = loop._move(self.player, self.optimizer, self.phase, batch, device, 0, None, self.draw.generator)
        ended = time.perf_counter()
        average_gradients(self.player.trains)  # once more, by itself; means of means are the same
        averaged = time.perf_counter()
        loss = float(ranks.mean_of(terms["total"]))
        return {"step": ended - began, "drawing": drawn - began, "averaging": averaged - ended, "loss": loss}


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process trains by itself."""
    size, is_joined = os.environ["WORLD_SIZE"], ranks.is_joined
    os.environ["WORLD_SIZE"], ranks.is_joined = "1", lambda: False
    try:
        yield
    finally:
        os.environ["WORLD_SIZE"], ranks.is_joined = size, is_joined


def take_part(rank: int, port: int, repeats: int, shape: tuple[int, int, int], queue: Any) -> None:
    """One of two processes: the first one also takes the steps alone, while the second one waits."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(BATCH), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(BATCH),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    keep_freed_memory()
    with ranks.joined(["train-seg"]):
        single, shared = Steps(shape, together=False), Steps(shape, together=True)
        found: dict[str, list[dict[str, float]]] = {"one process": [], "two processes": []}
        for _ in range(WARM + repeats):
            if rank == 0:
                with alone():
                    found["one process"].append(single.take())
            ranks.from_first(None)  # the second process waits until the first one is done
            found["two processes"].append(shared.take())
    if rank == 0:
        queue.put(found)


def measure(repeats: int, shape: tuple[int, int, int] = SHAPE) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    context = torch.multiprocessing.spawn(take_part, (port, repeats, shape, queue), nprocs=BATCH, join=False)
    found = queue.get()
    while not context.join():
        pass
    rows = {
        name: {
            part: statistics.median(step[part] for step in steps[WARM:]) for part in ("step", "drawing", "averaging")
        }
        for name, steps in found.items()
    }
    one, two = ([step["step"] for step in found[name][WARM:]] for name in found)
    ratios = [a / b for a, b in zip(one, two, strict=True)]
    losses = [[step["loss"] for step in steps] for steps in found.values()]
    return {
        "shape": shape, "classes": CLASSES, "batch_size": BATCH, "repeats": repeats, "torch": torch.__version__,
        "processor": processor(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "rows": rows, "speed_up": statistics.median(ratios), "speed_up_min": min(ratios), "speed_up_max": max(ratios),
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(*losses, strict=True)),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    rows = result["rows"]
    lines = [
        "# A training step by one process and by two",
        "",
        f"`best`, {' x '.join(map(str, result['shape']))} voxels, {result['classes']} classes, batch of "
        f"{result['batch_size']} in all, float32, one thread a process; {result['processor']['model']}, "
        f"{result['cores']} cores, torch {result['torch']}; {result['repeats']} repeats in turns. Speed-up "
        f"{result['speed_up']:.2f} ({result['speed_up_min']:.2f}-{result['speed_up_max']:.2f}). Losses differ by at "
        f"most {result['largest_difference_of_losses']:.1e}.",
        "",
        "| | step, s | of it drawing, s | averaging gradients, s |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        averaging = f"{row['averaging']:.4f}" if name == "two processes" else ""
        lines.append(f"| {name} | {row['step']:.3f} | {row['drawing']:.3f} | {averaging} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    report("torchrun_step", __doc__, measure, table)
