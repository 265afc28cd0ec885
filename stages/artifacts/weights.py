"""Registration and segmentation: trained networks; the settings in the manifest rebuild them."""

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
    """What `lrls train-reg` wrote."""

    KIND: ClassVar[str] = "registration"
    FORMAT: ClassVar[int] = 3
    MADE_WITH: ClassVar[str] = "lrls train-reg"

    def load(self, networks: Mapping[str, nn.Module]) -> None:
        """Fill networks with the trained weights; others that the file holds are left alone.

        Args:
            networks: by name; a sub-network by "network/sub-network".

        Raises:
            LrlsError: the file is damaged, or a network or tensor is not in it or does not fit; all networks then stay
                as they are.
        """
        load_weights(networks, self.folder / "weights.safetensors")


@dataclass(frozen=True)
class Segmentation(Registration):
    """What `lrls train-seg` wrote."""

    KIND: ClassVar[str] = "segmentation"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls train-seg"
