"""The cohort: scans aligned, cropped and resampled to one grid, with the maps back to each scan's own voxels.

cohort.h5     images/<case>   (D, H, W) float16 in [0, 1]; (C, D, H, W) if scans have several channels
              labels/<case>   (D, H, W) class indices, smallest unsigned type; only of scans that may be trained on
              reference       (D, H, W) float32 in [0, 1]: the first atlas in its own space, to which scans are aligned;
                              of several channels the first one
cohort.json   grid, structures, parts, and the number of channels if there are several
transforms/<case>.json        geometry of the scan, map to it, intensity range, quality of the alignment
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from stages.artifacts.geometry import check_borders, check_geometry, check_grid, check_record
from stages.artifacts.h5 import DamagedH5, dataset, holds, new_h5, open_h5, read
from stages.artifacts.manifest import UNREADABLE, Artifact, damage, parsed, verified_manifest

if TYPE_CHECKING:
    import h5py
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
    FORMAT: ClassVar[int] = 3
    MADE_WITH: ClassVar[str] = "lrls preprocess"
    grid: Grid
    structures: tuple[str, ...]
    parts: dict[str, list[str]]
    flat_borders: tuple[FlatBorder, ...]  # drawn in all its labelled scans
    notes: tuple[str, ...] = ()  # what its user should know of the scans
    channels: int = 1  # images of each scan

    @classmethod
    def open(cls, folder: Path) -> Self:
        """As `Artifact.open`; raises LrlsError also if `cohort.json` does not describe a cohort."""
        manifest = verified_manifest(folder, kind=cls)
        try:
            if "cohort.json" not in manifest.files:
                raise KeyError
            about = parsed(folder / "cohort.json")
            grid = Grid(**{key: tuple(value) for key, value in about["grid"].items()})
            structures, parts = tuple(about["structures"]), about["parts"]
            borders = tuple(FlatBorder(tuple(b["classes"]), tuple(b["normal"])) for b in about["flat_borders"])
            check_grid(grid)
            check_borders(borders, len(structures) + 1)
            notes = tuple(about.get("notes", ()))
            names = (*structures, *parts, *notes, *(case for cases in parts.values() for case in cases))
            channels = about.get("channels", 1)
            if not all(isinstance(name, str) for name in names) or type(channels) is not int or channels < 1:
                raise TypeError
        except UNREADABLE:
            raise damage(folder, "cohort.json", cls.MADE_WITH) from None
        return cls(folder, manifest, grid, structures, parts, borders, notes, channels)

    @property
    def cases(self) -> list[str]:
        return [case for cases in self.parts.values() for case in cases]

    @property
    def num_classes(self) -> int:
        return len(self.structures) + 1

    @contextmanager
    def _file(self) -> Iterator[h5py.File]:
        """`cohort.h5`, open; raises LrlsError if it is damaged, or open in another program."""
        try:
            with open_h5(self.path("cohort.h5")) as file:
                yield file
        except DamagedH5 as error:
            raise self.damaged(f"cohort.h5 ({error})") from None

    def _image(self, file: h5py.File, case: str) -> np.ndarray:
        shape = self.grid.shape if self.channels == 1 else (self.channels, *self.grid.shape)
        return read(dataset(file, f"images/{case}", "f", shape))

    def _label(self, file: h5py.File, case: str) -> np.ndarray:
        label = read(dataset(file, f"labels/{case}", "u", self.grid.shape))
        if label.max(initial=0) >= self.num_classes:
            raise DamagedH5("holds a class that is no structure")
        return label

    def image(self, case: str) -> np.ndarray:
        """(D, H, W), of several channels (C, D, H, W), float16 in [0, 1]."""
        with self._file() as file:
            return self._image(file, case)

    def label(self, case: str) -> np.ndarray:
        """(D, H, W), class indices."""
        with self._file() as file:
            return self._label(file, case)

    def reference(self) -> sitk.Image:
        """The image that scans are aligned to, in its own space."""
        import SimpleITK as sitk

        with self._file() as file:
            data = dataset(file, "reference", "f", (None, None, None))
            try:
                spacing, origin, direction = (data.attrs[name].tolist() for name in ("spacing", "origin", "direction"))
                check_geometry(spacing, origin, direction)
            except UNREADABLE:
                raise DamagedH5("does not hold what it should") from None
            image = sitk.GetImageFromArray(read(data))
            image.SetSpacing(spacing)
            image.SetOrigin(origin)
            image.SetDirection(direction)
        return image

    def transform(self, case: str) -> dict[str, Any]:
        """The record of a scan's preprocessing; see `stages.data.prepare.prepare`."""
        name = f"transforms/{case}.json"
        record = self.read_json(name)
        try:
            check_record(record)
        except UNREADABLE:
            raise self.damaged(name) from None
        return record

    def fallen_back(self) -> list[str]:
        """Cases whose alignment was refused, so that their centres of mass are aligned instead."""
        return [case for case in self.cases if self.transform(case)["fell_back"]]

    def scans(self, device: torch.device, parts: Sequence[str] | None = None) -> Scans:
        """Images and labels of the given parts (default: all) in memory on a device."""
        import numpy as np
        import torch

        from stages.parts.batches.scans import Scans

        names = [case for part in parts or self.parts for case in self.parts[part]]
        with self._file() as file:
            images = torch.stack([torch.from_numpy(self._image(file, case)) for case in names])
            images = images[:, None] if self.channels == 1 else images
            labels = {
                place: torch.from_numpy(self._label(file, case).astype(np.int16)).to(device)
                for place, case in enumerate(names)
                if holds(file, f"labels/{case}")
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
    """Write `cohort.h5`. Yields a function that adds a scan: case, image as it is stored, class indices or None."""
    import SimpleITK as sitk

    with new_h5(folder / "cohort.h5") as file:
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
