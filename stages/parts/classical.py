"""Registration of arrays without learning, by other programs. It runs in processes that do not import torch.

ANTs gives the same result again only with a seed and one thread: call these in processes of `stages.processes`.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stages.errors import LrlsError
from stages.parts.lengths import unit_mm

UNWRITTEN = (
    "ANTs cannot write its temporary files; set TMPDIR to a folder with free space, and run the same command again."
)


@dataclass(frozen=True)
class Classical:
    """A registration of arrays by another program.

    Args:
        displacement: (moving, fixed, spacing_mm, seed) -> displacement (3, D, H, W) in voxels; raises RuntimeError
            where the program cannot register them.
        program: its name, for messages.
        package: which pip installs it by.
    """

    displacement: Callable[[np.ndarray, np.ndarray, tuple[float, float, float], int], np.ndarray]
    program: str
    package: str


def displacement_of(
    registers: Classical, place: int, case: str, moving: np.ndarray, fixed: np.ndarray,
    spacing_mm: tuple[float, float, float], seed: int,
) -> tuple[int, np.ndarray]:  # fmt: skip
    """The place of an image pair among others, and its displacement.

    Raises:
        LrlsError: the program cannot register the pair; the message names the case.
    """
    moving, fixed = moving.astype(np.float32), fixed.astype(np.float32)
    try:
        return place, registers.displacement(moving, fixed, spacing_mm, seed)
    except RuntimeError:  # "Registration failed", and pages of the program's own output
        check_program(
            lambda: registers.displacement(moving, moving, spacing_mm, seed), registers.program, registers.package
        )
        raise LrlsError(
            f"case {case}: {registers.program} could not register it; look at it on the grid (qc/ of its cohort), "
            "and take it out of the split if it is not what it should be."
        ) from None


def _warp_in(written: Sequence[str]) -> np.ndarray:
    """The displacement (W, H, D, 3), components (x, y, z), in a file that ANTs wrote.

    ITK neither notices that a disk has no room for a packed file, nor that the file is cut.

    Raises:
        LrlsError: there is no such file, or it is not whole.
    """
    import ants

    try:
        path = next(path for path in written if path.endswith(".nii.gz"))
        with gzip.open(path) as file:
            if not file.read(1):
                raise EOFError
            while file.read(1 << 20):  # behind the last one stands a checksum
                pass
    except (OSError, EOFError, zlib.error, StopIteration):
        raise LrlsError(UNWRITTEN) from None
    return ants.image_read(path).numpy()


def check_program(works: Callable[[], object], program: str = "ANTs", package: str = "antspyx") -> None:
    """Find out whether a program can register anything here, after it failed on a scan.

    Args:
        works: a registration that cannot fail for a reason that lies in the images.
        program, package: as of `Classical`.

    Raises:
        LrlsError: it fails as well.
    """
    try:
        works()
    except RuntimeError:
        raise LrlsError(
            f"{program} cannot register an atlas to itself, so the scans are not to blame; set TMPDIR to a folder with "
            f"free space, look whether memory is left, or install {package} again."
        ) from None


def no_displacement(
    moving: np.ndarray, fixed: np.ndarray, spacing_mm: tuple[float, float, float], seed: int
) -> np.ndarray:
    """The zero displacement (3, D, H, W)."""
    return np.zeros((3, *fixed.shape[-3:]), np.float32)


def syn_displacement(
    moving: np.ndarray,
    fixed: np.ndarray,
    spacing_mm: tuple[float, float, float],
    seed: int,
    *,
    iterations: tuple[int, ...] = (100, 70, 30),
    metric: Literal["mattes", "cc"] = "mattes",
    gradient_step: float = 0.2,
) -> np.ndarray:
    """ANTs SyN between two images on one grid.

    Args:
        moving, fixed: (D, H, W) in [0, 1], or (C, D, H, W): all channels count alike in the metric.
        spacing_mm: voxel size (D, H, W).
        seed: of ANTs's sampling.
        iterations: coarse to fine.
        metric: mutual information of 32 bins (ANTsPy's default), or local cross-correlation of radius 4.
        gradient_step: how far an iteration goes; ANTsPy's default, ANTs's scripts have 0.1.

    Returns:
        Displacement (3, D, H, W) in voxels, components (D, H, W): warped(x) = moving(x + u(x)).
    """
    import ants

    # `registration(random_seed=...)` alone does not reach ANTs; 0 would mean a seed from the clock.
    ants.config.set_ants_deterministic(True, seed_value=seed + 1)

    unit = unit_mm(spacing_mm)  # ANTs's steps are made for people
    spacing = tuple(mm / unit for mm in spacing_mm)

    def image(array: np.ndarray) -> ants.ANTsImage:  # ANTs lists axes (x, y, z)
        return ants.from_numpy(array.transpose(2, 1, 0).astype(np.float32), spacing=spacing[::-1])

    (first_fixed, *others_fixed), (first_moving, *others_moving) = (
        [image(channel) for channel in (array if array.ndim == 4 else array[None])] for array in (fixed, moving)
    )
    how = {"mattes": ("mattes", 32), "cc": ("CC", 4)}[metric]
    others = [(how[0], *pair, 1, how[1]) for pair in zip(others_fixed, others_moving, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        result = ants.registration(
            fixed=first_fixed,
            moving=first_moving,
            type_of_transform="SyNOnly",
            initial_transform="identity",
            grad_step=gradient_step,
            reg_iterations=iterations,
            syn_metric=how[0],
            syn_sampling=how[1],
            multivariate_extras=others or None,
            outprefix=str(Path(folder) / "syn_"),
        )
        in_mm = _warp_in(result["fwdtransforms"])
    in_mm = in_mm.transpose(3, 2, 1, 0)[::-1]
    return np.ascontiguousarray(in_mm / np.array(spacing, np.float32).reshape(3, 1, 1, 1), dtype=np.float32)
