"""The user's label values and their class indices: 0 is background, then the structures in order."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from stages.config import Config
from stages.data.faults import Fault, IntakeError, no_numbers, not_finite
from stages.data.slabs import slabs

ROUNDING = 1e-3  # between a stored value and its integer
MANY_VALUES = 100  # label maps with more are looked at more closely
ALIKE = 0.5  # share of labelled voxels with their neighbour's value, at least, in a label map


def class_indices(label_array: np.ndarray, config: Config, case: str) -> np.ndarray:
    """Label values as class indices: 0 is background, then the structures in the order of the configuration.

    Returns:
        uint8 (uint16 for over 255 structures), the shape of `label_array`.

    Raises:
        IntakeError: a value is neither named nor background, and `others` is not "background".
    """
    values, indices = value_table(config)
    classes = np.empty(label_array.shape, indices.dtype)
    unknown: list[np.ndarray] = []
    for slab in slabs(label_array):
        stored = label_array[slab]
        place = np.searchsorted(values, stored).clip(max=len(values) - 1)
        known = values[place] == stored
        if not known.all():
            unknown.append(np.unique(stored[~known]))
        classes[slab] = np.where(known, indices[place], 0)
    if unknown and config.others == "error":
        raise IntakeError(_unknown_values(case, np.unique(np.concatenate(unknown))))
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
    """A label map as integers. Values within `ROUNDING` of one are that integer: scl_slope makes 2.9999998 of 3.

    Raises:
        IntakeError: it has values that are not integers, or looks like an image.
    """
    voxels = sitk.GetArrayViewFromImage(label)
    if np.iscomplexobj(voxels):
        raise IntakeError(no_numbers(case, "label map"))
    if num_values := _values_of_an_image(voxels):
        problem = f"label map has {num_values} different values: it looks like an image"
        raise IntakeError(Fault(case, problem, "put the scan's label map in its place", "label-like-image"))
    if not np.issubdtype(voxels.dtype, np.floating):
        return label
    if not np.isfinite(voxels).all():
        raise IntakeError(not_finite(case, "label map", int(np.isnan(voxels).sum()), int(np.isinf(voxels).sum())))
    rounded = np.round(voxels)
    uneven = voxels[np.abs(voxels - rounded) > ROUNDING]
    if uneven.size:
        problem = f"label map has values that are not integers ({_listed(np.unique(uneven))})"
        remedy = "resample label maps with nearest neighbour and save them as integers"
        raise IntakeError(Fault(case, problem, remedy, "label-not-integer"))
    integers = sitk.Round(label) if (rounded != voxels).any() else label
    return sitk.Cast(integers, sitk.sitkInt64 if np.abs(voxels).max() > 2**31 - 1 else sitk.sitkInt32)


def _values_of_an_image(voxels: np.ndarray) -> int:
    """How many values an image in the place of a label map has; 0: it is a label map.

    Structures hold together: most neighbours of a labelled voxel have its value. In an image hardly any two are equal.
    """
    low, high = float(voxels.min()), float(voxels.max())
    if not np.isfinite(high - low) or (high - low < MANY_VALUES and np.issubdtype(voxels.dtype, np.integer)):
        return 0
    before, behind = voxels[..., :-1], voxels[..., 1:]
    labelled = before != 0
    if not labelled.any() or (before[labelled] == behind[labelled]).mean() > ALIKE:
        return 0
    num_values = len(np.unique(voxels))
    return num_values if num_values > MANY_VALUES else 0


def _unknown_values(case: str, values: np.ndarray) -> Fault:
    problem = f"label value{'s' if len(values) > 1 else ''} {_listed(values)} not named in structures"
    return Fault(case, problem, "name them there, or set others: background", "label-value")


def _listed(values: np.ndarray, most: int = 5) -> str:
    text = ", ".join(str(value).removesuffix(".0") for value in values[:most])  # as many digits as they have
    return f"{text}, ... ({len(values)} in all)" if len(values) > most else text
