"""Unlabelled scans with propagated labels, by methods that only register."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import h5py
import numpy as np
import torch

from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.config import GenerateSettings
from stages.generating.writer import (
    QUALITY,
    Couple,
    Job,
    StoresCouples,
    is_stored,
    label_type,
    measure,
    registration_seconds,
    sample_bytes,
    store_piece,
    write_samples,
)
from stages.parts.channels import as_images
from stages.parts.voting import vote
from stages.progress import Progress


@dataclass(frozen=True)
class PropagatedLabels(StoresCouples):
    """Stores every unlabelled scan with the label that the atlases vote for."""

    uses: tuple[Literal["registration"], ...] = ("registration",)

    def planned_bytes(self, cohort: Cohort, settings: GenerateSettings) -> int:
        return sample_bytes(cohort, len(cohort.parts["unlabeled"]))

    def planned_seconds(self, job: Job) -> float:
        return len(job.cohort.parts["unlabeled"]) * len(job.cohort.parts["atlases"]) * registration_seconds(job)

    def write(self, file: h5py.File, job: Job) -> None:
        cohort = job.cohort
        atlas_cases, scans = cohort.parts["atlases"], cohort.parts["unlabeled"]
        atlases = [(cohort.image(case), cohort.label(case)) for case in atlas_cases]
        missing = [i for i in range(len(scans)) if not is_stored(job.resume, i)]
        pairs = [(image, cohort.image(scans[i])) for i in missing for image, _ in atlases]
        cases = [scans[i] for i in missing for _ in atlases]
        fields: dict[int, np.ndarray] = {}
        with Progress("propagate labels", len(scans), start=len(scans) - len(missing)) as progress:
            for place, field in job.register(pairs, cases):
                fields[place] = field
                turn = place // len(atlases)
                of_scan = range(turn * len(atlases), (turn + 1) * len(atlases))
                if not all(k in fields for k in of_scan):
                    continue
                scan = pairs[place][1]
                votes = vote(atlases, [fields[k] for k in of_scan], scan, cohort.num_classes)
                qualities = [
                    measure(as_images(pairs[k][0]), as_images(scan), torch.from_numpy(fields.pop(k))[None], None)
                    for k in of_scan
                ]
                quality = {name: float(np.mean([q[name] for q in qualities])) for name in QUALITY}
                label = votes.argmax(0).numpy().astype(label_type(cohort))
                store_piece(job.resume, missing[turn], {"image": scan, "label": label, **quality})
                progress.advance()
        voters = "+".join(atlas_cases)
        origins = [
            {"atlas": voters, "space": case, "style": case, "alpha": 1.0, "beta": 1.0, "seed": job.seed}
            for case in scans
        ]
        write_samples(file, origins, job)

    def true_couples(self, generated: Generated, cohort: Cohort, count: int, seed: int) -> Iterator[Couple]:
        """None: what atlases vote for is a guess."""
        return iter(())
