"""Scans that are unlike the others: in size, in what they show, or in how their intensities are stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product

import numpy as np
import SimpleITK as sitk

from stages.data.faults import Fault, Severity, off_grid
from stages.data.geometry import Geometry

OTHER_SIZE, OTHER_UNIT = 5.0, 25.0  # times the size of other scans: worth telling, certainly not in their unit
PERSON_MM = (5.0, 3000.0)  # scans that are smaller or larger than this are perhaps not in mm
LEAST_GAP = 0.3  # of an outlier's correlation to the others' median
SPREADS = 5.0  # of the others' correlations, robust standard deviations
POOR_FIT = 0.2  # median correlation with a reference that shows something else
WRAPPED_FROM, SEEN_TO = 61440, 49152  # -4096 as an unsigned number of 16 bits, and what no image with wraps reaches


def extent_mm(geometry: Geometry) -> float:
    """The longest edge of an image's box."""
    return max(n * mm for n, mm in zip(geometry.size, geometry.spacing, strict=True))


def length(mm: float) -> str:
    """A length as people say it."""
    if mm >= 1000:
        return f"{mm / 1000:.3g} m"
    return f"{mm:.3g} mm" if mm >= 0.1 else f"{mm * 1000:.3g} \N{GREEK SMALL LETTER MU}m"


def size_faults(extents_mm: Mapping[str, float], told: Collection[str], reference: str = "") -> list[Fault]:
    """Scans that are far larger or smaller than most of the others.

    Args:
        extents_mm: of the scans by case.
        told: the cases that are reported.
        reference: the first atlas, which is right where there are only two scans.
    """
    faults = []
    for case, mm in extents_mm.items():
        others = [other for other_case, other in extents_mm.items() if other_case != case]
        if case not in told or not others or (len(others) == 1 and case == reference):
            continue
        levels: tuple[tuple[float, str, Severity], ...] = (
            (OTHER_UNIT, "its spacing is in another unit: correct the header, or take it out", "fault"),
            (OTHER_SIZE, "look at its spacing", "notice"),
        )
        for factor, remedy, severity in levels:
            far = [other for other in others if max(mm / other, other / mm) >= factor]
            if 2 * len(far) > len(others):
                found = f"image is {length(mm)} wide, the others {length(float(np.median(far)))}"
                faults.append(Fault(case, found, remedy, "other-size", severity))
                break
    return faults


def unlike_reference(image: Geometry, reference: Geometry, case: str) -> Fault | None:
    """The fault of a new scan that cannot be in the unit of the scans that a model has learned from."""
    mm, of_reference = extent_mm(image), extent_mm(reference)
    if max(mm / of_reference, of_reference / mm) < OTHER_UNIT:
        return None
    found = f"image is {length(mm)} wide, the first atlas {length(of_reference)}"
    return Fault(case, found, "its spacing is in another unit: correct the header", "other-size")


def beyond_reach(
    geometries: Mapping[str, Geometry], told: Collection[str], reference: str, reach_mm: float
) -> list[Fault]:
    """Scans whose box lies wholly beside the first atlas's, so that nothing of them is on the grid if none is aligned.

    Args:
        told: the cases that are reported.
        reach_mm: how far the grid may go beyond the atlas's box.
    """
    if reference not in geometries:
        return []
    axes = np.reshape(geometries[reference].direction, (3, 3))
    low, high = _box(geometries[reference], axes)
    return [
        off_grid(case)
        for case, geometry in geometries.items()
        if case in told and _is_beside(*_box(geometry, axes), low - reach_mm, high + reach_mm)
    ]


def _box(geometry: Geometry, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates of an image's corners along axes, in mm."""
    corners = np.array(list(product(*((0, n - 1) for n in geometry.size)))) * geometry.spacing
    along = (corners @ np.reshape(geometry.direction, (3, 3)).T + geometry.origin) @ axes
    return along.min(0), along.max(0)


def _is_beside(low: np.ndarray, high: np.ndarray, other_low: np.ndarray, other_high: np.ndarray) -> bool:
    return bool((low > other_high).any() or (high < other_low).any())


def unit_notice(extents_mm: Mapping[str, float]) -> list[Fault]:
    """Whether the whole cohort is of a size that says that its unit is not mm."""
    if not extents_mm:
        return []
    mm = float(np.median(list(extents_mm.values())))
    if PERSON_MM[0] <= mm <= PERSON_MM[1]:
        return []
    found = f"scans are {length(mm)} wide by their headers, which are read as mm"
    remedy = "if that is not their size, HD95, ASSD and volumes are in the headers' unit, not in mm or ml"
    return [Fault("", found, remedy, "odd-unit", "notice")]


def alignment_notices(
    correlations: Mapping[str, float], of_others: Sequence[float] = (), *, reference: str
) -> list[Fault]:
    """Scans whose correlation with the reference, once aligned, lies far below the others'.

    Args:
        correlations: by case, without the reference.
        of_others: of scans that are only compared with.
    """
    everyone = [*correlations.values(), *of_others]
    middle = sorted(everyone)[len(everyone) // 2] if len(everyone) > 1 else 1.0  # of two, one that fits is enough
    if middle < POOR_FIT:
        found = f"is the reference, and most scans hardly fit it: median correlation {np.median(everyone):.2f}"
        remedy = "look at qc/cohort.png: list another atlas first, or set preprocess.align_contrast to any"
        return [Fault(reference, found, remedy, "reference-unlike", "notice")]
    notices = []
    for place, (case, own) in enumerate(correlations.items()):
        others = np.delete(everyone, place)
        if not others.size:
            continue
        median = float(np.median(others))
        spread = 1.4826 * float(np.median(np.abs(others - median)))
        if own < median - max(LEAST_GAP, SPREADS * spread):
            found = f"correlation with the first atlas is {own:.2f} after alignment, the others' median is {median:.2f}"
            remedy = "look at it in qc/cohort.png: correct the scan, or take it out"
            notices.append(Fault(case, found, remedy, "unlike-others", "notice"))
    return notices


def wrapped(image: sitk.Image, case: str) -> Fault | None:
    """Whether negative values were stored as unsigned numbers of 16 bits, so that -1 became 65535."""
    voxels = sitk.GetArrayViewFromImage(image)
    if not WRAPPED_FROM <= voxels.max() <= 65535 or voxels.min() < 0:
        return None
    high = float((voxels >= WRAPPED_FROM).mean())
    between = float(((voxels >= SEEN_TO / 2) & (voxels < WRAPPED_FROM)).mean())
    if high < 0.001 or between > 0.01 * high:
        return None
    found = f"{100 * high:.2g} % of the image's voxels are 61440 to 65535: negative values stored as unsigned"
    return Fault(case, found, "subtract 65536 from them, or export the scan again as signed", "wrapped", "notice")
