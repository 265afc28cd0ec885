"""The path bank that S3P samples from (BRBS): displacements and style maps of every couple (atlas, scan).

Finished couples are drawn from it: X = T(A + beta psi, alpha phi), y = T(y_A, alpha phi), with alpha and beta from the
writer's `space` and `style` (He et al., TNNLS 2022, section III-B).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.config import GenerateSettings
from stages.generating.writer import (
    QUALITY,
    Couple,
    Job,
    as_label,
    atlas_scan_pairs,
    draw_couples_page,
    is_stored,
    label_type,
    register_couples,
    registration_seconds,
    sample_bytes,
    store_piece,
    stored_piece,
    write_table,
)
from stages.parts.batches.space_style import Always, Degree
from stages.parts.channels import as_array, as_images, first_channel
from stages.parts.warps import warp, warp_one_hot
from stages.seeds import derive

DEGREES = (0.0, 0.25, 0.5, 0.75, 1.0)  # alpha and beta of the picture


@dataclass(frozen=True)
class PathBank:
    """Stores, per couple (atlas, scan), the displacement atlas -> scan and the style map.

    Style maps and samples have as many channels as the cohort.

    Args:
        space, style: draw the degrees of finished samples and of the picture; without `style` no style maps are made,
            and no scan is registered back to its atlas for them.
        most: most couples; atlases take turns, so that every scan comes once before any comes twice. None: all.
        style_map: (atlas, scan) -> intensities that give the atlas the scan's look, (N, 1, D, H, W) all three; None:
            the scan, registered back to the atlas, minus the atlas.
        coupled: space and style of a finished sample come from one scan.
    """

    space: Degree
    style: Degree | None
    most: int | None = None
    style_map: nn.Module | None = None
    coupled: bool = False

    uses: tuple[Literal["registration"], ...] = ("registration",)

    @property
    def _registers_back(self) -> bool:
        return self.style is not None and self.style_map is None

    def planned_bytes(self, cohort: Cohort, settings: GenerateSettings) -> int:
        per_voxel = 6 + 2 * cohort.channels * (self.style is not None)
        paths = len(atlas_scan_pairs(cohort, self.most)) * int(np.prod(cohort.grid.shape)) * per_voxel
        return paths + sample_bytes(cohort, settings.samples)

    def planned_seconds(self, job: Job) -> float:
        """Every couple is registered, and for style maps also back; a style network takes about as long as that."""
        ways = 1 + (self.style is not None) + (self.style_map is not None)
        return ways * len(atlas_scan_pairs(job.cohort, self.most)) * registration_seconds(job)

    def write(self, file: h5py.File, job: Job) -> None:
        pairs = atlas_scan_pairs(job.cohort, self.most)
        if self.style_map is not None:
            self.style_map.to(job.device.torch).eval()

        def finish(_: str, moving: Tensor, fixed: Tensor, ways: list[Tensor]) -> dict[str, Any]:
            values = {"displacement": ways[0][0].half().cpu()}
            if self._registers_back:
                values["style"] = (warp(fixed, ways[1]) - moving)[0].half().cpu()
            elif self.style_map is not None:
                with torch.inference_mode(), job.device.autocast():
                    change = self.style_map(moving, fixed)
                values["style"] = change[0].cpu().half()
            return values

        self._take_over(pairs, job)
        register_couples(pairs, finish, job, title="generate paths", back=self._registers_back)
        shape, channels = job.cohort.grid.shape, job.cohort.channels
        group = file.create_group("paths")
        displacement = group.create_dataset("displacement", (len(pairs), 3, *shape), "f2", chunks=(1, 3, *shape))
        if self.style is not None:
            size = (channels, *shape)
            styles = group.create_dataset("style", (len(pairs), *size), "f2", chunks=(1, *size))
        rows = []
        for i, (atlas, scan) in enumerate(pairs):
            with np.load(stored_piece(job.resume, i)) as piece:
                displacement[i] = piece["displacement"]
                if self.style is not None:
                    styles[i] = piece["style"]
                rows.append({"atlas": atlas, "scan": scan} | {name: float(piece[name]) for name in QUALITY})
        write_table(group, rows, job.settings)
        if job.settings.samples:
            self._write_samples(file, job)

    def _take_over(self, pairs: list[tuple[str, str]], job: Job) -> None:
        """Store the couples that an earlier version has, so that they are not registered again."""
        columns = {"displacement", *QUALITY} | ({"style"} if self.style is not None else set())
        taken = 0
        for i, (atlas, scan) in enumerate(pairs):
            if not is_stored(job.resume, i) and (row := job.former(atlas, scan)) and columns <= row.keys():
                store_piece(job.resume, i, {name: row[name] for name in columns})
                taken += 1
        if taken:
            job.tell(f"{taken} of {len(pairs)} couples are taken over from an earlier version")

    def _write_samples(self, file: h5py.File, job: Job) -> None:
        count, shape = job.settings.samples, job.cohort.grid.shape
        group = file.create_group("samples")
        channels = job.cohort.channels
        images = group.create_dataset("image", (count, channels, *shape), "f2", chunks=(1, channels, *shape))
        labels = group.create_dataset("label", (count, *shape), label_type(job.cohort), chunks=(1, *shape))
        rows = []
        for i, couple in enumerate(islice(self._drawn(file, job.cohort, job.seed), count)):
            images[i], labels[i] = couple.image, couple.label
            rows.append(couple.origin)
        write_table(group, rows, job.settings)

    def couples(self, generated: Generated, cohort: Cohort, count: int, seed: int) -> Iterator[Couple]:
        with generated.open_file() as file:
            yield from islice(self._drawn(file, cohort, seed), count)

    def true_couples(self, generated: Generated, cohort: Cohort, count: int, seed: int) -> Iterator[Couple]:
        """Couples in the scans' full shapes: couples nearer to the atlas are easier than scans."""
        return replace(self, space=Always(1.0)).couples(generated, cohort, count, seed)

    def draw_pictures(self, generated_file: h5py.File, cohort: Cohort, folder: Any, seed: int) -> None:
        couples = list(islice(self._drawn(generated_file, cohort, seed), 16))
        if self.style is None:
            couples = [replace(couple, origin=couple.origin | {"style": None}) for couple in couples]
        draw_couples_page(couples, cohort, folder)
        self._draw_degrees(generated_file["paths"], cohort, folder)

    def _draw_degrees(self, paths: h5py.Group, cohort: Cohort, folder: Path) -> None:
        """`degrees.png`: an atlas on its way to the shape of one scan and the look of another, by fixed degrees."""
        from stages.pictures import degrees_page

        rows = np.flatnonzero(paths["accepted"][()])
        atlases, scans = (paths[column].asstr()[()] for column in ("atlas", "scan"))
        space = int(rows[0])
        of_atlas = [int(row) for row in rows if atlases[row] == atlases[space]]
        style = space if self.coupled else of_atlas[-1]
        atlas = atlases[space]

        def shown(alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
            image, label = self._generated(paths, cohort, atlas, space, style, alpha, beta)
            return first_channel(image), label

        sources: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        sources[f"atlas {atlas}"] = (first_channel(cohort.image(atlas)), cohort.label(atlas))
        sources[f"space {scans[space]}"] = (first_channel(cohort.image(scans[space])), None)
        if self.style is not None:
            sources[f"style {scans[style]}"] = (first_channel(cohort.image(scans[style])), None)
        grid = {
            f"style β {beta:g}": {f"space α {alpha:g}": shown(alpha, beta) for alpha in DEGREES}
            for beta in (DEGREES if self.style is not None else (0.0,))
        }
        degrees_page(
            sources, grid, folder / "degrees.png", structures=cohort.structures, spacing_mm=cohort.grid.spacing_mm
        )

    def _generated(
        self, paths: h5py.Group, cohort: Cohort, atlas: str, space: int, style: int, alpha: float, beta: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image (C, D, H, W), or (D, H, W) of one channel, and class indices (D, H, W) of a couple.

        Args:
            space, style: rows of `paths`.
        """
        way = alpha * torch.from_numpy(paths["displacement"][space]).float()[None]
        image = as_images(cohort.image(atlas))
        if beta:
            image = image + beta * torch.from_numpy(paths["style"][style]).float()
        label = warp_one_hot(as_label(cohort.label(atlas)), way, cohort.num_classes).argmax(1)
        return as_array(warp(image, way).half().float()), label[0].numpy().astype(label_type(cohort))

    def _drawn(self, file: h5py.File, cohort: Cohort, seed: int) -> Iterator[Couple]:
        """Finished couples without end, from the accepted paths; couple i depends on the seed and i alone."""
        paths = file["paths"]
        rows = np.flatnonzero(paths["accepted"][()])
        atlases, scans = (paths[column].asstr()[()] for column in ("atlas", "scan"))
        for i in range(2**63):
            drawn_from = derive(seed, "sample", i)
            generator = torch.Generator().manual_seed(drawn_from)
            space = int(rows[int(torch.randint(len(rows), (1,), generator=generator))])
            of_atlas = [int(row) for row in rows if atlases[row] == atlases[space]]
            style = of_atlas[int(torch.randint(len(of_atlas), (1,), generator=generator))]
            style = space if self.coupled else style
            alpha = float(self.space(1, generator))
            beta = float(self.style(1, generator)) if self.style is not None else 0.0
            image, label = self._generated(paths, cohort, atlases[space], space, style, alpha, beta)
            yield Couple(
                image,
                label,
                {
                    "atlas": atlases[space],
                    "space": scans[space],
                    "style": scans[style] if self.style is not None else atlases[space],
                    "alpha": alpha,
                    "beta": beta,
                    "seed": drawn_from,
                    **{name: float(paths[name][space]) for name in QUALITY},
                },
            )
