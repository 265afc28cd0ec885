"""How long a training step of `best` takes, next to the plain step of BRBS, and where its time goes.

    python docs/benchmarks/best_step.py

A step of `best` draws a couple from the path bank, deforms and augments it and moves S once; all of that is timed. The
plain step of BRBS (`plain_brbs.py`: R and S once, float32, published networks) has its batch drawn before the clock
starts. All variants run in one process and take turns. What instance optimisation takes for one couple is timed, too:
`best` spends it once a couple, before the training.
Writes `results/best_step.json` and `results/best_step.md` beside this file.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from brbs_step import (  # noqa: E402
    CLASSES,
    PLAIN,
    SHAPE,
    configuration,
    make_batch,
    make_step,
    peak_memory_mib,
    processor,
    report,
    smooth_noise,
    timed,
)

from stages.config import TrainSettings  # noqa: E402
from stages.device import choose_device  # noqa: E402
from stages.methods import best  # noqa: E402
from stages.methods.recipe import Task  # noqa: E402
from stages.parts.augmentation import AUGMENTATIONS  # noqa: E402
from stages.parts.batches.drawing import Draw  # noqa: E402
from stages.parts.batches.scans import Scans  # noqa: E402
from stages.parts.instance import InstanceOptimisation  # noqa: E402
from stages.training import loop as training  # noqa: E402

KINDS = {  # of operators in a profile: what their names begin with
    "convolutions": ("aten::mkldnn_convolution", "aten::convolution", "aten::mkldnn_convolution_backward",
                     "aten::convolution_backward", "aten::_convolution", "mkldnn"),
    "normalisation and activation": ("aten::native_group_norm", "aten::native_batch_norm", "aten::leaky_relu"),
    "interpolation": ("aten::grid_sampler", "aten::upsample", "aten::scatter_add", "aten::gather"),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::contiguous"),
    "loss": ("aten::_log_softmax", "aten::exp", "aten::sum"),
}  # fmt: skip


class Bank:
    """A path bank in memory: smooth displacements of the atlas towards two scans."""

    couples: Sequence[tuple[int, int]] = ((0, 1), (0, 2))

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.paths = [2 * smooth_noise(3, SHAPE, generator)[0] for _ in self.couples]

    def displacement(self, couple: int) -> Tensor:
        return self.paths[couple]

    def style(self, couple: int) -> Tensor:
        raise AssertionError("best does not look at style")


def make_best(network: str) -> Callable[[], Any]:
    """A step of `best` with a segmentation network by its name."""
    batch = make_batch(SHAPE, CLASSES, seed=0)
    images = torch.cat([batch.atlas, batch.first, batch.second]).half()
    data = Scans(["a", "1", "2"], images, {0: batch.label[0]}, [0], [1, 2], CLASSES, (1.0, 1.0, 1.0), bank=Bank())
    settings = best.Settings.model_validate({"segmentation_network": network})
    ((_, learn),) = best.METHOD.recipe(Task(SHAPE, CLASSES, num_atlases=1), settings).training_steps()
    (phase,) = learn.phases
    (player,) = phase.players
    optimizer = training._optimizer(player, TrainSettings(optimizer="adamw"))
    optimizer.param_groups[0]["lr"] = 1e-4
    draw = Draw(1, *AUGMENTATIONS["strong"], torch.Generator().manual_seed(0))
    device = choose_device(configuration("auto"))
    return lambda: training._move(player, optimizer, phase, phase.batches(data, draw), device)


def shares(step: Callable[[], Any]) -> dict[str, float]:
    """Share of the step's processor time by kind of operator; the rest is all other operators and Python."""
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    wall = time.perf_counter() - start
    found = dict.fromkeys(KINDS, 0.0)
    rest = 0.0
    for event in profiled.key_averages():
        kind = next((name for name, begins in KINDS.items() if event.key.startswith(begins)), None)
        seconds = event.self_cpu_time_total / 1e6
        if kind:
            found[kind] += seconds
        else:
            rest += seconds
    found["other operators"] = rest
    found["Python and waiting"] = max(wall - sum(found.values()), 0.0)
    return {name: seconds / wall for name, seconds in found.items()}


