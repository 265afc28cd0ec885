"""Images and plots that a method shows of its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Panel:
    """One image of a page.

    Args:
        heading: what it shows.
        image: (D, H, W).
        label: class indices (D, H, W), drawn as contours; None: none.
        shows: intensities in [0, 1]; an error, which is 0 where all is right, in colour on one scale for the whole
            page; or a feature, in its own range.
        folds: (D, H, W) bool, marked in colour: where a displacement folds; None: nothing is marked.
    """

    heading: str
    image: Tensor
    label: Tensor | None = None
    shows: Literal["intensities", "error", "feature"] = "intensities"
    folds: Tensor | None = None


@dataclass(frozen=True)
class Points:
    """A plot of points in two dimensions, in groups.

    Args:
        title: what they are.
        groups: name -> (n, 2); the first point of a group is the one that has its name.
        axes: what the two directions are.
    """

    title: str
    groups: dict[str, Tensor]
    axes: tuple[str, str]
