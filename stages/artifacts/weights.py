"""Registration and segmentation: trained networks; the settings in the manifest rebuild them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stages.artifacts.files import shown
from stages.artifacts.manifest import Artifact
from stages.artifacts.weights_file import fill, held, read_weights
from stages.errors import LrlsError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Registration(Artifact):
    """What `lrls train-reg` wrote."""

    KIND: ClassVar[str] = "registration"
    FORMAT: ClassVar[int] = 3
    MADE_WITH: ClassVar[str] = "lrls train-reg"

    def load(self, networks: Mapping[str, nn.Module], *, only: Collection[str] | None = None) -> list[str]:
        """Fill those of the networks that the file holds with the trained weights; others are left alone.

        Args:
            networks: by name; a part of a network by "network/part".
            only: names of the networks that may be filled; none: all.

        Returns:
            The names of those that were filled, in the order given.

        Raises:
            LrlsError: the file is damaged or holds none of the networks, or a tensor of one that it holds does not fit;
                all networks then stay as they are.
        """
        path = self.folder / "weights.safetensors"
        tensors, _ = read_weights(path)
        asked = [name for name in networks if only is None or name in only]
        filled = held(asked, tensors)
        if not filled:
            there = ", ".join(sorted({key.partition("/")[0] for key in tensors})) or "none"
            raise LrlsError(
                f"{shown(path)}: found weights of {there}, expected {' or '.join(asked) or 'none'}; "
                "use the configuration that it was trained with, or train again."
            )
        fill({name: networks[name] for name in filled}, tensors, shown(path))
        return filled


@dataclass(frozen=True)
class Segmentation(Registration):
    """What `lrls train-seg` wrote."""

    KIND: ClassVar[str] = "segmentation"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls train-seg"
