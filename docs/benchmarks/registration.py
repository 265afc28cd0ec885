"""Registration alone: the atlas's label carried to every held-out scan, by alignment and by instance optimisation.

    python docs/benchmarks/registration.py docs/benchmarks/any/heart.yaml --set data.folder=FOLDER --set eval.part=dev

The grid is the one that the file (or the newest plan in its workspace) says. One process, one thread. DSC is measured
in each scan's own voxels. Prints a line a row: mean DSC, lowest DSC, % of voxels with a determinant of 0 or less (by
central differences, and at the worst of a voxel's eight corners), standard deviation of the determinant, processor
seconds a pair.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from stages.artifacts.cohort import Cohort
from stages.config import Config
from stages.data.intake import read_label
from stages.data.labels import classes_of
from stages.data.own_space import classes_in_own_space
from stages.device import keep_freed_memory
from stages.parts.channels import as_images
from stages.parts.folding import least_determinant
from stages.parts.instance import InstanceOptimisation
from stages.parts.metrics import dice_per_class, jacobian_determinant
from stages.parts.voting import vote
from stages.planning.obeying import settled
from stages.preprocess import preprocess


def main(config_file: Path, setting: Annotated[list[str], typer.Option("--set")] = []) -> None:  # noqa: B006
    torch.set_num_threads(1)
    keep_freed_memory()
    config = settled(config_file, setting).config
    cohort = preprocess(config, "train")
    held_out = preprocess(config, config.eval.part, base=cohort)
    optimise = InstanceOptimisation(spacing_mm=cohort.grid.spacing_mm)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "alignment": lambda moving, _: torch.zeros(1, 3, *moving.shape[2:]),
        "instance optimisation": optimise,
    }
    print(f"{len(held_out.cases)} scans on {cohort.grid.shape} voxels of {cohort.grid.spacing_mm} mm")
    for name, way in ways.items():
        rows = [one(way, case, cohort, held_out, config) for case in held_out.parts[config.eval.part]]
        dsc, folded, cornered, spread, seconds = np.array(rows).T
        print(
            f"{name}: DSC {dsc.mean():.4f} (worst {dsc.min():.3f}), folded {100 * folded.mean():.4f} %, at corners "
            f"{100 * cornered.mean():.4f} %, std J {spread.mean():.2f}, {seconds.mean():.2f} s",
            flush=True,
        )


def one(
    way: Callable[[Tensor, Tensor], Tensor], case: str, cohort: Cohort, held_out: Cohort, config: Config
) -> list[float]:
    atlas = cohort.parts["atlases"][0]
    image, scan = cohort.image(atlas), held_out.image(case)
    began = time.process_time()
    field = way(as_images(image), as_images(scan))
    seconds = time.process_time() - began
    votes = vote([(image, cohort.label(atlas))], [field[0].numpy()], scan, cohort.num_classes)
    record = json.loads(held_out.path(f"transforms/{case}.json").read_text(encoding="utf-8"))
    answer = classes_in_own_space(votes, record, cohort.grid)
    truth = classes_of(read_label(config, case), config, case)
    dsc = dice_per_class(
        torch.from_numpy(answer.astype(np.int64)), torch.from_numpy(truth.astype(np.int64)), cohort.num_classes
    )
    determinant = jacobian_determinant(field)
    return [
        float(np.nanmean(dsc.numpy())),
        float((determinant <= 0).double().mean()),
        float((least_determinant(field) <= 0).double().mean()),
        float(determinant.std()),
        seconds,
    ]


if __name__ == "__main__":
    typer.run(main)
