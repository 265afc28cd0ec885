"""Rows of a benchmark table from the newest scores of a workspace.

    python docs/benchmarks/summarize.py runs/hippocampus

One line per method, part and seed: mean DSC over scans with its bootstrap interval, worst scan, HD95, ASSD, missed
structures, share of folded voxels, std(|J|), and the wall time up to the last weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stages.artifacts.scores import Scores
from stages.artifacts.store import history
from stages.compare import cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    made = history(parser.parse_args().workspace)
    by_digest = {manifest.digest: manifest for _, manifest in made}

    columns = ["method", "output", "part", "seed", "DSC", "95 %", "worst", "HD95 mm", "ASSD mm", "missed"]
    columns += ["folded %", "std J", "minutes"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for folder, manifest in made:
        if manifest.identity.kind != "scores":
            continue
        summary = Scores.open(folder).summary
        for output, found in summary["outputs"].items():
            dsc, field = found["dsc"], summary.get("registration") if output == "registration" else None
            folded = f"{100 * field['folding_fraction']['mean']:.3f}" if field else ""
            spread = f"{field['jacobian_std']['mean']:.2f}" if field else ""
            print(
                f"| {folder.parent.parent.name} | {output} | {summary['part']} | {manifest.identity.seed} "
                f"| {dsc['mean']:.4f} | {dsc['low']:.3f}-{dsc['high']:.3f} | {dsc['min']:.3f} "
                f"| {found['hd95_mm']['mean']:.2f} | {found['assd_mm']['mean']:.2f} | {found['missed']} "
                f"| {folded} | {spread} | {(cost(manifest, by_digest)[0] or float('nan')) / 60:.1f} |"
            )


if __name__ == "__main__":
    main()
