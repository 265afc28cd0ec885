"""Do estimates of DSC tell bad answers from good ones? On labelled scans, and on copies that are broken on purpose.

    lrls calibrate docs/benchmarks/hippocampus.yaml --method best
    lrls export docs/benchmarks/hippocampus.yaml --method best --out best.zip
    python docs/benchmarks/trust.py best.zip HIPPOCAMPUS_FOLDER --elsewhere BRAIN_FOLDER --part test --out results/trust

FOLDER holds images/, labels/ and split.json. Kinds of damage, none of which calibration uses:

    noise      Gaussian, of twice the scan's range (1st to 99th percentile)
    inverted   dark for bright
    erased     the half of the structures towards one end overwritten by what lies round them, voxels shuffled
    mirrored   along an axis of the scan, another one from scan to scan; the label, too
    elsewhere  a crop of another organ's scan of the same size, away from its hippocampi: no structure is there

Prints, for each kind, the area under the ROC curve of the estimate against "DSC under 0.6" over the kind's copies and
the unbroken scans, and how many are flagged; for unbroken scans the correlation of estimated and true DSC with its
bootstrap interval. Writes OUT.csv (a line per copy) and OUT.md.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import binary_dilation
from scipy.stats import mannwhitneyu

from stages import load_model
from stages.predict import Prediction

LOW = 0.6
KINDS = ("unbroken", "noise", "inverted", "erased", "mirrored", "elsewhere")
HIPPOCAMPI = (47, 48)  # in the brain labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--elsewhere", type=Path, required=True)
    parser.add_argument("--part", default="dev")
    parser.add_argument("--every", type=int, default=1, help="break every n-th scan only; unbroken ones are all scored")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    predictor = load_model(arguments.model)
    cases = json.loads((arguments.folder / "split.json").read_text())[arguments.part]
    copies = list(broken_copies(arguments.folder, cases, arguments.elsewhere, arguments.every))
    rows = []
    names = [f"{case}_{kind}" for case, kind, _, _ in copies]
    answers = predictor.predict_many([image for _, _, image, _ in copies], names)
    for (case, kind, _, truth), found in zip(copies, answers, strict=True):
        row = {"case": case, "kind": kind}
        if isinstance(found, Prediction):
            estimate = found.quality.estimated_dsc
            dsc = mean_dice(sitk.GetArrayFromImage(found.label), truth, list(predictor.structures.values()))
            row |= {"dsc": f"{dsc:.4f}", "estimate": f"{estimate:.4f}", "flags": "; ".join(found.quality.flags)}
            row |= {name: f"{value:.4f}" for name, value in found.quality.measures.items()}
        else:  # an answer that is refused is as good as one that is flagged
            row |= {"dsc": "0", "estimate": "0", "flags": "refused"}
        rows.append(row)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    text = report(rows, arguments.part)
    arguments.out.with_suffix(".md").write_text(text)
    print(text)


def broken_copies(
    folder: Path, cases: list[str], elsewhere: Path, every: int
) -> Iterator[tuple[str, str, sitk.Image, np.ndarray]]:
    """Case, kind, image and true label values, of every case and kind."""
    others = sorted((elsewhere / "images").iterdir())
    for number, case in enumerate(cases):
        image = sitk.ReadImage(str(next((folder / "images").glob(f"{case}.*"))), sitk.sitkFloat32)
        values = sitk.GetArrayFromImage(image)
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(next((folder / "labels").glob(f"{case}.*")))))
        random = np.random.default_rng(number)
        low, high = np.percentile(values, (1, 99))
        for kind in KINDS if number % every == 0 else KINDS[:1]:
            broken, label = values, truth
            if kind == "noise":
                broken = values + random.normal(0, 2 * (high - low), values.shape)
            elif kind == "inverted":
                broken = values.max() + values.min() - values
            elif kind == "erased":
                broken, label = erased(values, truth, random)
            elif kind == "mirrored":
                broken, label = np.flip(values, number % 3), np.flip(truth, number % 3)
            elif kind == "elsewhere":
                broken = crop_of(others[number % len(others)], elsewhere, values.shape, random)
                label = np.zeros_like(truth)
            copy = sitk.GetImageFromArray(np.ascontiguousarray(broken).astype(np.float32))
            copy.CopyInformation(image)
            yield case, kind, copy, label


def erased(values: np.ndarray, truth: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Half of the structures, cut across their longest axis, filled with voxels from round them."""
    places = np.argwhere(truth > 0)
    centred = places - places.mean(0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    half = np.zeros(truth.shape, bool)
    half[tuple(places[along > np.median(along)].T)] = True
    whole = binary_dilation(half, iterations=2)
    ring = binary_dilation(whole, iterations=3) & ~whole & (truth == 0)
    broken, label = values.copy(), truth.copy()
    broken[whole] = random.choice(values[ring], int(whole.sum()))
    label[whole] = 0
    return broken, label


def crop_of(path: Path, folder: Path, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """A crop of another scan without hippocampus, with something in it."""
    other = sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat32))
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labels" / path.name)))
    shape = tuple(min(a, b) for a, b in zip(shape, other.shape, strict=True))
    while True:
        corner = [int(random.integers(n - m + 1)) for n, m in zip(other.shape, shape, strict=True)]
        here = tuple(slice(c, c + m) for c, m in zip(corner, shape, strict=True))
        if (other[here] > 0).mean() > 0.7 and not np.isin(label[here], HIPPOCAMPI).any():
            return other[here]


