"""Generated data in `generated.h5`; opens with plain h5py.

paths/     one row per couple (atlas, scan); BRBS's S3P samples from them
    displacement           (n, 3, D, H, W) float16, voxels, atlas to scan: warped(x) = atlas(x + u(x))
    style                  (n, C, D, H, W) float16, what is added to the atlas to make it look like the scan: the scan
                           warped to the atlas minus the atlas, or a network's prediction; only if a method needs it
    atlas, scan            (n,) case ids
    similarity             (n,) float32, mean LNCC of warped atlas and scan
    inverse_error_voxels   (n,) float32, mean length of u_fwd(x) + u_bwd(x + u_fwd(x)); nan: the
                           scan is not registered back to the atlas
    folding_fraction       (n,) float32, share of voxels with |J| <= 0
    accepted               (n,) bool, passed the screening by the settings `generate`
samples/   one row per finished couple
    image                  (n, C, D, H, W) float16 in about [0, 1]
    label                  (n, D, H, W) class indices, smallest unsigned type
    atlas, space, style    (n,) case ids of the label, the anatomy and the style. A warped atlas (`os-medseg`) has its
                           own style, `space` is the real scan that it imitates, and its label is warped by nearest
                           neighbour. `sst`: "prior" or "memory" if drawn; `space` "a+b+c" lies between those scans
    alpha, beta            (n,) float32 degrees; seed (n,) int64
    similarity, inverse_error_voxels, folding_fraction, accepted   as above; similarity of a drawn scan: to the atlas in
                           the same shape
pseudo/    one row per unlabelled scan: its answer by the segmentation network of the round before (`jrss`)
    label                  (n, D, H, W) most probable class
    certainty              (n, D, H, W) float16, probability of that class
    trusted                (n, D, H, W) bool, whether `certainty` exceeds the threshold
    scan                   (n,) case ids
    class_voxels           (n, C) int64, voxels of each class in `label`
    class_confidence       (n, C) float32, mean, or (`screening: max`) largest, `certainty` of these voxels; nan: none
    class_accepted         (n, C) bool, whether `class_confidence` exceeds the threshold
    accepted               (n,) bool, whether any structure was accepted; the other scans stay unlabelled
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stages.artifacts.h5 import DamagedH5, dataset, holds, open_h5
from stages.artifacts.manifest import UNREADABLE, Artifact
from stages.errors import LrlsError

if TYPE_CHECKING:
    import h5py
    import numpy as np
    import torch
    from torch import Tensor

    from stages.parts.batches.pseudo_labels import PseudoLabel

_QUALITY = {"similarity": ("f", 1), "inverse_error_voxels": ("f", 1), "folding_fraction": ("f", 1)}
LAYOUT: dict[str, dict[str, tuple[str, int]]] = {  # table -> column -> kind of its type, number of its axes
    "paths": {"displacement": ("f", 5), "atlas": ("O", 1), "scan": ("O", 1), "accepted": ("b", 1)} | _QUALITY,
    "samples": {"image": ("f", 5), "label": ("u", 4), "accepted": ("b", 1)}
    | dict.fromkeys(("atlas", "space", "style"), ("O", 1)),
    "pseudo": {"label": ("u", 4), "certainty": ("f", 4), "trusted": ("b", 4), "scan": ("O", 1), "accepted": ("b", 1)}
    | {"class_voxels": ("iu", 2), "class_confidence": ("f", 2), "class_accepted": ("b", 2)},
}


@dataclass(frozen=True)
class Generated(Artifact):
    """The artifact that `lrls generate` writes."""

    KIND: ClassVar[str] = "generated"
    FORMAT: ClassVar[int] = 2
    MADE_WITH: ClassVar[str] = "lrls generate"

    def bank(self, names: Sequence[str]) -> StoredPaths | None:
        """The accepted couples of `paths/`, atlases and scans as positions in `names`; None: no paths are stored."""
        file = self.open_file()
        with self._sound():
            return StoredPaths(file["paths"], names) if holds(file, "paths") else None

    def samples(self) -> StoredSamples | None:
        """The accepted couples of `samples/`; None: no samples are stored."""
        file = self.open_file()
        with self._sound():
            return StoredSamples(file["samples"]) if holds(file, "samples") else None

    def pseudo_labels(self, names: Sequence[str], device: torch.device) -> dict[int, PseudoLabel] | None:
        """The screened answers of `pseudo/` by the scans' positions in `names`; None: no answers are stored."""
        import torch

        from stages.parts.batches.pseudo_labels import PseudoLabel

        with self.open_file() as file, self._sound():
            if not holds(file, "pseudo"):
                return None
            group = file["pseudo"]
            columns = [torch.from_numpy(group[name][()]) for name in ("label", "trusted", "class_accepted")]
            return {
                names.index(scan): PseudoLabel(label.short().to(device), trusted.to(device), accepted.to(device))
                for scan, label, trusted, accepted in zip(group["scan"].asstr()[()], *columns, strict=True)
            }

    @property
    def has_pseudo_labels(self) -> bool:
        with self.open_file() as file:
            return holds(file, "pseudo")

    def screening(self) -> dict[str, float]:
        """Shares that passed the screening: of voxels, of predicted structures in the scans, and of scans.

        Also `predicted_structures`, the share of structures that were predicted at all, and `structure_voxels`, the
        mean number of voxels per scan that were predicted to be structures.
        """
        with self.open_file() as file, self._sound():
            group = file["pseudo"]
            is_predicted = group["class_voxels"][:, 1:] > 0
            return {
                "trusted_voxels": float(sum(rows.mean() for rows in group["trusted"]) / len(group["trusted"])),
                "accepted_structures": (
                    float(group["class_accepted"][:, 1:][is_predicted].mean()) if is_predicted.any() else 0.0
                ),
                "predicted_structures": float(is_predicted.mean()),
                "labelled_scans": float(group["accepted"][()].mean()),
                "structure_voxels": float(group["class_voxels"][:, 1:].sum() / len(group["trusted"])),
            }

    def changed(self, before: Generated) -> float:
        """Of the voxels that are a structure in this or in an earlier round, the share whose class differs."""
        with self.open_file() as file, before.open_file() as earlier_file:
            pseudo, earlier = file["pseudo"], earlier_file["pseudo"]
            rows = {scan: i for i, scan in enumerate(earlier["scan"].asstr()[()])}
            differing = either = 0
            for i, scan in enumerate(pseudo["scan"].asstr()[()]):
                label, earlier_label = pseudo["label"][i], earlier["label"][rows[scan]]
                differing += int((label != earlier_label).sum())
                either += int(((label > 0) | (earlier_label > 0)).sum())
            return differing / max(either, 1)

    def pseudo_label(self, scan: str) -> np.ndarray:
        """The most probable classes of a scan, before the screening, (D, H, W)."""
        with self.open_file() as file, self._sound():
            group = file["pseudo"]
            return group["label"][list(group["scan"].asstr()[()]).index(scan)]

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """Inside, values that do not fit together raise LrlsError: the file is a stranger's, or of other scans."""
        try:
            yield
        except (*UNREADABLE, RuntimeError):
            raise self.damaged("generated.h5 (does not hold what it should)") from None

    def open_file(self) -> h5py.File:
        """Open `generated.h5` for reading; close it, or use it in a `with` statement.

        Raises:
            LrlsError: the file is damaged, truncated, or open in another program.
        """
        try:
            file = open_h5(self.path("generated.h5"))
            try:
                _check_layout(file)
            except DamagedH5:
                file.close()
                raise
        except DamagedH5 as error:
            raise self.damaged(f"generated.h5 ({error})") from None
        return file


