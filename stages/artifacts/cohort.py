"""The cohort: scans aligned, cropped and resampled to one grid, with the maps back to each scan's own voxels.

cohort.h5     images/<case>   (D, H, W) float16 in [0, 1]
              labels/<case>   (D, H, W) class indices, smallest unsigned type; only of scans that may be trained on
              reference       (D, H, W) float32 in [0, 1]: the first atlas in its own space, to which scans are aligned
cohort.json   grid, structures, parts
transforms/<case>.json        geometry of the scan, map to it, intensity range, quality of the alignment
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from stages.artifacts.manifest import Artifact, read_manifest

if TYPE_CHECKING:
    import numpy as np
    import SimpleITK as sitk
    import torch

    from stages.parts.batches.scans import Scans


@dataclass(frozen=True)
class Grid:
    """The one grid of a cohort. Axis order (D, H, W); origin and direction in SimpleITK's (x, y, z), LPS, mm."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    def as_image(self) -> sitk.Image:
        """An empty image with this geometry."""
        import SimpleITK as sitk

        image = sitk.Image([int(n) for n in self.shape[::-1]], sitk.sitkUInt8)
        image.SetSpacing(self.spacing_mm[::-1])
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


Vector = tuple[float, float, float]


@dataclass(frozen=True)
class FlatBorder:
    """Two structures that meet in a plane of voxels.

    Args:
        classes: their class indices.
        normal: of the plane, along a voxel axis of the first atlas; unit vector in its mm space (x, y, z).
    """

    classes: tuple[int, int]
    normal: Vector


@dataclass(frozen=True)
class Cohort(Artifact):
    """An open cohort; images and labels are read when they are asked for."""

    KIND: ClassVar[str] = "cohort"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls preprocess"
    grid: Grid
    structures: tuple[str, ...]
    parts: dict[str, list[str]]
    flat_borders: tuple[FlatBorder, ...]  # drawn in all its labelled scans
    notes: tuple[str, ...] = ()  # what its user should know of the scans

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises LrlsError if the folder holds no finished cohort of this format."""
        manifest = read_manifest(folder, kind=cls)
        about = json.loads((folder / "cohort.json").read_text())
        grid = Grid(**{key: tuple(value) for key, value in about["grid"].items()})
        borders = tuple(FlatBorder(tuple(b["classes"]), tuple(b["normal"])) for b in about["flat_borders"])
        return cls(
            folder, manifest, grid, tuple(about["structures"]), about["parts"], borders, tuple(about.get("notes", ()))
        )

    @property
    def cases(self) -> list[str]:
        return [case for cases in self.parts.values() for case in cases]

    @property
    def num_classes(self) -> int:
        return len(self.structures) + 1

    def image(self, case: str) -> np.ndarray:
        """(D, H, W), float16 in [0, 1]."""
        import h5py

        with h5py.File(self.folder / "cohort.h5") as file:
            return file["images"][case][()]

    def label(self, case: str) -> np.ndarray:
        """(D, H, W), class indices."""
        import h5py

        with h5py.File(self.folder / "cohort.h5") as file:
            return file["labels"][case][()]

    def reference(self) -> sitk.Image:
        """The image that scans are aligned to, in its own space."""
        import h5py
        import SimpleITK as sitk

        with h5py.File(self.folder / "cohort.h5") as file:
            data = file["reference"]
            image = sitk.GetImageFromArray(data[()])
            image.SetSpacing(data.attrs["spacing"].tolist())
            image.SetOrigin(data.attrs["origin"].tolist())
            image.SetDirection(data.attrs["direction"].tolist())
        return image

    def transform(self, case: str) -> dict[str, Any]:
        """The record of a scan's preprocessing; see `stages.data.prepare.prepare`."""
        return json.loads((self.folder / "transforms" / f"{case}.json").read_text())

    def fallen_back(self) -> list[str]:
        """Cases whose alignment was refused, so that their centres of mass are aligned instead."""
        return [case for case in self.cases if self.transform(case)["fell_back"]]

    def scans(self, device: torch.device, parts: Sequence[str] | None = None) -> Scans:
        """Images and labels of the given parts (default: all) in memory on a device."""
        import h5py
        import numpy as np
        import torch

        from stages.parts.batches.scans import Scans

        names = [case for part in parts or self.parts for case in self.parts[part]]
        with h5py.File(self.folder / "cohort.h5") as file:
            images = torch.stack([torch.from_numpy(file["images"][case][()]) for case in names])[:, None]
            labels = {
                place: torch.from_numpy(file["labels"][case][()].astype(np.int16)).to(device)
                for place, case in enumerate(names)
                if case in file["labels"]
            }
        return Scans(
            names=names,
            images=images.to(device),
            labels=labels,
            atlases=[names.index(case) for case in self.parts.get("atlases", []) if case in names],
            unlabeled=[names.index(case) for case in self.parts.get("unlabeled", []) if case in names],
            num_classes=self.num_classes,
            spacing_mm=self.grid.spacing_mm,
        )


@contextmanager
def write_images(folder: Path, reference: sitk.Image) -> Iterator[Callable[[str, np.ndarray, np.ndarray | None], None]]:
    """Write `cohort.h5`. Yields a function that adds a scan: case, image (D, H, W) float16, class indices or None."""
    import h5py
    import SimpleITK as sitk

    with h5py.File(folder / "cohort.h5", "w") as file:
        data = file.create_dataset("reference", data=sitk.GetArrayFromImage(reference))
        data.attrs["spacing"] = reference.GetSpacing()
        data.attrs["origin"] = reference.GetOrigin()
        data.attrs["direction"] = reference.GetDirection()
        images, labels = file.create_group("images"), file.create_group("labels")

        def add(case: str, image: np.ndarray, label: np.ndarray | None) -> None:
            images[case] = image
            if label is not None:
                labels[case] = label

        yield add
