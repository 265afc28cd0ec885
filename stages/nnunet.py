"""Cohorts and generated couples as nnU-Net v2's raw data, to train nnU-Net on; held-out scans for it, and its answers.

    Dataset<3 digits>_<name>/
      dataset.json
      imagesTr/<case>_0000.nii.gz   atlases and generated couples, on the cohort's grid, intensities in [0, 1]; further
                                    channels _0001, ...
      labelsTr/<case>.nii.gz        consecutive class indices, as nnU-Net wants them
      imagesTs/<case>_0000.nii.gz   the unlabelled scans

Source: nnU-Net v2, documentation/dataset_format.md.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch

from stages.answering.answers import atlases_of
from stages.answering.model import named_channels
from stages.answering.scoring import score
from stages.artifacts.cohort import Cohort
from stages.artifacts.files import plain
from stages.artifacts.made import Made
from stages.artifacts.manifest import UNREADABLE, parsed
from stages.artifacts.placing import check_place, placed
from stages.config import Config
from stages.data.channels import suffix_of
from stages.data.intake import read_image, read_label
from stages.data.labels import classes_of
from stages.data.own_space import classes_in_own_space
from stages.data.writers import write_image
from stages.errors import LrlsError
from stages.methods import find_method, plan_of
from stages.methods.recipe import Generate
from stages.parts.warps import one_hot

DATASET, FOLDERS = "dataset.json", ("imagesTr", "labelsTr", "imagesTs")
OURS = "written_by_lrls"  # key in dataset.json: the files that may be replaced


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
        raise LrlsError(f"--out {plain(out.name)}: nnU-Net reads folders like Dataset101_Hippocampus only; name it so.")
    scans = [config.data.folder / config.data.images, config.data.folder / config.data.labels]
    check_place(out, force=force, strange=_strange_in, kept=[config.workspace, *scans], inside=True)
    check_place(out, force=force, strange=_strange_in, kept=[config.data.folder, config.base, Path.cwd()])
    cohort = made.cohort
    channels = named_channels(config, cohort) if cohort.channels > 1 else ["normalised"]
    steps = plan_of(find_method(method_name), config).steps(made.round)
    if made.generated is None and any(isinstance(step, Generate) for step in steps):
        raise LrlsError(
            f"{method_name}: the generated data that its network learned from are gone; "
            "make both again with `lrls generate` and `lrls train-seg`."
        )
    with placed(out, force=force, strange=_strange_in) as draft:
        for folder in FOLDERS:
            (draft / folder).mkdir(parents=True)
        train, test = 0, cohort.parts.get("unlabeled", [])
        for case, image, label in _labelled(made, config, method_name, couples):
            _write_channels(image, cohort, draft / "imagesTr", case)
            _write(label, cohort, draft / "labelsTr" / f"{case}.nii.gz")
            train += 1
        for case in test:
            _write_channels(cohort.image(case), cohort, draft / "imagesTs", case)
        about = {
            "channel_names": {str(k): name for k, name in enumerate(channels)},
            "labels": {"background": 0} | {name: k for k, name in enumerate(cohort.structures, start=1)},
            "numTraining": train,
            "file_ending": ".nii.gz",
            OURS: sorted(path.relative_to(draft).as_posix() for path in draft.rglob("*.nii.gz")),
        }
        (draft / DATASET).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return {"train": train, "test": len(test)}


def write_scans(cases: Sequence[str], cohort: Cohort, folder: Path) -> None:
    """Write scans of a cohort into a folder as `nnUNetv2_predict` reads them, on the grid, a file a channel."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        _write_channels(cohort.image(case), cohort, folder, case)


def score_answers(name: str, folder: Path, held_out: Cohort, config: Config) -> pd.DataFrame:
    """Score nnU-Net's label maps of the part `eval.part` as `lrls eval` scores ours: in the scans' own space.

    A label map on the grid goes the way of our own answers: one-hot, interpolated at the scan's own voxels.

    Args:
        name: for the column "output".
        folder: holds <case>.nii.gz with class indices on the cohort's grid.
        held_out: the part's scans, on that grid.

    Returns:
        The rows of `scores.csv`.

    Raises:
        LrlsError: a label map is missing, lies on another grid, or holds other values.
    """
    rows = []
    for case in held_out.parts[config.eval.part]:
        on_grid = torch.from_numpy(_answer(folder, case, held_out).astype(np.int16))
        whole = one_hot(on_grid[None], held_out.num_classes)[0]
        classes = classes_in_own_space(whole, held_out.transform(case), held_out.grid)
        volume = read_label(config, case)
        rows += score(name, case, classes_of(volume, config, case), classes, volume.GetSpacing()[::-1], config)
    return pd.DataFrame(rows)


def _answer(folder: Path, case: str, cohort: Cohort) -> np.ndarray:
    path, grid = folder / f"{case}.nii.gz", cohort.grid.as_image()
    if not path.is_file():
        raise LrlsError(f"case {case}: {plain(folder.name)} holds no {path.name}; let `nnUNetv2_predict` write it.")
    image = read_image(path, case, "answer")
    geometry = ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")
    if not all(np.allclose(getattr(image, get)(), getattr(grid, get)(), atol=1e-3) for get in geometry):
        raise LrlsError(
            f"case {case}: {path.name} does not lie on the cohort's grid; let `nnUNetv2_predict` answer the scans "
            "that were written for it."
        )
    classes = sitk.GetArrayFromImage(image)
    if strange := sorted(set(np.unique(classes).tolist()) - set(range(cohort.num_classes))):
        raise LrlsError(
            f"case {case}: {path.name} holds the value {strange[0]:g}, expected 0 to {cohort.num_classes - 1}; let "
            "`nnUNetv2_predict` answer with what was trained on this cohort's data."
        )
    return classes


def _strange_in(out: Path) -> str | None:
    """Why a data set is not one that lrls wrote and nobody added to; None: it is, and may be replaced."""
    try:
        ours = {DATASET, *FOLDERS, *parsed(out / DATASET)[OURS]}
    except UNREADABLE:
        return f"was not written by lrls ({DATASET} does not say so)"
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if name not in ours or path.is_symlink():
            return f"holds {plain(name)}, which lrls did not write"
    return "is a link" if out.is_symlink() else None


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


def _write_channels(image: np.ndarray, cohort: Cohort, folder: Path, case: str) -> None:
    """(D, H, W), or (C, D, H, W) as a file a channel."""
    for number, channel in enumerate(image if image.ndim == 4 else image[None]):
        _write(channel, cohort, folder / f"{case}{suffix_of(number)}.nii.gz")


def _write(array: np.ndarray, cohort: Cohort, path: Path) -> None:
    kind = np.float32 if np.issubdtype(array.dtype, np.floating) else np.min_scalar_type(cohort.num_classes - 1)
    image = sitk.GetImageFromArray(array.astype(kind))
    image.CopyInformation(cohort.grid.as_image())
    try:
        write_image(image, path)
    except LrlsError:  # which names the hidden draft
        raise OSError(errno.EIO, f"{path.name} could not be written") from None
