"""Cohorts and generated couples as nnU-Net v2's raw data, to train nnU-Net on.

    Dataset<3 digits>_<name>/
      dataset.json
      imagesTr/<case>_0000.nii.gz   atlases and generated couples, on the cohort's grid, intensities in [0, 1]
      labelsTr/<case>.nii.gz        consecutive class indices, as nnU-Net wants them
      imagesTs/<case>_0000.nii.gz   the unlabelled scans

Source: nnU-Net v2, documentation/dataset_format.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stages.answering.answers import atlases_of
from stages.artifacts.cohort import Cohort
from stages.artifacts.made import Made
from stages.config import Config
from stages.errors import LrlsError
from stages.methods import find_method, plan_of
from stages.methods.recipe import Generate


def export_nnunet(
    made: Made, config: Config, method_name: str, out: Path, *, couples: int = 100, force: bool = False
) -> dict[str, int]:
    """Write a cohort and what a method generated from it; the folder is complete or absent.

    Args:
        couples: how many to draw from generated paths; finished couples are all written.

    Returns:
        "train": images with labels, "test": images without.

    Raises:
        LrlsError: nnU-Net does not read folders of that name, the folder exists, or the generated data are gone.
    """
    if not re.fullmatch(r"Dataset\d{3}_\w+", out.name):
        raise LrlsError(f"--out {out.name}: nnU-Net reads folders like Dataset101_Hippocampus only; name it so.")
    if out.exists() and not (force and (out / "dataset.json").is_file()):
        raise LrlsError(f"{out} exists already; choose another number, or replace a data set with --force.")
    cohort = made.cohort
    steps = plan_of(find_method(method_name), config).steps(made.round)
    if made.generated is None and any(isinstance(step, Generate) for step in steps):
        raise LrlsError(
            f"{method_name}: the generated data that its network learned from are gone; "
            "make both again with `lrls generate` and `lrls train-seg`."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            (draft / folder).mkdir(parents=True)
        train, test = 0, cohort.parts.get("unlabeled", [])
        for case, image, label in _labelled(made, config, method_name, couples):
            _write(image, cohort, draft / "imagesTr" / f"{case}_0000.nii.gz")
            _write(label, cohort, draft / "labelsTr" / f"{case}.nii.gz")
            train += 1
        for case in test:
            _write(cohort.image(case), cohort, draft / "imagesTs" / f"{case}_0000.nii.gz")
        about = {
            "channel_names": {"0": "normalised"},
            "labels": {"background": 0} | {name: k for k, name in enumerate(cohort.structures, start=1)},
            "numTraining": train,
            "file_ending": ".nii.gz",
        }
        (draft / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")
        if out.exists():
            shutil.rmtree(out)
        os.replace(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"train": train, "test": len(test)}


def _labelled(
    made: Made, config: Config, method_name: str, couples: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    cohort, generated = made.cohort, made.generated
    for part in ("atlases", "supervised"):
        for atlas in atlases_of(cohort, part):
            yield atlas.case, atlas.image, atlas.label
    if generated is None:
        return
    step = plan_of(find_method(method_name), config).step("generated", made.round)
    assert isinstance(step, Generate)
    drawn = (couple for w in step.writers for couple in w.couples(generated, cohort, couples, config.seed))
    for k, couple in enumerate(drawn):
        yield f"generated_{k:04d}", couple.image, couple.label


def _write(array: np.ndarray, cohort: Cohort, path: Path) -> None:
    kind = np.float32 if np.issubdtype(array.dtype, np.floating) else np.min_scalar_type(cohort.num_classes - 1)
    image = sitk.GetImageFromArray(array.astype(kind))
    image.CopyInformation(cohort.grid.as_image())
    sitk.WriteImage(image, str(path), useCompression=True)