def _check_layout(file: h5py.File) -> None:
    for table, expected in LAYOUT.items():
        if holds(file, table):
            columns = expected | ({"style": ("f", 5)} if holds(file, f"{table}/style") and table == "paths" else {})
            rows = {len(dataset(file, f"{table}/{c}", kinds, [None] * axes)) for c, (kinds, axes) in columns.items()}
            if len(rows) != 1:
                raise DamagedH5("has columns of different lengths")


def accepted(group: h5py.Group) -> list[int]:
    """Rows that passed the screening.

    Raises:
        LrlsError: no row passed.
    """
    rows = [row for row, good in enumerate(group["accepted"][()]) if good]
    if not rows:
        raise LrlsError("the screening accepted no generated couple; loosen generate.max_folding or min_similarity.")
    return rows


class StoredPaths:
    """A path bank on disk; a couple is read when it is drawn."""

    def __init__(self, group: h5py.Group, names: Sequence[str]) -> None:
        self.group, self.rows = group, accepted(group)
        atlases, scans = (group[column].asstr()[()] for column in ("atlas", "scan"))
        self.couples = [(names.index(atlases[row]), names.index(scans[row])) for row in self.rows]

    def displacement(self, couple: int) -> Tensor:
        import torch

        return torch.from_numpy(self.group["displacement"][self.rows[couple]])

    def style(self, couple: int) -> Tensor:
        import torch

        if "style" not in self.group:
            raise LrlsError("the generated paths hold no style; make them again with `lrls generate --force`.")
        return torch.from_numpy(self.group["style"][self.rows[couple]])


@dataclass
class StoredSample:
    image: Tensor
    label: Tensor
    scan: str
    atlas: str


class StoredSamples(Sequence[StoredSample]):
    """Finished couples on disk; a couple is read when it is drawn."""

    def __init__(self, group: h5py.Group) -> None:
        self.group, self.rows = group, accepted(group)
        self.scans, self.atlases = group["space"].asstr()[()], group["atlas"].asstr()[()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        import torch

        row = self.rows[index]
        image, label = (torch.from_numpy(self.group[column][row]) for column in ("image", "label"))
        return StoredSample(image, label.short(), self.scans[row], self.atlases[row])
