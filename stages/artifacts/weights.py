"""Registration and segmentation: trained networks; the settings in the manifest rebuild them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from stages.artifacts.store import Manifest, load_weights, read_manifest

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Registration:
    """What `lrls train-reg` wrote."""

    KIND: ClassVar[str] = "registration"
    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises LrlsError if the folder holds no finished artifact of this kind."""
        return cls(folder, read_manifest(folder, kind=cls.KIND))

    def load(self, networks: dict[str, nn.Module]) -> None:
        """Fill the networks with the trained weights.

        Raises:
            LrlsError: the file is damaged, or a tensor does not fit.
        """
        load_weights(networks, self.folder / "weights.safetensors")


@dataclass(frozen=True)
class Segmentation(Registration):
    """What `lrls train-seg` wrote."""

    KIND: ClassVar[str] = "segmentation"
