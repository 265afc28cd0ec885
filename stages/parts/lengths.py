"""Lengths: one that grows with the scans, and axes along which voxels are thick."""

from __future__ import annotations

import math
from collections.abc import Sequence

FINEST_MM, COARSEST_MM = 0.2, 5.0  # finest voxel edges of scans of people
STEPS = (1, 2, 5)


def unit_mm(spacing_mm: Sequence[float]) -> float:
    """The length that stands for 1 mm of a person in scans of another size, or whose header is in another unit.

    1 for voxels of 0.2 to 5 mm; otherwise the nearest of 1, 2 and 5 times a power of ten to the finest voxel edge. Such
    steps make scans that are a tenth, twenty times or a thousand times as large about alike.

    Args:
        spacing_mm: of a grid or scan.
    """
    finest = min(spacing_mm)
    if FINEST_MM <= finest <= COARSEST_MM:
        return 1.0
    power = math.floor(math.log10(finest))
    steps = [step * 10.0**exponent for exponent in (power, power + 1) for step in STEPS]
    return min(steps, key=lambda step: abs(math.log(finest / step)))


THICK_FROM = 2.0  # times the finest spacing


def are_thick(spacing_mm: Sequence[float]) -> tuple[bool, ...]:
    """Which axes have slices so thick that networks neither pool nor convolve along them at first, as in nnU-Net."""
    return tuple(mm >= THICK_FROM * min(spacing_mm) for mm in spacing_mm)


def with_fewer_voxels(spacing_mm: Sequence[float], times: float) -> tuple[float, ...]:
    """A spacing of one voxel in `times`: thick slices stay as they are."""
    is_thick = are_thick(spacing_mm)
    factor = times ** (1 / (len(is_thick) - sum(is_thick)))
    return tuple(mm if thick else mm * factor for mm, thick in zip(spacing_mm, is_thick, strict=True))


def as_setting(spacing_mm: Sequence[float]) -> str:
    """A spacing as it is written in the configuration: one number where all axes have the same."""
    numbers = [f"{mm:.3g}" for mm in spacing_mm]
    return numbers[0] if len(set(numbers)) == 1 else f"[{', '.join(numbers)}]"
