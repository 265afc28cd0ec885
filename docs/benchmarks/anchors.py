"""Registration anchors side by side: pairs of held-out scans, registered on the cohort's grid by every way in turn.

    python docs/benchmarks/anchors.py docs/benchmarks/brain.yaml --set data.folder=FOLDER --set eval.part=dev \\
        --pairs 6 --rows anchors.jsonl > anchors.md

Every scan of the part is registered to every later one, until there are `--pairs` of them. One process, one thread. DSC
and HD95 are measured in the fixed scan's own voxels, % of voxels with a determinant of 0 or less on the grid. Seconds
are those of the processor, for the displacement alone. `--rows` keeps a line a pair and way: a run that was stopped
goes on behind it. `--only WAY` (several times) leaves the other ways out.
"""

from __future__ import annotations

import os

os.environ |= {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1"}  # before ITK is imported

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from stages.answering.scoring import measures_of, score
from stages.artifacts.cohort import Cohort
from stages.config import Config
from stages.data.grid import label_to_grid
from stages.data.intake import read_label
from stages.data.labels import classes_of
from stages.data.own_space import as_label_image, classes_in_own_space
from stages.device import keep_freed_memory
from stages.methods import find_method
from stages.methods.recipe import Task
from stages.parts.channels import as_images
from stages.parts.instance import InstanceOptimisation
from stages.parts.voting import vote
from stages.planning.obeying import settled
from stages.preprocess import preprocess

WAYS: dict[str, tuple[str, dict[str, Any]]] = {  # name: method and its settings
    "affine": ("affine", {}),
    "bspline": ("bspline", {}),
    "syn, mutual information": ("syn", {}),
    "syn, cross-correlation": ("syn", {"preset": "official"}),
    "greedy": ("greedy", {}),
    "instance optimisation": ("best", {}),
}


def main(
    config_file: Path,
    setting: Annotated[list[str], typer.Option("--set")] = [],  # noqa: B006
    pairs: int = 6,
    rows: Path = Path("anchors.jsonl"),
    only: list[str] = [],  # noqa: B006
) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    config = settled(config_file, setting).config
    cohort = preprocess(config, "train", needs_unlabeled=False)
    held_out = preprocess(config, config.eval.part, base=cohort)
    couples = list(itertools.combinations(held_out.parts[config.eval.part], 2))[:pairs]
    known = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()] if rows.exists() else []
    ways = {way: registers(way, cohort) for way in only or WAYS}
    for couple, (way, register) in itertools.product(couples, ways.items()):
        if not any(row["way"] == way and row["pair"] == list(couple) for row in known):
            known.append({"way": way, "pair": list(couple), **one(register, *couple, held_out, cohort, config)})
            with rows.open("a", encoding="utf-8") as file:
                print(json.dumps(known[-1]), file=file)
    print(f"{len(couples)} pairs on {cohort.grid.shape} voxels of {cohort.grid.spacing_mm} mm\n")
    print("| way | pairs | DSC (worst) | HD95 mm | % folded | processor seconds a pair |\n|---|---|---|---|---|---|")
    for way in WAYS:
        own = [row for row in known if row["way"] == way and tuple(row["pair"]) in couples]
        if own:
            dsc, hd95, folded, seconds = np.array([[r["dsc"], r["hd95"], r["folded"], r["seconds"]] for r in own]).T
            print(
                f"| {way} | {len(own)} | {dsc.mean():.3f} ({dsc.min():.3f}) | {hd95.mean():.2f} | "
                f"{100 * folded.mean():.4f} | {seconds.mean():.1f} |"
            )


def registers(way: str, cohort: Cohort) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(moving, fixed) -> displacement (3, D, H, W), voxels."""
    name, values = WAYS[way]
    method, spacing_mm = find_method(name), cohort.grid.spacing_mm
    task = Task(cohort.grid.shape, cohort.num_classes, 1, spacing_mm=spacing_mm)
    by = method.planned(task, method.settings.model_validate(values)).answer.registers
    if isinstance(by, InstanceOptimisation):
        return lambda moving, fixed: by(as_images(moving), as_images(fixed))[0].numpy()
    return lambda moving, fixed: by.displacement(moving.astype(np.float32), fixed.astype(np.float32), spacing_mm, 0)  # type: ignore[union-attr]


def one(
    register: Callable[[np.ndarray, np.ndarray], np.ndarray],
    moving: str,
    fixed: str,
    held_out: Cohort,
    cohort: Cohort,
    config: Config,
) -> dict[str, float]:
    (image, label), scan = on_grid(moving, held_out, cohort, config), held_out.image(fixed)
    began = time.process_time()
    field = register(image, scan)
    seconds = time.process_time() - began
    record, volume = held_out.transform(fixed), read_label(config, fixed)
    answer = classes_in_own_space(vote([(image, label)], [field], scan, cohort.num_classes), record, cohort.grid)
    found = score("pair", fixed, classes_of(volume, config, fixed), answer, volume.GetSpacing()[::-1], config)
    return {
        "dsc": float(np.mean([row["dsc"] for row in found])),
        "hd95": float(np.mean([row["hd95_mm"] for row in found])),
        "folded": measures_of(field)["folding_fraction"],
        "seconds": seconds,
    }


def on_grid(case: str, held_out: Cohort, cohort: Cohort, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Image and label map of a scan on the grid."""
    record, classes = held_out.transform(case), classes_of(read_label(config, case), config, case)
    label = label_to_grid(as_label_image(classes, record), classes, cohort.num_classes, record, cohort.grid)
    return held_out.image(case), label


if __name__ == "__main__":
    typer.run(main)
