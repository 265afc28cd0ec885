"""Hostile models: mutations of an exported model, opened under limits; those that open answer a scan.

    cd tests && PYTHONPATH=.. python -m attacks.hostile_models model.zip [--tries 1000] [--seed 0] [--only 17]

The model is of a method with a network. Every try must be refused in one line or answer; a traceback, a hang, or
memory beyond the bound makes it exit with 1.
"""

from __future__ import annotations

import random
import shutil
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from attacks.mutations import CONTENTS, PACKAGES, as_folder, as_zip
from attacks.trying import Ended, run_attack, tried

SECONDS, MORE_MB = 60.0, 400.0


def attempt(path: Path, scan: Path, out: Path) -> dict[str, Any]:
    """Open the model; if it opens, answer."""
    from stages.answering.exported import open_model
    from stages.answering.model import running_on
    from stages.predict import predict

    model = running_on(open_model(path), {"device": "cpu", "threads": 1, "preprocess.workers": 1})
    lines: list[str] = []
    try:
        failures = predict(model, [scan], out, tell=lines.append)
    except Exception as error:
        from stages.errors import LrlsError

        if isinstance(error, LrlsError):
            failures = [error]
        else:
            raise RuntimeError("opened, but") from error
    plain = all(line.isprintable() and len(line) < 2000 for line in lines)
    return {"failed": bool(failures), "plain": plain}


def outcome_of(ended: Ended) -> str:
    if ended.how == "done":
        if not ended.result["plain"]:
            return "TRACEBACK"
        return "opened, scan refused" if ended.result["failed"] else "opened, answered"
    if ended.how == "traceback":
        return "TRACEBACK in predict" if "opened, but" in ended.told else "TRACEBACK"
    return "refused" if ended.how == "refused" else ended.how.upper()


def attack(model: Path, *, tries: int, seed: int, scratch: Path, only: int | None = None) -> dict[str, Counter[str]]:
    """Counts of outcomes by kind of mutation."""
    import numpy as np
    import SimpleITK as sitk

    from stages.data.phantoms import make_phantom

    with zipfile.ZipFile(model) as file:
        files = {name: file.read(name) for name in file.namelist()}
    scan, image = scratch / "scan.nii.gz", make_phantom(np.random.default_rng([11, 5]), "RAS")[0]
    centre_mm = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    image.SetOrigin((np.array(image.GetOrigin()) - centre_mm).tolist())  # as tests/conftest.py places scans
    sitk.WriteImage(image, str(scan))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    kinds = [*CONTENTS, *CONTENTS, *PACKAGES]
    for number in range(-1, tries) if only is None else [only]:
        draw = random.Random(f"{seed} {number}")
        kind = kinds[number % len(kinds)] if number >= 0 else "unchanged"
        folder = scratch / f"{number}"
        folder.mkdir()
        path = folder / "model.zip"
        if kind in PACKAGES:
            path = folder / "model" if kind == "odd folder" and draw.random() < 0.8 else path
            PACKAGES[kind](files, path, draw)
        else:
            changed = CONTENTS[kind](files, draw) if kind in CONTENTS else files
            if draw.random() < 0.3:
                path = folder / "model"
                as_folder(changed, path)
            else:
                as_zip(changed, path)
        ended = tried(lambda path=path, out=folder / "out": attempt(path, scan, out), seconds=SECONDS, more_mb=MORE_MB)
        outcome = outcome_of(ended)
        counts[kind][outcome] += 1
        if only is not None or outcome[:4].isupper():
            last = ended.told.strip().splitlines()[-1:] or [""]
            print(f"{number} {kind}: {outcome}, {ended.seconds:.1f} s, {ended.memory_mb:.0f} MB: {last[0][:300]}")
        if only is not None:
            print(ended.told)
        shutil.rmtree(folder)
    return counts


if __name__ == "__main__":
    run_attack(attack, __doc__, "model", tries=1000, on_project=False)
