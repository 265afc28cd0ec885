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

    @property
    def is_possible(self) -> bool:
        """Whether these are the numbers of a volume; what was stored may be anything."""
        numbers = (*self.size, *self.spacing, *self.origin, *self.direction)
        lengths = [len(part) for part in (self.size, self.spacing, self.origin, self.direction)]
        is_finite = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        return lengths == [3, 3, 3, 9] and is_finite and min(*self.size, *self.spacing) > 0


def geometry_of(image: sitk.Image) -> Geometry:
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def geometry_faults(image: Geometry, label: Geometry, case: str) -> list[Fault]:
    """Differences between a label map's geometry and its image's."""
    return [Fault(case, found, remedy, "label-grid") for found, remedy in differences(image, label, "image", "label")]


def differences(image: Geometry, other: Geometry, name: str, other_name: str) -> list[tuple[str, str]]:
    """(found, remedy) of each difference between the geometries of an image and what should lie on its grid.

    Args:
        name, other_name: of both, for messages.
    """
    found: list[tuple[str, str]] = []
    tolerance_mm = GEOMETRY_TOLERANCE * unit_mm(image.spacing)
    resample = f"resample the {other_name} or fix its header"
    if image.size != other.size:
        problem = f"{other_name} size {other.size} voxels, {name} size {image.size} voxels"
        found.append((problem, f"resample the {other_name} to the {name}'s grid"))
    for quantity, of_other, of_image in (
        ("spacing", other.spacing, image.spacing),
        ("origin", other.origin, image.origin),
    ):
        if not np.allclose(of_other, of_image, rtol=0, atol=tolerance_mm):
            problem = f"{other_name} {quantity} {_rounded(of_other)} mm, {name} {quantity} {_rounded(of_image)} mm"
            found.append((problem, resample))
    if not np.allclose(other.direction, image.direction, rtol=0, atol=GEOMETRY_TOLERANCE):
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
        other_code, image_code = code(other.direction), code(image.direction)
        if other_code != image_code:
            problem = f"{other_name} direction {other_code}, {name} direction {image_code}"
        else:
            turn = np.reshape(other.direction, (3, 3)).T @ np.reshape(image.direction, (3, 3))
            degrees = math.degrees(math.acos(min(1.0, (np.trace(turn) - 1) / 2)))
            problem = f"{other_name} direction {degrees:.2g} degrees away from the {name} direction"
        found.append((problem, resample))
    return found


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