def mean_dice(answer: np.ndarray, truth: np.ndarray, values: list[int]) -> float:
    """Over structures; 0 where the scan lacks one."""
    both = [((answer == v) & (truth == v)).sum() * 2 / max(1, (answer == v).sum() + (truth == v).sum()) for v in values]
    return float(np.mean(both))


def report(rows: list[dict[str, str]], part: str) -> str:
    def of(kind: str) -> tuple[np.ndarray, np.ndarray, int]:
        mine = [row for row in rows if row["kind"] == kind]
        dsc, estimate = (np.array([float(row[name]) for row in mine]) for name in ("dsc", "estimate"))
        return dsc, estimate, sum(bool(row["flags"]) for row in mine)

    dsc, estimate, flagged = of("unbroken")
    random = np.random.default_rng(0)
    draws = random.integers(len(dsc), size=(10_000, len(dsc)))
    spread = [np.corrcoef(dsc[d], estimate[d])[0, 1] for d in draws]
    lines = [
        f"{part}, {len(dsc)} scans: DSC {dsc.mean():.3f}, estimated {estimate.mean():.3f} (mean error "
        f"{np.abs(dsc - estimate).mean():.3f}); correlation {np.corrcoef(dsc, estimate)[0, 1]:.2f} "
        f"({np.percentile(spread, 2.5):.2f} to {np.percentile(spread, 97.5):.2f}); {flagged} flagged.",
        "",
        "| damage | DSC | estimated | DSC under 0.6 | area under ROC | flagged | of those under 0.6 |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS[1:]:
        own, guess, flags = of(kind)
        pool, guesses = np.concatenate([dsc, own]), np.concatenate([estimate, guess])
        bad = pool < LOW
        area = "-"
        if 0 < bad.sum() < len(bad):
            # pairs in which the good answer has the higher estimate, ties counting half
            area = f"{mannwhitneyu(guesses[~bad], guesses[bad]).statistic / ((~bad).sum() * bad.sum()):.3f}"
        caught = sum(bool(r["flags"]) for r in rows if r["kind"] == kind and float(r["dsc"]) < LOW)
        lines.append(
            f"| {kind} | {own.mean():.3f} | {guess.mean():.3f} | {(own < LOW).sum()} | {area} | {flags} | {caught} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
