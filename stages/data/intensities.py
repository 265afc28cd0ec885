"""Intensities of scans: bias field correction, scaling to [0, 1], and coarser copies for alignment."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from stages.config import IntensitySettings, PreprocessSettings
from stages.parts.lengths import unit_mm

BIG = 2**21  # voxels; larger scans are aligned at `align_spacing_mm`
ALIGN_SPACING_MM = 2.0  # of people; see `unit_mm`


def normalise(image: sitk.Image, settings: PreprocessSettings) -> tuple[sitk.Image, float, float]:
    """The image in orientation LPS with intensities in [0, 1], after N4 if set, and the values that became 0 and 1.

    A CT of 512 x 512 x 600 has 630 MB as float32, so that beside it there is only one more, scaled in place.
    """
    image = sitk.DICOMOrient(image, "LPS")
    if settings.n4:
        image = n4_corrected(image)
    geometry = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    voxels = sitk.GetArrayFromImage(image).astype(np.float32, copy=False)
    del image
    low, high = intensity_range(voxels, settings.intensity)
    voxels -= low
    voxels /= high - low
    scaled = sitk.GetImageFromArray(np.clip(voxels, 0, 1, out=voxels))
    scaled.SetSpacing(geometry[0])
    scaled.SetOrigin(geometry[1])
    scaled.SetDirection(geometry[2])
    return scaled, low, high


def intensity_range(voxels: np.ndarray, settings: IntensitySettings) -> tuple[float, float]:
    """The values that become 0 and 1.

    Percentiles are taken over the foreground: if over a tenth of the voxels share the lowest value (brain-extracted or
    padded scans), that value is background and becomes 0.
    """
    if settings.method == "window":
        return settings.window
    lowest = float(voxels.min())
    is_foreground = voxels > lowest
    if np.count_nonzero(is_foreground) > 0.9 * voxels.size:
        low, high = (float(np.percentile(voxels, share)) for share in settings.percentiles)
    else:
        low = lowest
        high = float(np.percentile(voxels[is_foreground], settings.percentiles[1], overwrite_input=True))
    return (low, high) if high > low else (lowest, float(voxels.max()))


def n4_corrected(image: sitk.Image) -> sitk.Image:
    unit = unit_mm(image.GetSpacing())
    shrink = [
        max(1, round(4 * unit / spacing)) if size > 64 else 1
        for size, spacing in zip(image.GetSize(), image.GetSpacing(), strict=True)
    ]
    small = sitk.Shrink(image, shrink)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(small, sitk.OtsuThreshold(small, 0, 1, 200))
    return image / sitk.Exp(n4.GetLogBiasFieldAsImage(image))


def coarsened(image: sitk.Image, spacing_mm: float | None, *, most: int = BIG) -> sitk.Image:
    """An image with more voxels than `most`, smoothed and resampled at `spacing_mm`; smaller images are unchanged.

    Args:
        spacing_mm: None: 2 mm of a person.
    """
    if image.GetNumberOfPixels() <= most:
        return image
    unit = unit_mm(image.GetSpacing())
    if spacing_mm is None:
        spacing_mm = ALIGN_SPACING_MM * unit
    spacing = [max(s, spacing_mm) for s in image.GetSpacing()]
    size = [max(1, int(n * s / t)) for n, s, t in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    smooth = sitk.DiscreteGaussian(
        image, [(t / 2) ** 2 if t > s else 1e-6 * unit**2 for s, t in zip(image.GetSpacing(), spacing, strict=True)]
    )
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetDirection(image.GetDirection())
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    half = np.array(grid.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size]))
    grid.SetOrigin((centre - half).tolist())
    return sitk.Resample(smooth, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
