"""Atlases in shapes and looks that are drawn anew, image and label (SST, VAE augmentation)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import h5py
import numpy as np
import torch

from stages.artifacts.cohort import Cohort
from stages.config import GenerateSettings
from stages.generating.writer import (
    Job,
    StoresCouples,
    is_stored,
    label_type,
    sample_bytes,
    store_piece,
    stored_piece,
    write_samples,
)
from stages.parts.batches.drawing import pick
from stages.parts.batches.scans import Scans
from stages.parts.losses import lncc
from stages.parts.metrics import folding_fraction, jacobian_determinant
from stages.parts.synthesis import Synthesis
from stages.parts.variational_synthesis import VariationalSynthesis
from stages.parts.warps import warp_one_hot
from stages.progress import Progress
from stages.seeds import derive


@dataclass(frozen=True)
class DrawnScans(StoresCouples):
    """Draws and stores labelled scans; scan i depends on the seed and i alone.

    Args:
        synthesis: draws them.
        count: how many; a larger number keeps the first ones.
        label_above: labels are background where a drawn image is below this; 0: nowhere.
    """

    synthesis: Synthesis | VariationalSynthesis
    count: int
    label_above: float = 0.0

    uses: tuple[Literal["registration"], ...] = ("registration",)

    def planned_bytes(self, cohort: Cohort, settings: GenerateSettings) -> int:
        return sample_bytes(cohort, self.count)

    def planned_seconds(self, job: Job) -> float:
        data = self._ready(job)
        for _ in range(2):  # the first one warms up
            began = time.monotonic()
            with torch.inference_mode(), job.device.autocast():
                float(self.synthesis(data, data.atlases[0], torch.Generator()).image.sum())
            taken = time.monotonic() - began
        return self.count * taken

    def _ready(self, job: Job) -> Scans:
        for network in self.synthesis.networks:
            network.to(job.device.torch).eval()
        return job.cohort.scans(job.device.torch)

    def write(self, file: h5py.File, job: Job) -> None:
        """A drawn scan's similarity is the one to its atlas in the same shape."""
        self.synthesis.check()
        data = self._ready(job)
        origins = []
        with Progress("draw scans", self.count) as progress:
            for i in range(self.count):
                drawn_from = derive(job.seed, "sample", i)
                generator = torch.Generator().manual_seed(drawn_from)
                (atlas,) = pick(data.atlases, 1, generator)
                if not is_stored(job.resume, i):
                    store_piece(job.resume, i, self._draw(data, atlas, generator, job))
                with np.load(stored_piece(job.resume, i)) as piece:
                    origin = {"space": str(piece["space"]), "style": str(piece["style"])}
                origins.append({"atlas": data.names[atlas], **origin, "alpha": 1.0, "beta": 1.0, "seed": drawn_from})
                progress.advance()
        write_samples(file, origins, job)

    def _draw(self, data: Scans, atlas: int, generator: torch.Generator, job: Job) -> dict[str, Any]:
        with torch.inference_mode(), job.device.autocast():
            drawn = self.synthesis(data, atlas, generator)
        label = warp_one_hot(data.label([atlas]), drawn.displacement, job.cohort.num_classes).argmax(1)
        label = label * (drawn.image[:, 0] >= self.label_above)
        return {
            "image": drawn.image[0].cpu().half().numpy(),
            "label": label[0].cpu().numpy().astype(label_type(job.cohort)),
            "similarity": float(lncc(drawn.image, drawn.plain).mean()),
            "inverse_error_voxels": float("nan"),
            "folding_fraction": float(folding_fraction(jacobian_determinant(drawn.displacement))[0]),
            "space": drawn.space,
            "style": drawn.style,
        }
