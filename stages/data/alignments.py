"""Alignments to a reference. Each is computed once and kept by the digests of both images and the settings.

They do not depend on the configuration's seed: networks with different seeds learn from the same cohort.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.artifacts.digests import digest_of
from stages.config import PreprocessSettings
from stages.data.alignment import align
from stages.data.digests import image_digest
from stages.data.intensities import coarsened
from stages.data.kept import keep, kept_folder, read_kept
from stages.parts.lengths import unit_mm

VERSION = 2  # of `stages.data.alignment`; after a change everything is aligned again
SEED = 0  # of ANTs's sampling


def aligned(
    reference: sitk.Image, normalised: sitk.Image, settings: PreprocessSettings, kept: Path | None = None
) -> dict[str, Any]:
    """The result of `stages.data.alignment.align` for a scan, JSON-able; for the reference itself, the identity.

    Args:
        reference: `coarsened`, in [0, 1].
        normalised: the scan in [0, 1], in one orientation.
        kept: workspace in which alignments are kept.
    """
    scan = coarsened(normalised, settings.align_spacing_mm)
    unit = unit_mm(reference.GetSpacing())
    images = [image_digest(image) for image in (reference, scan)]
    if images[0] == images[1]:
        return {"matrix": np.eye(4).tolist(), "correlation": 1.0, "fell_back": False}
    file = None
    if kept:
        versions = [VERSION, sitk.Version_VersionString(), importlib.metadata.version("antspyx")]
        key = digest_of([*versions, *images, settings.align, settings.align_contrast])
        file = kept_folder(kept) / "alignments" / f"{key}.json"
        if (stored := read_kept(file)) and _is_record(stored):
            return stored
    alignment = align(reference, scan, kind=settings.align, seed=SEED, contrast=settings.align_contrast, unit_mm=unit)
    record = {**alignment, "matrix": np.asarray(alignment["matrix"]).tolist()}
    if file:
        keep(file, record)
    return record


def _is_record(stored: Any) -> bool:
    return isinstance(stored, dict) and stored.keys() == {"matrix", "correlation", "fell_back"}
