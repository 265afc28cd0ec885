"""Weights of trained registration and segmentation networks; the settings in the manifest rebuild the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stages.artifacts.manifest import Artifact
from stages.artifacts.weights_file import load_weights

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Registration(Artifact):
    """The artifact that `lrls train-reg` writes."""

    KIND: ClassVar[str] = "registration"
    FORMAT: ClassVar[int] = 3
    MADE_WITH: ClassVar[str] = "lrls train-reg"

    def load(self, networks: Mapping[str, nn.Module]) -> None:
        """Fill networks with the trained weights; weights of other networks in the file are ignored.

        Args:
            networks: by name; a sub-network by "network/sub-network".

        Raises:
            LrlsError: the file is damaged, or a network or tensor is missing or does not fit. No network is then
                changed.
        """
        load_weights(networks, self.folder / "weights.safetensors")


@dataclass(frozen=True)
class Segmentation(Registration):
    """The artifact that `lrls train-seg` writes."""

    KIND: ClassVar[str] = "segmentation"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls train-seg"
