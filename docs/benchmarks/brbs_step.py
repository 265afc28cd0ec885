"""How long a training step of BRBS takes, against the same step written plainly (`plain_brbs.py`).

    python docs/benchmarks/brbs_step.py

A step moves R and S once (S3P inside; SeC, BiC and MMR on) with the published networks, batch 1. The batch is drawn
before the clock starts. All variants run in one process, with its threads and its memory allocator as `lrls` sets them,
and take turns; a ratio is the plain step's time over that of the step of ours in the same turn.
Writes `results/brbs_step.json` and `results/brbs_step.md` beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from plain_brbs import Draws, PlainBRBS  # noqa: E402

from stages.config import Config  # noqa: E402
from stages.device import Device, choose_device  # noqa: E402
from stages.methods import brbs  # noqa: E402
from stages.methods.recipe import Task  # noqa: E402
from stages.parts.batches.drawing import Draw  # noqa: E402
from stages.parts.batches.pairs import Triplet  # noqa: E402
from stages.parts.batches.space_style import Beta  # noqa: E402
from stages.parts.networks.unet import UNet  # noqa: E402
from stages.speed import cpu_has_bf16  # noqa: E402
from stages.training import loop as training  # noqa: E402

SHAPE, CLASSES = (48, 64, 48), 3
FP32 = Device(torch.device("cpu"), torch.float32)


def smooth_noise(channels: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """(1, channels, D, H, W), structures some 6 voxels wide."""
    knots = torch.randn((1, channels, *(n // 6 + 2 for n in shape)), generator=generator)
    return F.interpolate(knots, size=shape, mode="trilinear", align_corners=True)


def make_batch(shape: tuple[int, int, int], num_classes: int, seed: int) -> Triplet:
    """An atlas with its label and two scans: smooth textures in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    atlas, first, second = (smooth_noise(3, shape, generator).sigmoid() * 0.9).split(1, dim=1)
    label = smooth_noise(num_classes, shape, generator).argmax(1)
    draw = Draw(batch_size=1, space=None, intensity=None, generator=generator)
    return Triplet(["atlas", "first", "second"], atlas, label.to(torch.uint8), first, second, num_classes, draw)


def next_draws(batch: Triplet) -> Draws:
    """What the next step of ours on this batch will draw; the generator is left as it was."""
    state = batch.draw.generator.get_state()
    generator = torch.Generator()
    generator.set_state(state)
    pair = int(torch.randint(6, (1,), generator=generator))
    alpha, beta, gamma = (float(Beta(0.3)(1, generator)) for _ in range(3))
    return Draws(pair, alpha, beta, gamma)


class Ours:
    """The recipe's networks and players, moved by the training loop's own step."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, seed: int, device: Device = FP32) -> None:
        method, settings = brbs.METHOD, brbs.Settings()
        self.recipe = method.recipe(Task(shape, num_classes, num_atlases=1, seed=seed), settings)
        (_, register), _ = self.recipe.training_steps()
        (self.phase,) = register.phases
        for network in self.recipe.networks.values():
            network.to(device.torch)
        assert method.train_reg is not None
        self.optimizers = [training._optimizer(player, method.train_reg(settings)) for player in self.phase.players]
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = 1e-4

    def step(self, batch: Triplet, device: Device) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for player, optimizer in zip(self.phase.players, self.optimizers, strict=True):
            terms |= training._move(player, optimizer, self.phase, batch, device)
        return terms


def same_weights(plain: PlainBRBS, ours: Ours) -> None:
    """Give the plain networks our weights."""
    with torch.no_grad():
        for theirs, name in ((plain.R, "registration"), (plain.S, "segmentation")):
            for to, source in zip(theirs.parameters(), ours.recipe.networks[name].parameters(), strict=True):
                assert to.shape == source.shape
                to.copy_(source)


def make_both(shape: tuple[int, int, int], num_classes: int, seed: int) -> tuple[PlainBRBS, Ours]:
    """The plain and our networks with equal weights."""
    ours = Ours(shape, num_classes, seed)
    levels = len(ours.recipe.networks["segmentation"].down)  # type: ignore[arg-type]
    plain = PlainBRBS(num_classes, UNet.WIDTHS[:levels])
    same_weights(plain, ours)
    return plain, ours


def largest_difference(shape: tuple[int, int, int], num_classes: int, *, seed: int, steps: int = 1) -> float:
    """Largest difference of a loss term between the two float32 steps, relative where a term exceeds 1."""
    plain, ours = make_both(shape, num_classes, seed)
    worst = 0.0
    for step in range(steps):
        batch = make_batch(shape, num_classes, seed + step)
        draws = next_draws(batch)
        expected = plain.step(batch.atlas, batch.label, batch.first, batch.second, draws)
        terms = ours.step(batch, FP32)
        for name, value in expected.items():
            worst = max(worst, abs(float(terms[name] - value)) / max(1.0, abs(float(value))))
    return worst


PLAIN = "plain fp32"
OURS = {"lrls bf16": "bf16", "lrls fp32": "fp32"}  # name -> precision in the configuration


def make_step(name: str) -> Callable[[], Any]:
    """A step of one variant on networks and a batch of its own."""
    device = choose_device(configuration(OURS.get(name, "fp32")))
    batch = make_batch(SHAPE, CLASSES, seed=0)
    plain, ours = make_both(SHAPE, CLASSES, seed=0)
    if name == PLAIN:
        return lambda: plain.step(batch.atlas, batch.label, batch.first, batch.second, next_draws(batch))
    return lambda: ours.step(batch, device)


def timed(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak_memory_mib() -> float:
    """Peak resident memory of this process, torch and all networks included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def configuration(precision: str) -> Config:
    return Config.model_construct(workspace=Path(), device="cpu", precision=precision, threads=None)


