"""Pseudo-labels: the previous round's answers for every unlabelled scan, screened (JRSS)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch

from stages.artifacts.cohort import Cohort
from stages.artifacts.files import atomic_write_text
from stages.artifacts.generated import Generated
from stages.config import GenerateSettings
from stages.generating.writer import Couple, Job, label_type
from stages.parts.batches.pseudo_labels import Screening, screen
from stages.parts.panels import Panel
from stages.progress import Progress


@dataclass(frozen=True)
class PseudoLabels:
    """Stores, per unlabelled scan, the network's most probable classes, its certainty, and what the screening keeps.

    Args:
        threshold, by: see `screen`.
    """

    threshold: float
    by: Screening = "mean"

    uses: tuple[Literal["segmentation"], ...] = ("segmentation",)

    def planned_bytes(self, cohort: Cohort, settings: GenerateSettings) -> int:
        voxels = int(np.prod(cohort.grid.shape))
        return len(cohort.parts["unlabeled"]) * voxels * (2 + 1 + label_type(cohort).itemsize)

    def planned_seconds(self, job: Job) -> float:
        scans = job.cohort.parts["unlabeled"]
        image = job.cohort.image(scans[0])
        for _ in range(2):  # the first one warms up
            began = time.monotonic()
            job.segment(image)
            taken = time.monotonic() - began
        return len(scans) * taken

    def write(self, file: h5py.File, job: Job) -> None:
        cohort = job.cohort
        scans, shape = cohort.parts["unlabeled"], cohort.grid.shape
        group = file.create_group("pseudo")
        volumes = {
            name: group.create_dataset(name, (len(scans), *shape), dtype, chunks=(1, *shape))
            for name, dtype in (("label", label_type(cohort)), ("certainty", "f2"), ("trusted", "?"))
        }
        columns: dict[str, list[Any]] = {"class_voxels": [], "class_confidence": [], "class_accepted": []}
        trusted_share = []
        with Progress("pseudo-labels", len(scans)) as progress:
            for place, scan in enumerate(scans):
                screened = screen(job.segment(cohort.image(scan)), self.threshold, self.by)
                volumes["label"][place] = screened.label.cpu().numpy().astype(label_type(cohort))
                volumes["certainty"][place] = screened.certainty.half().cpu().numpy()
                volumes["trusted"][place] = screened.trusted.cpu().numpy()
                trusted_share.append(float(screened.trusted.float().mean()))
                for name, column in columns.items():
                    column.append(getattr(screened, name.removeprefix("class_")).cpu().numpy())
                progress.advance()
        group.create_dataset("scan", data=scans, dtype=h5py.string_dtype())
        for name, column in columns.items():
            group[name] = np.stack(column)
        group["accepted"] = group["class_accepted"][:, 1:].any(1)
        labelled = int(group["accepted"][()].sum())
        job.tell(
            f"{labelled} of {len(scans)} scans have a structure that the network is sure of "
            f"(threshold {self.threshold}); {100 * np.mean(trusted_share):.0f} % of all voxels are trusted."
        )
        if not labelled:
            job.tell(
                "Warning: this round has no pseudo-label and learns from the atlases alone; train longer before it "
                "(train_seg.steps), or lower `threshold`."
            )

    def couples(self, generated: Generated, cohort: Cohort, count: int, seed: int) -> Iterator[Couple]:
        """None: a screened label is not a finished one."""
        return iter(())

    def true_couples(self, generated: Generated, cohort: Cohort, count: int, seed: int) -> Iterator[Couple]:
        return iter(())

    def draw_pictures(self, generated_file: h5py.File, cohort: Cohort, folder: Path, seed: int) -> None:
        """`pseudo-labels.png`, the first scans, and `pseudo-labels.csv`, the screening of every structure."""
        from stages.pictures import panels_page

        group = generated_file["pseudo"]
        scans = group["scan"].asstr()[()]
        rows = []
        for place, scan in enumerate(scans[:4]):
            image = torch.from_numpy(cohort.image(scan).astype(np.float32))
            label = torch.from_numpy(group["label"][place].astype(np.int16))
            accepted = torch.from_numpy(group["class_accepted"][place])
            counts = torch.from_numpy(group["trusted"][place]) & accepted[label.long()]
            doubt = 1 - torch.from_numpy(group["certainty"][place].astype(np.float32))
            panels = [
                Panel("pseudo-label", image, label),
                Panel("accepted structures, trusted voxels", image, label * counts),
                Panel("1 - certainty", doubt, shows="error"),
            ]
            rows.append((str(scan), panels))
        page = folder / "pseudo-labels.png"
        panels_page(rows, page, structures=cohort.structures, spacing_mm=cohort.grid.spacing_mm)
        lines = ["scan,structure,voxels,confidence,accepted"]
        for place, scan in enumerate(scans):
            for c, name in enumerate(("background", *cohort.structures)):
                confidence = group["class_confidence"][place, c]
                shown = "" if np.isnan(confidence) else f"{confidence:.4f}"
                accepted_here = int(group["class_accepted"][place, c])
                lines.append(f"{scan},{name},{group['class_voxels'][place, c]},{shown},{accepted_here}")
        atomic_write_text(folder / "pseudo-labels.csv", "\n".join(lines) + "\n")
