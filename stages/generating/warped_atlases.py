"""Atlases warped to unlabelled scans, image and label (OS-MedSeg; IST's structures)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import h5py
from torch import Tensor

from stages.artifacts.cohort import Cohort
from stages.config import GenerateSettings
from stages.generating.writer import (
    Job,
    StoresCouples,
    as_label,
    atlas_scan_pairs,
    label_type,
    register_couples,
    registration_seconds,
    sample_bytes,
    write_samples,
)
from stages.parts.warps import warp, warp_label


@dataclass(frozen=True)
class WarpedAtlases(StoresCouples):
    """Stores, per couple (atlas, scan), the atlas warped to the scan, image and label (nearest neighbour).

    Args:
        most: most couples; atlases take turns, so that every scan comes once before any comes twice. None: all.
    """

    most: int | None = None

    uses: tuple[Literal["registration"], ...] = ("registration",)

    def planned_bytes(self, cohort: Cohort, settings: GenerateSettings) -> int:
        return sample_bytes(cohort, len(atlas_scan_pairs(cohort, self.most)))

    def planned_seconds(self, job: Job) -> float:
        return len(atlas_scan_pairs(job.cohort, self.most)) * registration_seconds(job)

    def write(self, file: h5py.File, job: Job) -> None:
        pairs, cohort = atlas_scan_pairs(job.cohort, self.most), job.cohort

        def finish(atlas: str, moving: Tensor, _: Tensor, ways: list[Tensor]) -> dict[str, Any]:
            label = warp_label(as_label(cohort.label(atlas)).to(ways[0].device), ways[0])[0]
            warped = warp(moving, ways[0])[0].half()
            return {"image": warped.cpu(), "label": label.cpu().numpy().astype(label_type(cohort))}

        register_couples(pairs, finish, job, title="warp atlases")
        origins = [
            {"atlas": atlas, "space": scan, "style": atlas, "alpha": 1.0, "beta": 0.0, "seed": job.seed}
            for atlas, scan in pairs
        ]
        write_samples(file, origins, job)
