"""Scans that are unlike the others of the same folder: robust z-scores of volumes and measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

COLUMNS = ("case", "what", "value", "median", "z")
LEAST_SCANS = 5  # fewer say nothing about what is usual
FAR = 3.5  # |z| of an outlier
LEAST_SHARE = 0.01  # of the median: what a deviation is at least, where scans hardly differ


@dataclass(frozen=True)
class Spread:
    """A quantity of all scans.

    Args:
        values: by case.
        z: (value - median) / (1.4826 * median absolute deviation), by case.

    Source: Iglewicz and Hoaglin, "How to detect and handle outliers", 1993: modified z-scores, 3.5 and more.
    """

    name: str
    values: dict[str, float]
    median: float
    z: dict[str, float]

    @property
    def outliers(self) -> list[str]:
        """Cases with |z| of `FAR` and more, the farthest first."""
        return sorted((case for case, z in self.z.items() if abs(z) >= FAR), key=lambda case: -abs(self.z[case]))


def spread_of(name: str, values: Mapping[str, float]) -> Spread:
    """The spread of a quantity, at least one value."""
    numbers = np.array(list(values.values()), float)
    median = float(np.median(numbers))
    deviation = 1.4826 * float(np.median(np.abs(numbers - median)))
    deviation = max(deviation, LEAST_SHARE * abs(median), 1e-12)
    return Spread(name, dict(values), median, {case: float((v - median) / deviation) for case, v in values.items()})


def outlier_rows(spreads: Sequence[Spread]) -> list[dict[str, object]]:
    """A row per outlier, the farthest first."""
    rows = [
        {"case": case, "what": each.name, "value": each.values[case], "median": each.median, "z": each.z[case]}
        for each in spreads
        for case in each.outliers
    ]
    return sorted(rows, key=lambda row: -abs(row["z"]))  # type: ignore[arg-type]
