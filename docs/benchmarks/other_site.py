"""A second site made of the scans of a benchmark: the same people, seen by a scanner of another contrast.

    python docs/benchmarks/other_site.py FOLDER OUT [--look invert|gamma] [--gamma 3]

FOLDER holds images/, labels/ and split.json. OUT becomes such a folder: all that FOLDER has, as links, and scans
`<case>_b` in the other look, of the second half of `unlabeled`, of `dev` and of `test`. Its split.json has, beside the
lists of FOLDER's, `unlabeled_a` (the first half of `unlabeled`, as it was), `unlabeled_b` (the second half, in the
other look: no one is at both sites), `unlabeled_both`, `dev_b` and `test_b`.

Of intensities x, scaled to [0, 1] between their 0.5th and 99.5th percentile, `gamma` makes x^gamma and `invert` 1 - x;
the lowest value stays black, which is what was cut away of brain-extracted scans.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def other_look(image: sitk.Image, look: str, gamma: float) -> sitk.Image:
    """The image in the other site's look, float32 in [0, 1]."""
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    low, high = np.percentile(values, (0.5, 99.5))
    scaled = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    changed = scaled**gamma if look == "gamma" else np.where(values > values.min(), 1 - scaled, 0)
    result = sitk.GetImageFromArray(changed.astype(np.float32))
    result.CopyInformation(image)
    return result


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.symlink(source.resolve(), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--look", choices=("invert", "gamma"), default="gamma")
    parser.add_argument("--gamma", type=float, default=3.0)
    options = parser.parse_args()
    split = json.loads((options.folder / "split.json").read_text())
    half = len(split["unlabeled"]) // 2
    there = split["unlabeled"][half:]
    for kind in ("images", "labels"):
        for path in sorted((options.folder / kind).iterdir()):
            link(path, options.out / kind / path.name)
    for case in [*there, *split["dev"], *split["test"]]:
        path = next((options.folder / "images").glob(f"{case}.nii*"))
        ending = path.name.removeprefix(case)
        image = other_look(sitk.ReadImage(str(path)), options.look, options.gamma)
        sitk.WriteImage(image, str(options.out / "images" / f"{case}_b{ending}"))
        for label in (options.folder / "labels").glob(f"{case}.nii*"):
            link(label, options.out / "labels" / f"{case}_b{label.name.removeprefix(case)}")
    parts = {"unlabeled_a": split["unlabeled"][:half], "unlabeled_b": [f"{case}_b" for case in there]}
    parts["unlabeled_both"] = parts["unlabeled_a"] + parts["unlabeled_b"]
    parts |= {f"{part}_b": [f"{case}_b" for case in split[part]] for part in ("dev", "test")}
    (options.out / "split.json").write_text(json.dumps(split | parts, indent=1))


if __name__ == "__main__":
    main()
