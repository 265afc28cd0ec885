"""How long a training step of every method takes and how much memory, phase by phase.

    python docs/benchmarks/method_steps.py [--grid brain] [--method sst ...]

A step draws its batch and moves every player of the phase once; all of that is timed, as `lrls` trains: in bfloat16
where the processor is good at it, with the method's own batch size and augmentation. Each phase runs in a process of
its own, whose peak memory counts, with the method's published networks and with its light ones; on the grid of a brain
only with the light ones. Of a method that trains in rounds, the first training and a round.
Writes `results/method_steps.json` and `.md` (`method_steps_brain` with `--grid brain`) beside this file; with
`--method`, the rows of other methods stay as they are there.
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

from stages.artifacts.generated import StoredSample  # noqa: E402
from stages.config import Config  # noqa: E402
from stages.device import choose_device  # noqa: E402
from stages.methods import METHODS, settings_of, training_of  # noqa: E402
from stages.methods.phases import Phase  # noqa: E402
from stages.methods.recipe import Method, Recipe, Task  # noqa: E402
from stages.parts.augmentation import AUGMENTATIONS  # noqa: E402
from stages.parts.batches.drawing import Draw  # noqa: E402
from stages.parts.batches.pseudo_labels import PseudoLabel  # noqa: E402
from stages.parts.batches.scans import Scans  # noqa: E402
from stages.training import loop as training  # noqa: E402
from stages.training.runs import SECTION, TrainSection  # noqa: E402

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
    samples = [StoredSample(images[a], labels[a].short(), names[scan], names[a]) for a, scan in couples]
    atlases, scans = list(range(num_atlases)), list(range(num_atlases, total))
    sure = torch.ones(shape, dtype=torch.bool), torch.ones(num_classes, dtype=torch.bool)
    pseudo = {scan: PseudoLabel(labels[0], *sure) for scan in scans}
    return Scans(names, images, labels, atlases, scans, num_classes, (1.0, 1.0, 1.0), bank, samples, pseudo)


def variants(method: Method, *, light_only: bool) -> Iterator[dict[str, Any]]:
    """Settings: the method's own, and the light networks where it has them."""
    fields = method.settings.model_fields
    light = {name: "light" for name in NETWORKS if name in fields}
    if not light_only or not light:
        yield {}
    if light and any(fields[name].default != "light" for name in light):
        yield light


def phases(recipe: Recipe) -> list[tuple[int, TrainSection, Phase]]:
    """(round, stage, phase), in the order in which they train."""
    steps = [(number, step) for number, step in recipe.training_steps() if number <= 1]
    return [(number, SECTION[step.makes], phase) for number, step in steps for phase in step.phases]


def prepared(name: str, settings: dict[str, Any], grid: str) -> tuple[Config, Recipe]:
    config = Config.model_validate(
        {"workspace": "runs", "data": {"folder": "."}, "structures": {"a": 1}, "methods": {name: settings}}
    )
    shape, num_classes = GRIDS[grid]
    return config, METHODS[name].recipe(Task(shape, num_classes, atlases_of(name)), settings_of(METHODS[name], config))


def atlases_of(name: str) -> int:
    return ATLASES if name == "lc-voxelmorph" else 1


def measure_one(name: str, settings: dict[str, Any], grid: str, place: int, repeats: int) -> dict[str, Any]:
    """Seconds and memory of a phase of a method; in a process of its own."""
    config, recipe = prepared(name, settings, grid)
    data, device = cohort(*GRIDS[grid], atlases_of(name)), choose_device(configuration("auto"))
    number, stage, phase = phases(recipe)[place]
    train = training_of(METHODS[name], config, stage)
    assert train.batch_size is not None and train.augmentation is not None
    batch_size = phase.batch_size or train.batch_size
    draw = Draw(batch_size, *AUGMENTATIONS[train.augmentation], torch.Generator().manual_seed(0))
    optimizers = [training._optimizer(player, train) for player in phase.players]
    averages = [training._average(player, train) for player in phase.players]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 1e-5

    def step() -> None:
        batch = phase.batches(data, draw)
        for player, optimizer, average in zip(phase.players, optimizers, averages, strict=True):
            training._move(player, optimizer, phase, batch, device)
            average.update()

    step()  # warm-up
    times = [timed(step) for _ in range(repeats)]
    return {
        "method": name, "settings": settings, "round": number, "stage": stage, "phase": phase.name,
        "batch_size": batch_size, "seconds": statistics.median(times), "least": min(times), "most": max(times),
        "peak_memory_mib": peak_memory_mib(),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    shape, num_classes = GRIDS[result["grid"]]
    lines = [
        f"# A training step of every method, {' x '.join(map(str, shape))} voxels",
        "",
        f"{num_classes} classes, {result['processor']['model']} ({', '.join(result['processor']['flags'])}), "
        f"{result['threads']} threads, torch {result['torch']}; median of {result['repeats']} steps after one, each "
        "phase in a process of its own, whose peak memory stands beside it.",
        "",
        "| method | networks | stage, phase | batch | seconds (min-max) | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["phases"]:
        networks = "light" if row["settings"] else "own"
        phase = row["phase"] + (f", round {row['round']}" if row["round"] else "")
        lines.append(
            f"| {row['method']} | {networks} | {row['stage']}, {phase} | {row['batch_size']} "
            f"| {row['seconds']:.2f} ({row['least']:.2f}-{row['most']:.2f}) | {row['peak_memory_mib']:.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=GRIDS, default="hippocampus")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each phase")
    parser.add_argument("--method", action="append", choices=METHODS, help="measure this one anew; repeat for more")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument(
        "--one", nargs=3, metavar=("METHOD", "SETTINGS", "PLACE"), help="used by itself: measure a phase, print JSON"
    )
    arguments = parser.parse_args()
    if arguments.one:
        name, settings, place = arguments.one
        print(json.dumps(measure_one(name, json.loads(settings), arguments.grid, int(place), arguments.repeats)))
        return
    choose_device(configuration("auto"))
    stem = "method_steps" + ("" if arguments.grid == "hippocampus" else f"_{arguments.grid}")
    before = json.loads((arguments.out / f"{stem}.json").read_text())["phases"] if arguments.method else []
    found = []
    for name, method in METHODS.items():
        if arguments.method and name not in arguments.method:
            found += [row for row in before if row["method"] == name]
            continue
        for settings in variants(method, light_only=arguments.grid == "brain"):
            command = [sys.executable, __file__, "--grid", arguments.grid, "--repeats", str(arguments.repeats)]
            for place in range(len(phases(prepared(name, settings, arguments.grid)[1]))):
                one = [*command, "--one", name, json.dumps(settings), str(place)]
                done = subprocess.run(one, stdout=subprocess.PIPE, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, settings, flush=True)
    result = {
        "grid": arguments.grid, "repeats": arguments.repeats, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "processor": processor(), "phases": found,
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / f"{stem}.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
