"""Losses of registration that several methods share, by their names in the configuration.

One table with one loss for every method, as OS-MedSeg's comparison has it: the same `similarity` and `smoothness` (and
`smoothness_weight`) in `methods.<name>` of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor

from stages.methods.phases import Ramp, Terms
from stages.methods.settings import MethodSettings
from stages.parts.players.registering import (
    Matched,
    bending_energy,
    mean_squares,
    mutual_information,
    similarity,
    similarity_of_means,
    smoothness,
)

Similarity = Literal["lncc", "lncc-means", "mse", "mi"]
Smoothness = Literal["diffusion", "bending"]
SIMILARITIES: dict[Similarity | None, Callable[[Matched], Tensor]] = {
    "lncc": similarity,
    "lncc-means": similarity_of_means,
    "mse": mean_squares,
    "mi": mutual_information,
}
SMOOTHNESSES: dict[Smoothness | None, Callable[[Matched], Tensor]] = {
    "diffusion": smoothness,
    "bending": bending_energy,
}
SIMILARITY = (
    "L_sim: local cross-correlation (lncc; lncc-means: with the larger floor of OS-MedSeg's code), mean squares (mse), "
    "or mutual information (mi). Where lncc and mi go with a smoothness_weight of 1, mse goes with about 0.01."
)
SMOOTHNESS = "L_smooth: diffusion (first derivatives) or bending energy (second derivatives)."


class RegistrationSettings(MethodSettings):
    """Settings of methods that learn registration; a method may have other defaults."""

    similarity: Similarity = Field("lncc", description=SIMILARITY)
    smoothness: Smoothness = Field("diffusion", description=SMOOTHNESS)
    smoothness_weight: float = Field(1.0, ge=0, description="Weight of L_smooth.")


def registration_terms(
    settings: RegistrationSettings, *, similarity_weight: float = 1.0, smoothness_weight: float | Ramp | None = None
) -> Terms:
    """L_sim and L_smooth as the settings name them.

    Args:
        smoothness_weight: in the place of the settings' own.
    """
    weight = settings.smoothness_weight if smoothness_weight is None else smoothness_weight
    return {
        "similarity": (similarity_weight, SIMILARITIES[settings.similarity]),  # L_sim
        "smoothness": (weight, SMOOTHNESSES[settings.smoothness]),  # L_smooth
    }
