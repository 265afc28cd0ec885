"""Rows of a benchmark table from the newest scores of a workspace.

    python docs/benchmarks/summarize.py runs/hippocampus [runs/more ...] [--curves curves.png --part dev]

One line per method, part and seed: mean DSC over scans with its bootstrap interval, worst scan, HD95, ASSD, missed
structures, share of folded voxels, std(|J|), and the wall time up to the last weights. With `--curves`, a picture of
DSC against that time: a line through the runs of each method.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from stages.artifacts.costs import cost
from stages.artifacts.scores import Scores
from stages.artifacts.store import history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspaces", type=Path, nargs="+")
    parser.add_argument("--curves", type=Path, help="picture to write")
    parser.add_argument("--part", default="dev", help="whose scores the picture shows")
    arguments = parser.parse_args()
    made = [each for workspace in arguments.workspaces for each in history(workspace)]
    by_digest = {manifest.digest: manifest for _, manifest in made}

    columns = ["method", "output", "part", "seed", "DSC", "95 %", "worst", "HD95 mm", "ASSD mm", "missed"]
    columns += ["folded %", "std J", "minutes"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for folder, manifest in made:
        if manifest.identity.kind != "scores" or manifest.identity.outdated:
            continue
        summary = Scores.open(folder).summary
        method, minutes = folder.parent.parent.name, (cost(manifest, by_digest)[0] or float("nan")) / 60
        for output, found in summary["outputs"].items():
            dsc, field = found["dsc"], summary.get("registration") if output == "registration" else None
            folded = f"{100 * field['folding_fraction']['mean']:.3f}" if field else ""
            spread = f"{field['jacobian_std']['mean']:.2f}" if field else ""
            print(
                f"| {method} | {output} | {summary['part']} | {manifest.identity.seed} "
                f"| {dsc['mean']:.4f} | {dsc['low']:.3f}-{dsc['high']:.3f} | {dsc['min']:.3f} "
                f"| {found['hd95_mm']['mean']:.2f} | {found['assd_mm']['mean']:.2f} | {found['missed']} "
                f"| {folded} | {spread} | {minutes:.1f} |"
            )
            if summary["part"] == arguments.part:
                flat, first = bool(summary.get("flat_borders")), output == next(iter(summary["outputs"]))
                name = f"{method}, {output}"
                if first or (flat and output == "network"):  # without flat borders, as runs before there were any
                    name = f"{method}, flat borders" if first and flat else method
                curves.setdefault(name, []).append((minutes, dsc["mean"], dsc["low"], dsc["high"]))
    if arguments.curves:
        draw(curves, arguments.curves, title=f"{arguments.workspaces[0].name}, {arguments.part}")


def draw(curves: dict[str, list[tuple[float, float, float, float]]], path: Path, *, title: str) -> None:
    """DSC with its interval against minutes, (minutes, mean, low, high) a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, runs) in enumerate(sorted(curves.items())):
        minutes, mean, low, high = np.array(sorted(runs)).T
        style = "--" if "," in name else "-"
        axes.errorbar(
            minutes,
            mean,
            [mean - low, high - mean],
            marker="o",
            ls=style,
            capsize=2,
            label=name,
            color=f"C{number % 10}",
        )
    axes.set(xlabel="minutes to the last weights", ylabel="DSC, mean over scans", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
