"""A large volume piece by piece, so that what is computed of it on the way takes little memory beside it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MOST_VOXELS = 2**22  # of a slab: in numbers of 64 bits, 32 MiB


def slabs(volume: np.ndarray) -> Iterator[slice]:
    """Slices along the first axis, in order, each of at most `MOST_VOXELS` voxels or one plane."""
    planes = max(1, MOST_VOXELS // max(1, volume[:1].size))
    for start in range(0, len(volume), planes):
        yield slice(start, min(start + planes, len(volume)))
