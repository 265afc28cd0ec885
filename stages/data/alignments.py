"""Alignments to a reference. Each is computed once and kept by the digests of both images and the settings.

They do not depend on the configuration's seed: networks with different seeds learn from the same cohort.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.artifacts.cohort import Grid
from stages.artifacts.digests import digest_of
from stages.config import PreprocessSettings
from stages.data.alignment import Box, align
from stages.data.digests import image_digest
from stages.data.intensities import coarsened
from stages.data.kept import keep, kept_folder, read_kept
from stages.parts.lengths import unit_mm

VERSION = 3  # of `stages.data.alignment`; after a change everything is aligned again
SEED = 0  # of ANTs's sampling


def aligned(
    reference: sitk.Image,
    normalised: sitk.Image,
    settings: PreprocessSettings,
    grid: Grid | None = None,
    kept: Path | None = None,
) -> dict[str, Any]:
    """The result of `stages.data.alignment.align` for a scan, JSON-able; for the reference itself, the identity.

    Args:
        reference: `coarsened`, in [0, 1].
        normalised: the scan in [0, 1], in one orientation.
        grid: where answers are given, in the reference's space: what lies there is aligned; None: the whole reference.
        kept: workspace in which alignments are kept.
    """
    scan = coarsened(normalised, settings.align_spacing_mm)
    unit = unit_mm(reference.GetSpacing())
    images = [image_digest(image) for image in (reference, scan)]
    if images[0] == images[1]:
        return {"matrix": np.eye(4).tolist(), "correlation": 1.0, "fell_back": False}
    region = region_of(grid) if grid else None
    file = None
    if kept:
        versions = [VERSION, sitk.Version_VersionString(), importlib.metadata.version("antspyx")]
        key = digest_of([*versions, *images, settings.align, settings.align_contrast, region])
        file = kept_folder(kept) / "alignments" / f"{key}.json"
        if (stored := read_kept(file)) and _is_record(stored):
            return stored
    kind, contrast = settings.align, settings.align_contrast
    alignment = align(reference, scan, kind=kind, seed=SEED, contrast=contrast, unit_mm=unit, region=region)
    record = {**alignment, "matrix": np.asarray(alignment["matrix"]).tolist()}
    if file:
        keep(file, record)
    return record


def region_of(grid: Grid) -> Box:
    """The box between the first and the last voxels of a grid, along its axes, which are the reference's."""
    low = np.array(grid.direction).reshape(3, 3).T @ np.array(grid.origin)
    high = low + (np.array(grid.shape[::-1]) - 1) * grid.spacing_mm[::-1]
    return low.tolist(), high.tolist()


def _is_record(stored: Any) -> bool:
    return isinstance(stored, dict) and stored.keys() == {"matrix", "correlation", "fell_back"}
