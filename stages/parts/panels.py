"""Images and plots that a method shows of its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
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
        clouds: a group's points are alike, and a legend has its name.
    """

    title: str
    groups: dict[str, Tensor]
    axes: tuple[str, str]
    clouds: bool = False


def spread(places: Sequence[int], count: int) -> list[int]:
    """Evenly spread places, the first and the last among them; at most all of them."""
    count = min(count, len(places))
    return [places[round(k * (len(places) - 1) / max(1, count - 1))] for k in range(count)]


def in_main_directions(groups: Sequence[Tensor]) -> tuple[list[Tensor], tuple[str, str]]:
    """Groups of vectors, (n, F) each, in the two main directions of all of them, and what these directions are.

    Returns:
        (n, 2) for each group, and the share of the variance along each direction as text.
    """
    with torch.autocast(groups[0].device.type, enabled=False):
        together = torch.cat([group.float() for group in groups])
        centre = together.mean(0)
        _, size, directions = torch.linalg.svd(together - centre, full_matrices=False)
        flat = [(group.float() - centre) @ directions[:2].T for group in groups]
    share = (size.square() / size.square().sum().clamp_min(1e-30)).tolist()
    return flat, (f"{100 * share[0]:.0f} % of the variance", f"{100 * share[1]:.0f} % of the variance")
