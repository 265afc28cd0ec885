"""Free-form deformation by cubic B-splines, by SimpleITK; called in processes of its own, which do not import torch.

Source: Rueckert, Sonoda, Hayes, Hill, Leach, Hawkes, "Nonrigid registration using free-form deformations: application
to breast MR images", TMI 1999.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.parts.lengths import unit_mm

BINS = 32
CONTROL_VOXELS = 5.0  # distance of control points where none is set, in voxels of the finest axis
LEAST_VOXELS = 2.0  # of an axis between control points: on thick slices, splines would bend between the slices


def coarsest_mesh(shape: Sequence[int], spacing: Sequence[float], control: float, levels: int) -> tuple[int, ...]:
    """Cells of the coarsest mesh of control points along each axis, at least one; each later level halves them.

    Args:
        shape: of the image, voxels.
        spacing: of its axes.
        control: distance of control points on the finest mesh, in the unit of `spacing`.
    """
    apart = [max(control, LEAST_VOXELS * step) * 2 ** (levels - 1) for step in spacing]
    return tuple(max(1, round(n * step / far)) for n, step, far in zip(shape, spacing, apart, strict=True))


def bspline_displacement(
    moving: np.ndarray,
    fixed: np.ndarray,
    spacing_mm: tuple[float, float, float],
    seed: int,
    *,
    control_mm: float | None = None,
    levels: int = 3,
    iterations: int = 10,
    samples: int = 2**14,
) -> np.ndarray:
    """Cubic B-splines between two images on one grid, by mutual information (Mattes, 32 bins) and LBFGS.

    Args:
        moving, fixed: (D, H, W) in [0, 1].
        spacing_mm: voxel size (D, H, W).
        seed: of the draw of voxels.
        control_mm: distance of control points at the finest level; none: `CONTROL_VOXELS`.
        levels: each halves the voxels and the cells of the one before.
        iterations: at each level.
        samples: voxels that are compared at each level.

    Returns:
        Displacement (3, D, H, W) in voxels, components (D, H, W): warped(x) = moving(x + u(x)).

    Raises:
        RuntimeError: SimpleITK cannot register them.
    """
    import SimpleITK as sitk

    unit = unit_mm(spacing_mm)  # ITK's thresholds are made for people
    spacing = [mm / unit for mm in spacing_mm]

    def image(array: np.ndarray) -> sitk.Image:
        result = sitk.GetImageFromArray(array)
        result.SetSpacing(spacing[::-1])  # ITK lists axes (x, y, z)
        return result

    target, source = image(fixed), image(moving)
    control = CONTROL_VOXELS * min(spacing) if control_mm is None else control_mm / unit
    mesh = coarsest_mesh(fixed.shape, spacing, control, levels)
    transform = sitk.BSplineTransformInitializer(target, mesh[::-1], 3)
    finer = [2**level for level in range(levels)]
    shrink = [min(factor, min(fixed.shape)) for factor in finer[::-1]]

    registration = sitk.ImageRegistrationMethod()
    registration.SetInterpolator(sitk.sitkLinear)
    registration.SetMetricAsMattesMutualInformation(BINS)
    registration.SetMetricSamplingStrategy(registration.RANDOM)
    shares = [min(1.0, samples * factor**3 / fixed.size) for factor in shrink]
    registration.SetMetricSamplingPercentagePerLevel(shares, seed + 1)  # 0 would mean a seed from the clock
    registration.SetShrinkFactorsPerLevel(shrink)
    registration.SetSmoothingSigmasPerLevel([factor / 2 if factor > 1 else 0.0 for factor in shrink])
    registration.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    # Iterations alone end a level. LBFGS2 compares its gradient with the length of all displacements together, which is
    # small enough after a few iterations, or at once on finer levels. Its test of progress, (before - now) / now, takes
    # a metric to be positive: mutual information is negative here, and every progress would end it.
    registration.SetOptimizerAsLBFGS2(solutionAccuracy=1e-9, numberOfIterations=iterations, deltaConvergenceDistance=0)
    registration.SetInitialTransformAsBSpline(transform, inPlace=True, scaleFactors=finer)
    registration.Execute(target, source)

    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, target.GetSize(), target.GetOrigin(), target.GetSpacing()
    )
    in_units = np.moveaxis(sitk.GetArrayFromImage(field), -1, 0)[::-1]  # (3, D, H, W), components (D, H, W)
    return np.ascontiguousarray(in_units / np.array(spacing).reshape(3, 1, 1, 1), dtype=np.float32)
