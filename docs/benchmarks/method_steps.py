"""How long a training step of every method takes and how much memory, phase by phase.

    python docs/benchmarks/method_steps.py [--grid brain]

A step draws its batch and moves every player of the phase once; all of that is timed, as `lrls` trains: in bfloat16
where the processor is good at it, with the method's own batch size and augmentation. Each method runs in a process of
its own, whose peak memory counts, with its published networks and with its light ones; on the grid of a brain only with
the light ones.
Writes `results/method_steps.json` and `.md` (`method_steps_brain` with `--grid brain`) beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from brbs_step import configuration, peak_memory_mib, processor, smooth_noise, timed  # noqa: E402

from stages import training  # noqa: E402
from stages.artifacts.generated import StoredSample  # noqa: E402
from stages.config import Config  # noqa: E402
from stages.device import choose_device  # noqa: E402
from stages.methods import METHODS, find_method, settings_of, training_of  # noqa: E402
from stages.methods.recipe import Method, Phase, Recipe, Task  # noqa: E402
from stages.parts.augmentation import AUGMENTATIONS  # noqa: E402
from stages.parts.samplers import Draw, Scans  # noqa: E402

GRIDS = {"hippocampus": ((48, 64, 48), 3), "brain": ((80, 96, 80), 29)}  # shape, classes
ATLASES, SCANS = 2, 4
NETWORKS = ("registration_network", "segmentation_network")


@dataclass
class Bank:
    """A path bank in memory: smooth displacements and styles of each atlas and scan."""

    couples: list[tuple[int, int]]
    displacements: list[Tensor]
    styles: list[Tensor]

    def displacement(self, couple: int) -> Tensor:
        return self.displacements[couple]

    def style(self, couple: int) -> Tensor:
        return self.styles[couple]


def cohort(shape: tuple[int, int, int], num_classes: int, num_atlases: int) -> Scans:
    """Smooth textures in place of scans, with all that `generate` may write."""
    generator = torch.Generator().manual_seed(0)
    total = num_atlases + SCANS
    names = [str(place) for place in range(total)]
    images = torch.stack([smooth_noise(1, shape, generator)[0].sigmoid() * 0.9 for _ in names]).half()
    labels = {a: smooth_noise(num_classes, shape, generator)[0].argmax(0).to(torch.uint8) for a in range(num_atlases)}
    couples = [(a, scan) for a in range(num_atlases) for scan in range(num_atlases, total)]
    bank = Bank(
        couples,
        [2 * smooth_noise(3, shape, generator)[0] for _ in couples],
        [0.1 * smooth_noise(1, shape, generator)[0] for _ in couples],
    )
    samples = [StoredSample(images[a], labels[a].short(), names[scan]) for a, scan in couples]
    atlases, scans = list(range(num_atlases)), list(range(num_atlases, total))
    return Scans(names, images, labels, atlases, scans, num_classes, (1.0, 1.0, 1.0), bank, samples)


def variants(method: Method, *, light_only: bool) -> Iterator[dict[str, Any]]:
    """Settings: the method's own, and the light networks where it has them."""
    fields = method.settings.model_fields
    light = {name: "light" for name in NETWORKS if name in fields}
    if not light_only or not light:
        yield {}
    if light and any(fields[name].default != "light" for name in light):
        yield light


def phases(recipe: Recipe) -> Iterator[tuple[str, Phase]]:
    for phase in recipe.train_registration:
        yield "train_reg", phase
    for phase in recipe.train_segmentation:
        yield "train_seg", phase


def measure_one(name: str, settings: dict[str, Any], grid: str, repeats: int) -> dict[str, Any]:
    """Seconds and memory of every phase of a method; in a process of its own."""
    shape, num_classes = GRIDS[grid]
    method = find_method(name)
    config = Config.model_validate(
        {"workspace": "runs", "data": {"folder": "."}, "structures": {"a": 1}, "methods": {name: settings}}
    )
    num_atlases = ATLASES if name == "lc-voxelmorph" else 1
    torch.manual_seed(0)
    recipe = method.recipe(Task(shape, num_classes, num_atlases), settings_of(method, config))
    data, device = cohort(shape, num_classes, num_atlases), choose_device(configuration("auto"))
    rows = []
    for stage, phase in phases(recipe):
        train = training_of(method, config, stage)
        assert train.batch_size is not None and train.augmentation is not None
        batch_size = phase.batch_size or train.batch_size
        draw = Draw(batch_size, *AUGMENTATIONS[train.augmentation], torch.Generator().manual_seed(0))
        optimizers = [training._optimizer(player, train) for player in phase.players]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-5

        def step(phase=phase, draw=draw, optimizers=optimizers) -> None:  # type: ignore[no-untyped-def]
            batch = phase.batches(data, draw)
            for player, optimizer in zip(phase.players, optimizers, strict=True):
                training._move(player, optimizer, phase, batch, device)

        step()  # warm-up
        times = [timed(step) for _ in range(repeats)]
        rows.append(
            {"stage": stage, "phase": phase.name, "batch_size": batch_size, "seconds": statistics.median(times),
             "least": min(times), "most": max(times)}
        )  # fmt: skip
    return {"method": name, "settings": settings, "phases": rows, "peak_memory_mib": peak_memory_mib()}


def table(result: dict[str, Any]) -> str:
    shape, num_classes = GRIDS[result["grid"]]
    lines = [
        f"# A training step of every method, {' x '.join(map(str, shape))} voxels",
        "",
        f"{num_classes} classes, {result['processor']['model']} ({', '.join(result['processor']['flags'])}), "
        f"{result['threads']} threads, torch {result['torch']}; median of {result['repeats']} steps after one, each "
        "method in a process of its own, whose peak memory stands beside it.",
        "",
        "| method | networks | stage, phase | batch | seconds (min-max) | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for each in result["methods"]:
        networks = "light" if each["settings"] else "own"
        for row in each["phases"]:
            lines.append(
                f"| {each['method']} | {networks} | {row['stage']}, {row['phase']} | {row['batch_size']} "
                f"| {row['seconds']:.2f} ({row['least']:.2f}-{row['most']:.2f}) | {each['peak_memory_mib']:.0f} |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=GRIDS, default="hippocampus")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each phase")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument(
        "--one", nargs=2, metavar=("METHOD", "SETTINGS"), help="used by itself: measure one, print JSON"
    )
    arguments = parser.parse_args()
    if arguments.one:
        name, settings = arguments.one
        print(json.dumps(measure_one(name, json.loads(settings), arguments.grid, arguments.repeats)))
        return
    choose_device(configuration("auto"))
    found = []
    for name, method in METHODS.items():
        for settings in variants(method, light_only=arguments.grid == "brain"):
            command = [sys.executable, __file__, "--grid", arguments.grid, "--repeats", str(arguments.repeats)]
            done = subprocess.run(
                [*command, "--one", name, json.dumps(settings)], stdout=subprocess.PIPE, text=True, check=True
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, settings, flush=True)
    result = {
        "grid": arguments.grid, "repeats": arguments.repeats, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "processor": processor(), "methods": [each for each in found if each["phases"]],
    }  # fmt: skip
    stem = "method_steps" + ("" if arguments.grid == "hippocampus" else f"_{arguments.grid}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / f"{stem}.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
