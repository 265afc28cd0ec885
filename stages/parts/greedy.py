"""Greedy diffeomorphic registration by picsl-greedy; called in processes of its own, which do not import torch.

Source: Yushkevich, Pluta, Wang, Wisse, Das, Wolk, "Fast automatic segmentation of hippocampal subfields and medial
temporal lobe subregions in 3 Tesla and 7 Tesla T2-weighted MRI", Alzheimer's & Dementia 2016; the program "greedy".
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from stages.errors import LrlsError
from stages.parts.lengths import unit_mm

NOISE = 0.001  # the program's own, as a share of the intensities' range


def check_greedy() -> None:
    """Raises LrlsError where picsl-greedy is not installed."""
    if find_spec("picsl_greedy") is None:
        raise LrlsError("greedy needs the package picsl-greedy; install it with `pip install 'lrls[greedy]'`.")


def greedy_displacement(
    moving: np.ndarray,
    fixed: np.ndarray,
    spacing_mm: tuple[float, float, float],
    seed: int,
    *,
    radius: int = 2,
    iterations: tuple[int, ...] = (100, 100, 40),
    smoothing: tuple[float, float] = (1.5, 0.5),
) -> np.ndarray:
    """greedy between two images on one grid, by weighted normalised cross-correlation (WNCC).

    Args:
        moving, fixed: (D, H, W) in [0, 1], or (C, D, H, W): all channels count alike in the metric.
        spacing_mm: voxel size (D, H, W).
        seed: of the noise: greedy adds some, so that correlation is defined where images are flat, and draws it anew
            each time; here it is drawn before.
        radius: of the correlation's window, voxels.
        iterations: coarse to fine; each level halves the voxels of the one before.
        smoothing: of each step, and of the whole displacement after it; standard deviations in voxels.

    Returns:
        Displacement (3, D, H, W) in voxels, components (D, H, W): warped(x) = moving(x + u(x)).

    Raises:
        RuntimeError: greedy cannot register them.
    """
    import SimpleITK as sitk
    from picsl_greedy import Greedy3D

    unit = unit_mm(spacing_mm)
    spacing = [mm / unit for mm in spacing_mm]
    noise = np.random.default_rng(seed)

    def images(array: np.ndarray, name: str) -> dict[str, sitk.Image]:
        named = {}
        for number, channel in enumerate(array if array.ndim == 4 else array[None]):
            noisy = channel + NOISE * noise.standard_normal(channel.shape)
            image = named[f"{name}{number}"] = sitk.GetImageFromArray(noisy)
            image.SetSpacing(spacing[::-1])  # ITK lists axes (x, y, z)
        return named

    targets, sources = images(fixed, "fixed"), images(moving, "moving")
    pairs = " ".join(f"-i {target} {source}" for target, source in zip(targets, sources, strict=True))
    greedy = Greedy3D()
    greedy.execute(
        f"{pairs} -m WNCC {radius}x{radius}x{radius} -n {'x'.join(map(str, iterations))} "
        f"-s {smoothing[0]}vox {smoothing[1]}vox -noise 0 -threads 1 -V 0 -wp 0 -o warp",
        **targets, **sources, warp=None,
    )  # fmt: skip
    in_units = np.moveaxis(sitk.GetArrayFromImage(greedy["warp"]), -1, 0)[::-1]  # (3, D, H, W), components (D, H, W)
    if not np.isfinite(in_units).all():
        raise RuntimeError("greedy's displacement is not finite")
    return np.ascontiguousarray(in_units / np.array(spacing).reshape(3, 1, 1, 1), dtype=np.float32)