def flops(step: Callable[[], Any]) -> int:
    """Multiplications and additions of the convolutions and matrix products of a step."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return counter.get_total_flops()


def machine() -> dict[str, float]:
    """This machine's own limits: products of large bfloat16 matrices, and copies of memory."""
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    source, target = torch.ones(2**26), torch.empty(2**26)
    product = min(timed(lambda: a @ b) for _ in range(5))
    copy = min(timed(lambda: target.copy_(source)) for _ in range(5))
    return {"bf16_gflops": 2 * 2048**3 / product / 1e9, "copy_gb_s": 2 * source.nbytes / copy / 1e9}


def measure(repeats: int) -> dict[str, Any]:
    choose_device(configuration("auto"))
    variants = {PLAIN: make_step(PLAIN), "best, light": make_best("light"), "best, full": make_best("full")}
    for step in variants.values():
        for _ in range(2):
            step()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, step in variants.items():
            seconds[name].append(timed(step))
    limits = machine()
    rows = {}
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(seconds[PLAIN], times, strict=True)]
        rows[name] = {"seconds": statistics.median(times), "ratio": statistics.median(ratios),
                      "ratio_min": min(ratios), "ratio_max": max(ratios)}  # fmt: skip
        if name != PLAIN:
            work = flops(variants[name])
            rows[name] |= {
                "gflop": work / 1e9,
                "of_bf16_limit": work / 1e9 / rows[name]["seconds"] / limits["bf16_gflops"],
                "shares": shares(variants[name]),
            }
    batch = make_batch(SHAPE, CLASSES, seed=0)
    optimisation = InstanceOptimisation()
    couple = statistics.median(timed(lambda: optimisation(batch.atlas, batch.first)) for _ in range(3))
    return {
        "shape": SHAPE, "classes": CLASSES, "batch_size": 1, "repeats": repeats, "torch": torch.__version__,
        "threads": torch.get_num_threads(), "processor": processor(), "machine": limits, "variants": rows,
        "instance_optimisation_s": couple, "peak_memory_mib": peak_memory_mib(),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    limits = result["machine"]
    lines = [
        "# One training step of best",
        "",
        f"{' x '.join(map(str, result['shape']))} voxels, {result['classes']} classes, batch {result['batch_size']}; "
        f"{result['processor']['model']} ({', '.join(result['processor']['flags'])}), {result['threads']} threads, "
        f"torch {result['torch']}; {result['repeats']} repeats in turns. The plain step is BRBS's, R and S once; a "
        f"couple of `best` costs {result['instance_optimisation_s']:.1f} s of instance optimisation once. The machine "
        f"multiplies bfloat16 matrices at {limits['bf16_gflops']:.0f} GFLOP/s and copies {limits['copy_gb_s']:.1f} "
        f"GB/s. Peak memory of this process {result['peak_memory_mib']:.0f} MiB.",
        "",
        "| step | seconds (median) | plain / this: median (min-max) | GFLOP | of the bf16 limit |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["variants"].items():
        work = f"{row['gflop']:.0f} | {100 * row['of_bf16_limit']:.0f} %" if "gflop" in row else " | "
        lines.append(
            f"| {name} | {row['seconds']:.3f} | {row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f}) "
            f"| {work} |"
        )
    lines += ["", "| share of the step | " + " | ".join(name for name in result["variants"] if name != PLAIN) + " |"]
    lines += ["|---|" + "---|" * (len(result["variants"]) - 1)]
    profiles = [row["shares"] for row in result["variants"].values() if "shares" in row]
    for kind in profiles[0]:
        lines.append(f"| {kind} | " + " | ".join(f"{100 * each[kind]:.0f} %" for each in profiles) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    report("best_step", __doc__, measure, table)