def processor() -> dict[str, Any]:
    flags: set[str] = set()
    model = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        model, flags = fields.get("model name", model), set(fields.get("flags", "").split())
    relevant = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
    return {"model": model, "flags": [flag for flag in relevant if flag in flags], "bf16": cpu_has_bf16()}


def measure(repeats: int) -> dict[str, Any]:
    device = choose_device(configuration("auto"))
    difference = largest_difference(SHAPE, CLASSES, seed=1)
    assert difference < 1e-3, f"the two steps differ by {difference}"

    names = [PLAIN, *(name for name, precision in OURS.items() if precision == "fp32" or cpu_has_bf16())]
    variants = {name: make_step(name) for name in names}
    for step in variants.values():
        for _ in range(2):
            step()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, step in variants.items():
            seconds[name].append(timed(step))

    plain = seconds[PLAIN]
    rows = {}
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(plain, times, strict=True)]
        rows[name] = {
            "seconds": statistics.median(times),
            "seconds_all": times,
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    target = 3.0 if device.dtype == torch.bfloat16 else 1.25
    return {
        "shape": SHAPE, "classes": CLASSES, "batch_size": 1, "repeats": repeats, "torch": torch.__version__,
        "threads": torch.get_num_threads(), "processor": processor(), "loss_difference": difference,
        "variants": rows, "peak_memory_mib": peak_memory_mib(), "target": target, "reached": rows[names[1]]["ratio"],
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    lines = [
        "# One training step of BRBS",
        "",
        f"{' x '.join(map(str, result['shape']))} voxels, {result['classes']} classes, batch {result['batch_size']}, "
        f"published networks; {result['processor']['model']} ({', '.join(result['processor']['flags'])}), "
        f"{result['threads']} threads, torch {result['torch']}; {result['repeats']} repeats in turns. "
        f"Loss terms of the two float32 steps agree within {result['loss_difference']:.1e}.",
        "",
        "| step | seconds (median) | plain / this: median (min-max) |",
        "|---|---|---|",
    ]
    for name, row in result["variants"].items():
        lines.append(
            f"| {name} | {row['seconds']:.2f} | {row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f}) |"
        )
    verdict = "reached" if result["reached"] >= result["target"] else "missed"
    lines += ["", f"Target on this processor: {result['target']} times the plain step: {verdict}.", ""]
    return "\n".join(lines)


def report(
    name: str, description: str | None, measure: Callable[[int], dict[str, Any]], table: Callable[[dict[str, Any]], str]
) -> None:
    """Measure as the command line says; write NAME.json and NAME.md, and print the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each variant")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    result = measure(arguments.repeats)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (arguments.out / f"{name}.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    report("brbs_step", __doc__, measure, table)
