"""Which scans should get the next labels? The answer of registration alone, for hundreds of random orders.

    python docs/benchmarks/labels_votes.py docs/benchmarks/hippocampus.yaml --set data.folder=FOLDER --out results/hip

Atlases are registered to held-out scans by the instance optimisation of `best`, once a pair. A set of labels answers by
the mean of its atlases' propagated labels, and DSC is counted on the grid. No network is trained, so every set of
labels of a pool costs nothing once the pairs are registered. All orders begin with the configuration's atlas. Orders:

    suggested   as `lrls suggest-next` chooses, here with equal weights of all scans, without a network that answers
    typical     as `lrls suggest-atlas` ranks them
    farthest    the scan that is farthest from all labelled ones (core-set, k-center)
    random      --draws sets of each size

Label maps in the data set stand in for the person who labels. Pairs are kept beside OUT; a stopped command resumes.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from stages.artifacts.cohort import Cohort
from stages.config import load_config
from stages.data.grid import label_to_grid
from stages.data.intake import read_label
from stages.data.labels import classes_of
from stages.parts.channels import as_images
from stages.parts.instance import InstanceOptimisation
from stages.parts.metrics import dice_per_class
from stages.parts.warps import warp_one_hot
from stages.preprocess import preprocess
from stages.suggest_atlas import suggest_atlas
from stages.suggest_next import batch, coarse, distances

COUNTS = (1, 2, 3, 5)  # labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--pool", type=int, nargs=2, default=(0, 20), help="unlabelled scans, from and to")
    parser.add_argument("--part", default="test")
    parser.add_argument("--scored", type=int, default=12, help="held-out scans, the first ones")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, arguments.settings)
    pool = config.part("unlabeled")[slice(*arguments.pool)]
    held = config.part(arguments.part)[: arguments.scored]
    lists = {"unlabeled": pool, "dev": [], "test": [], arguments.part: held}
    config = config.model_copy(update={"data": config.data.model_copy(update=lists)})
    cohort = preprocess(config, "train")
    scored = preprocess(config, arguments.part, base=cohort)
    (first,) = cohort.parts["atlases"]

    def truth(case: str, of: Cohort) -> torch.Tensor:
        label = read_label(config, case)
        classes = classes_of(label, config, case)
        return torch.from_numpy(
            label_to_grid(label, classes, cohort.num_classes, of.transform(case), cohort.grid).astype(np.int64)
        )

    register = InstanceOptimisation(12, 3, smoothness=1.0, spacing_mm=cohort.grid.spacing_mm)
    labels = {case: truth(case, cohort) for case in (first, *pool)}
    kept = arguments.out.with_suffix(".pairs")
    kept.mkdir(parents=True, exist_ok=True)

    def propagated(atlas: str, case: str, of: Cohort) -> torch.Tensor:
        """Class probabilities of an atlas's label in the shape of a scan, (C, D, H, W)."""
        file = kept / f"{atlas}--{case}.npy"
        if not file.exists():
            field = register(as_images(cohort.image(atlas)), as_images(of.image(case)))
            np.save(file, warp_one_hot(labels[atlas][None], field, cohort.num_classes)[0].half().numpy())
        return torch.from_numpy(np.load(file)).float()

    moved = {}
    for place, atlas in enumerate((first, *pool)):
        moved |= {(atlas, case): propagated(atlas, case, scored) for case in held}
        print(f"{place + 1} of {len(pool) + 1} atlases", flush=True)
    truths = {case: truth(case, scored) for case in held}
    known: dict[tuple[str, ...], float] = {}

    def dsc(chosen: list[str]) -> float:
        atlases = tuple(sorted((first, *chosen)))
        if atlases not in known:
            of_scans = []
            for case in held:
                answer = sum(moved[atlas, case] for atlas in atlases).argmax(0)  # type: ignore[union-attr]
                of_scans.append(float(dice_per_class(answer, truths[case], cohort.num_classes).nanmean()))
            known[atlases] = float(np.mean(of_scans))
        return known[atlases]

    answers = [propagated(first, case, cohort).argmax(0) for case in pool] + [labels[first]]
    masks = [coarse(F.one_hot(answer, cohort.num_classes).movedim(-1, 0)[1:].float()) for answer in answers]
    looks = [coarse(as_images(cohort.image(case))[0, :1]) for case in (*pool, first)]
    distance = distances(torch.stack(masks), torch.stack(looks))
    typical = suggest_atlas(config).table["case"].tolist()
    n, most = len(pool), COUNTS[-1] - 1
    suggested = batch(distance[:n, :n], distance[:n, n:], np.ones(n), most)
    nearest, farthest = distance[:n, n].copy(), []
    for _ in range(most):
        farthest.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance[farthest[-1], :n])
    orders = {
        "suggested": [pool[k] for k in suggested],
        "typical": typical,
        "farthest": [pool[k] for k in farthest],
    }
    rows = []
    for count in COUNTS:
        draws = [random.Random(seed).sample(pool, count - 1) for seed in range(arguments.draws)]
        of_draws = np.array([dsc(draw) for draw in draws])
        row = {"labels": count} | {name: dsc(order[: count - 1]) for name, order in orders.items()}
        row |= {"random mean": of_draws.mean(), "random 5 %": np.quantile(of_draws, 0.05)}
        row |= {"random 95 %": np.quantile(of_draws, 0.95)}
        row |= {"random below suggested": (of_draws < row["suggested"]).mean()}
        rows.append({key: value if key == "labels" else f"{value:.4f}" for key, value in row.items()})
        print(rows[-1], flush=True)
    with arguments.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
