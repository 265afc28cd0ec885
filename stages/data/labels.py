"""The user's label values and their class indices: 0 is background, then the structures in order."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from stages.config import Config
from stages.data.faults import Fault, IntakeError, not_finite


def class_indices(label_array: np.ndarray, config: Config, case: str) -> np.ndarray:
    """Label values as class indices: 0 is background, then the structures in the order of the configuration.

    Returns:
        uint8 (uint16 for over 255 structures), the shape of `label_array`.

    Raises:
        IntakeError: a value is neither named nor background, and `others` is not "background".
    """
    values, indices = value_table(config)
    place = np.searchsorted(values, label_array).clip(max=len(values) - 1)
    known = values[place] == label_array
    if config.others == "error" and not known.all():
        raise IntakeError(_unknown_values(case, np.unique(label_array[~known])))
    classes = indices[place]
    classes[~known] = 0
    return classes


def label_values(classes: np.ndarray, config: Config) -> np.ndarray:
    """Class indices as the user's label values; a structure with several values gets its first.

    Returns:
        Array of the smallest unsigned integer type that holds every value; signed if a value is negative.
    """
    table = [0, *(values[0] for values in config.structure_values().values())]
    if min(table) < 0:
        dtype = np.promote_types(np.int32, np.promote_types(*(np.min_scalar_type(f(table)) for f in (min, max))))
    else:
        dtype = np.min_scalar_type(max(table))
    return np.array(table, dtype=dtype)[classes]


def value_table(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """All known label values, sorted, and the class index of each."""
    index_of = {0: 0}
    for index, values in enumerate(config.structure_values().values(), start=1):
        index_of |= dict.fromkeys(values, index)
    dtype = np.uint8 if len(config.structures) <= 255 else np.uint16
    return np.array(sorted(index_of)), np.array([index_of[value] for value in sorted(index_of)], dtype=dtype)


def classes_of(label: sitk.Image, config: Config, case: str) -> np.ndarray:
    """Class indices (D, H, W) of a label map, in its stored order; see `class_indices`."""
    return class_indices(sitk.GetArrayViewFromImage(label), config, case)


def as_integers(label: sitk.Image, case: str) -> sitk.Image:
    """A label map as integers.

    Raises:
        IntakeError: it has values that are not integers.
    """
    voxels = sitk.GetArrayViewFromImage(label)
    if not np.issubdtype(voxels.dtype, np.floating):
        return label
    if not np.isfinite(voxels).all():
        raise IntakeError(not_finite(case, "label map", int(np.isnan(voxels).sum()), int(np.isinf(voxels).sum())))
    uneven = voxels[voxels != np.round(voxels)]
    if uneven.size:
        problem = f"label map has values that are not integers ({_listed(np.unique(uneven))})"
        remedy = "resample label maps with nearest neighbour and save them as integers"
        raise IntakeError(Fault(case, problem, remedy))
    return sitk.Cast(label, sitk.sitkInt64 if np.abs(voxels).max() > 2**31 - 1 else sitk.sitkInt32)


def _unknown_values(case: str, values: np.ndarray) -> Fault:
    problem = f"label value{'s' if len(values) > 1 else ''} {_listed(values)} not named in structures"
    return Fault(case, problem, "name them there, or set others: background")


def _listed(values: np.ndarray, most: int = 5) -> str:
    text = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values[:most].tolist())
    return f"{text}, ... ({len(values)} in all)" if len(values) > most else text
