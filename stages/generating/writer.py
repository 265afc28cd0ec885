"""The interface of writers of generated data, and what all writers share: couples, registration, screening, resuming.

A writer receives a `Job`, which registers and segments for it. It knows no recipe, no method, and no trained networks
other than those that it was built with.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from stages.artifacts.checked import is_sound, write_checked
from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.config import GenerateSettings
from stages.device import Device
from stages.errors import LrlsError
from stages.parts.channels import as_images, first_channel
from stages.parts.losses import lncc
from stages.parts.metrics import folding_fraction, jacobian_determinant
from stages.parts.warps import warp
from stages.progress import Progress

QUALITY = ("similarity", "inverse_error_voxels", "folding_fraction")

ImagePair = tuple[np.ndarray, np.ndarray]
"""Moving and fixed image in [0, 1], (D, H, W) or (C, D, H, W)."""

Register = Callable[[Sequence[ImagePair], Sequence[str]], Iterator[tuple[int, np.ndarray]]]
"""Pairs, and the case of each -> (place of the pair, displacement (3, D, H, W) in voxels), as they finish."""


def no_former(atlas: str, scan: str) -> None:
    """Nothing was generated before."""


@dataclass(frozen=True)
class Job:
    """What a writer works with.

    Args:
        cohort: atlases and unlabelled scans.
        settings: numbers of finished couples, screening.
        seed: of everything that is drawn.
        device: where networks run.
        resume: folder of finished pieces, from which a stopped run goes on.
        register: registers as the method does.
        segment: image -> class probabilities (C, D, H, W) of the method's segmentation network.
        tell: receives lines for the user.
        former: (atlas, scan) -> the row of `paths` that an earlier version has of the same two images, registered in
            the same way; None: it has none.
    """

    cohort: Cohort
    settings: GenerateSettings
    seed: int
    device: Device
    resume: Path
    register: Register
    segment: Callable[[np.ndarray], Tensor]
    tell: Callable[[str], None]
    former: Callable[[str, str], dict[str, Any] | None] = no_former


@dataclass(frozen=True)
class Couple:
    """A generated image with its label.

    Args:
        image: (D, H, W) or (C, D, H, W), float32 in about [0, 1].
        label: class indices (D, H, W).
        origin: case ids "atlas", "space", "style", and degrees "alpha" and "beta", as far as they are known.
    """

    image: np.ndarray
    label: np.ndarray
    origin: dict[str, Any]


class Writer(Protocol):
    """Writes one kind of generated data into `generated.h5`."""

    @property
    def uses(self) -> Sequence[Literal["registration", "segmentation"]]:
        """Roles of the artifacts whose weights it needs."""
        ...

    def planned_bytes(self, cohort: Cohort, settings: GenerateSettings) -> int:
        """Size of what it will write."""
        ...

    def planned_seconds(self, job: Job) -> float:
        """Time that `write` will take here, from a measurement of one piece."""
        ...

    def write(self, file: h5py.File, job: Job) -> None:
        """Write it.

        Raises:
            LrlsError: the screening accepts nothing.
        """
        ...

    def couples(self, generated: Generated, cohort: Cohort, count: int, seed: int) -> Iterator[Couple]:
        """Finished couples, as training sees them: at most `count` where they are drawn, all where they are stored."""
        ...

    def true_couples(self, generated: Generated, cohort: Cohort, count: int, seed: int) -> Iterator[Couple]:
        """Couples whose label is true by construction, as far from the atlas as scans are; none of guessed labels."""
        ...

    def draw_pictures(self, generated_file: h5py.File, cohort: Cohort, folder: Path, seed: int) -> None:
        """Pages for people to look at."""
        ...


# Couples


def atlas_scan_pairs(cohort: Cohort, most: int | None = None) -> list[tuple[str, str]]:
    """(atlas, scan) of the couples to register, at most `most`.

    Atlases take turns, so that every scan comes once before any comes twice.
    """
    atlases, scans = cohort.parts["atlases"], cohort.parts["unlabeled"]
    pairs = [
        (atlases[(turn + place) % len(atlases)], scan)
        for turn in range(len(atlases))
        for place, scan in enumerate(scans)
    ]
    return pairs[:most]


def label_type(cohort: Cohort) -> np.dtype:
    """Smallest unsigned type that holds all classes."""
    return np.min_scalar_type(cohort.num_classes - 1)


def as_label(label: np.ndarray) -> Tensor:
    """(D, H, W) -> (1, D, H, W) int16."""
    return torch.from_numpy(label.astype(np.int16))[None]


def measure(moving: Tensor, fixed: Tensor, path: Tensor, back: Tensor | None) -> dict[str, float]:
    """Quality columns of a couple; without a backward field the inverse error is nan."""
    residual = float("nan") if back is None else float((path + warp(back, path)).norm(dim=1).mean())
    return {
        "similarity": float(lncc(warp(moving, path), fixed).mean()),
        "inverse_error_voxels": residual,
        "folding_fraction": float(folding_fraction(jacobian_determinant(path))[0]),
    }


# Finished pieces are complete or absent, and have a digest, so that a killed run goes on after them


def stored_piece(resume: Path, place: int) -> Path:
    return resume / f"{place:06d}.npz"


def is_stored(resume: Path, place: int) -> bool:
    """Whether a stopped run left this piece, as it was written."""
    return is_sound(stored_piece(resume, place), f"piece {place + 1} of the generated data")


def store_piece(resume: Path, place: int, values: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    write_checked(stored_piece(resume, place), buffer.getbuffer())


Finish = Callable[[str, Tensor, Tensor, list[Tensor]], dict[str, Any]]
"""(atlas, its image and the scan's (1, C, D, H, W), displacements there and, if registered, back) -> what to store.

The tensors lie on the job's device; what is stored is on the CPU.
"""


def register_couples(pairs: list[tuple[str, str]], finish: Finish, job: Job, *, title: str, back: bool = False) -> None:
    """Register every couple (atlas, scan) that is not stored yet, and store it with its quality.

    Args:
        back: also register the scan to the atlas.
    """
    cohort, device = job.cohort, job.device.torch
    missing = [i for i in range(len(pairs)) if not is_stored(job.resume, i)]
    ways = 2 if back else 1
    images = {case: cohort.image(case) for case in cohort.cases}
    queue = [(images[a], images[b]) for i in missing for a, b in (pairs[i], pairs[i][::-1])[:ways]]
    cases = [pairs[i][1] for i in missing for _ in range(ways)]
    fields: dict[int, Tensor] = {}
    with Progress(title, len(pairs), start=len(pairs) - len(missing)) as progress:
        for place, field in job.register(queue, cases):
            fields[place] = torch.from_numpy(field)[None]
            turn = place // ways
            of_couple = range(turn * ways, (turn + 1) * ways)
            if not all(k in fields for k in of_couple):
                continue
            both_ways = [fields.pop(k).to(device) for k in of_couple]
            moving, fixed = (as_images(image).to(device) for image in queue[of_couple[0]])
            values = finish(pairs[missing[turn]][0], moving, fixed, both_ways)
            quality = measure(moving, fixed, both_ways[0], both_ways[1] if back else None)
            store_piece(job.resume, missing[turn], values | quality)
            progress.advance()


def registration_seconds(job: Job) -> float:
    """Time that one couple's registration takes, one way; the first of two warms up."""
    import time

    cohort = job.cohort
    atlas, scan = cohort.parts["atlases"][0], cohort.parts["unlabeled"][0]
    pair = (cohort.image(atlas), cohort.image(scan))
    for _ in range(2):
        began = time.monotonic()
        next(job.register([pair], [scan]))
        taken = time.monotonic() - began
    return taken


# Tables


def write_table(group: h5py.Group, rows: list[dict[str, Any]], settings: GenerateSettings) -> None:
    """One column per key, and the screening's verdict.

    Raises:
        LrlsError: the screening accepts none.
    """
    for column in rows[0]:
        values = [row[column] for row in rows]
        if isinstance(values[0], str):
            group.create_dataset(column, data=values, dtype=h5py.string_dtype())
        else:
            group[column] = np.array(values, np.int64 if isinstance(values[0], int) else np.float32)
    good = np.ones(len(rows), bool)
    if settings.max_folding is not None:
        good &= group["folding_fraction"][()] <= settings.max_folding
    if settings.min_similarity is not None:
        good &= group["similarity"][()] >= settings.min_similarity
    if not good.any():
        raise LrlsError(
            f"the screening accepts none of {len(rows)} couples "
            f"(best similarity {max(row['similarity'] for row in rows):.3f}, "
            f"lowest folding {min(row['folding_fraction'] for row in rows):.4f}); "
            "loosen generate.min_similarity or generate.max_folding."
        )
    group["accepted"] = good


def write_samples(file: h5py.File, origins: list[dict[str, Any]], job: Job) -> None:
    """The stored pieces, image and label, as the table `samples`."""
    group = file.create_group("samples")
    count, shape = len(origins), job.cohort.grid.shape
    channels = job.cohort.channels
    images = group.create_dataset("image", (count, channels, *shape), "f2", chunks=(1, channels, *shape))
    labels = group.create_dataset("label", (count, *shape), label_type(job.cohort), chunks=(1, *shape))
    rows = []
    for i, origin in enumerate(origins):
        with np.load(stored_piece(job.resume, i)) as piece:
            images[i], labels[i] = piece["image"], piece["label"]
            rows.append(origin | {name: float(piece[name]) for name in QUALITY})
    write_table(group, rows, job.settings)


def sample_bytes(cohort: Cohort, count: int) -> int:
    """Size of finished couples: float16 image, label."""
    return count * int(np.prod(cohort.grid.shape)) * (2 * cohort.channels + label_type(cohort).itemsize)


def stored_couples(file: h5py.File) -> Iterator[Couple]:
    """The accepted rows of `samples`."""
    group = file["samples"]
    for row in np.flatnonzero(group["accepted"][()]):
        origin = {name: str(group[name].asstr()[row]) for name in ("atlas", "space", "style")}
        image = group["image"][row].astype(np.float32)
        yield Couple(image[0] if len(image) == 1 else image, group["label"][row], origin)


def draw_couples_page(couples: Sequence[Couple], cohort: Cohort, folder: Path) -> None:
    """`couples.png`: the couples and where each comes from."""
    from stages.pictures import couples_page

    rows = [couple.origin | {"image": first_channel(couple.image), "label": couple.label} for couple in couples]
    couples_page(rows, folder / "couples.png", structures=cohort.structures, spacing_mm=cohort.grid.spacing_mm)


class StoresCouples:
    """What writers share that store finished couples, image and label, in `samples`."""

    def couples(self, generated: Generated, cohort: Cohort, count: int, seed: int) -> Iterator[Couple]:
        with generated.open_file() as file:
            yield from stored_couples(file)

    def true_couples(self, generated: Generated, cohort: Cohort, count: int, seed: int) -> Iterator[Couple]:
        """The first ones, again and again where there are fewer than `count`."""
        first = list(islice(self.couples(generated, cohort, count, seed), count))
        return islice(cycle(first), count)

    def draw_pictures(self, generated_file: h5py.File, cohort: Cohort, folder: Path, seed: int) -> None:
        draw_couples_page(list(islice(stored_couples(generated_file), 16)), cohort, folder)
