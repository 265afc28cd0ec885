"""How unlike the scans still are after alignment: what augmentation has to cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stages.parts.warps import warp_label


def residual_scaling(displacement: np.ndarray, label: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """By how much an atlas's structures are scaled along one direction to become those of a scan, on top of alignment.

    The affine map that is nearest to a registration's displacement within the structures; of its three scalings the one
    furthest from none.

    Args:
        displacement: (3, D, H, W), voxels; atlas to scan.
        label: of the atlas, class indices (D, H, W).
        spacing_mm: (D, H, W).

    Returns:
        |log scaling|: 0: none, 0.1: by a tenth; 0 where the structures have no extent.
    """
    carried = warp_label(torch.from_numpy(label.astype(np.int16))[None], torch.from_numpy(displacement)[None])[
        0
    ].numpy()
    places = np.argwhere(carried > 0)
    if len(places) < 4:
        return 0.0
    spacing = np.array(spacing_mm)
    here = places * spacing
    there = here + displacement[:, *places.T].T * spacing
    here, there = here - here.mean(0), there - there.mean(0)
    if np.linalg.matrix_rank(here) < 3:
        return 0.0
    linear = np.linalg.lstsq(here, there, rcond=None)[0]
    scalings = np.linalg.svd(linear, compute_uv=False).clip(1e-3)
    return float(np.abs(np.log(scalings)).max())
