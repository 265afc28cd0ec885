"""Geometry of images, and whether a label map lies on its image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from stages.data.faults import Fault
from stages.parts.lengths import unit_mm

GEOMETRY_TOLERANCE = 1e-3  # mm of a person for spacing and origin (`unit_mm`); entries of direction matrices
MOST_SHEAR = 5e-3  # cosine of two axes: half a voxel in a hundred


@dataclass(frozen=True)
class Geometry:
    """Size, spacing, origin and direction as SimpleITK returns them: (x, y, z), LPS, mm."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


def geometry_of(image: sitk.Image) -> Geometry:
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def geometry_faults(image: Geometry, label: Geometry, case: str) -> list[Fault]:
    """Differences between a label map's geometry and its image's."""
    faults = []
    tolerance_mm = GEOMETRY_TOLERANCE * unit_mm(image.spacing)
    resample = "resample the label or fix its header"
    if image.size != label.size:
        problem = f"label size {label.size} voxels, image size {image.size} voxels"
        faults.append(Fault(case, problem, "resample the label to the image's grid", "label-grid"))
    for quantity, of_label, of_image in (
        ("spacing", label.spacing, image.spacing),
        ("origin", label.origin, image.origin),
    ):
        if not np.allclose(of_label, of_image, rtol=0, atol=tolerance_mm):
            problem = f"label {quantity} {_rounded(of_label)} mm, image {quantity} {_rounded(of_image)} mm"
            faults.append(Fault(case, problem, resample, "label-grid"))
    if not np.allclose(label.direction, image.direction, rtol=0, atol=GEOMETRY_TOLERANCE):
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
        label_code, image_code = code(label.direction), code(image.direction)
        if label_code != image_code:
            problem = f"label direction {label_code}, image direction {image_code}"
        else:
            turn = np.reshape(label.direction, (3, 3)).T @ np.reshape(image.direction, (3, 3))
            degrees = math.degrees(math.acos(min(1.0, (np.trace(turn) - 1) / 2)))
            problem = f"label direction {degrees:.2g} degrees away from the image direction"
        faults.append(Fault(case, problem, resample, "label-grid"))
    return faults


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
