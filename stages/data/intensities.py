"""Intensities of scans: bias field, the range that becomes [0, 1], and coarser copies to align by."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from stages.config import IntensitySettings, PreprocessSettings

BIG = 2**21  # voxels; larger scans are aligned at `align_spacing_mm`


def normalise(image: sitk.Image, settings: PreprocessSettings) -> tuple[sitk.Image, float, float]:
    """Orientation LPS, N4 where asked, intensities to [0, 1]; also returns the values that became 0 and 1."""
    image = sitk.DICOMOrient(image, "LPS")
    if settings.n4:
        image = n4_corrected(image)
    voxels = sitk.GetArrayFromImage(image)
    low, high = intensity_range(voxels, settings.intensity)
    scaled = sitk.GetImageFromArray(((voxels - low) / (high - low)).clip(0, 1).astype(np.float32))
    scaled.CopyInformation(image)
    return scaled, low, high


def intensity_range(voxels: np.ndarray, settings: IntensitySettings) -> tuple[float, float]:
    """Values that become 0 and 1.

    Percentiles are of the foreground: where over a tenth of the voxels share the lowest value (brain-extracted, padded
    scans), that value is background and becomes 0.
    """
    if settings.method == "window":
        return settings.window
    lowest = float(voxels.min())
    foreground = voxels[voxels > lowest]
    if foreground.size > 0.9 * voxels.size:
        foreground = voxels.ravel()
        low = float(np.percentile(foreground, settings.percentiles[0]))
    else:
        low = lowest
    high = float(np.percentile(foreground, settings.percentiles[1]))
    return (low, high) if high > low else (lowest, float(voxels.max()))


def n4_corrected(image: sitk.Image) -> sitk.Image:
    shrink = [
        max(1, round(4 / spacing)) if size > 64 else 1
        for size, spacing in zip(image.GetSize(), image.GetSpacing(), strict=True)
    ]
    small = sitk.Shrink(image, shrink)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(small, sitk.OtsuThreshold(small, 0, 1, 200))
    return image / sitk.Exp(n4.GetLogBiasFieldAsImage(image))


def coarsened(image: sitk.Image, spacing_mm: float, *, most: int = BIG) -> sitk.Image:
    """An image of more voxels than `most` at a coarser spacing, smoothed first; a smaller one as it is."""
    if image.GetNumberOfPixels() <= most:
        return image
    spacing = [max(s, spacing_mm) for s in image.GetSpacing()]
    size = [max(1, int(n * s / t)) for n, s, t in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    smooth = sitk.DiscreteGaussian(
        image, [(t / 2) ** 2 if t > s else 1e-6 for s, t in zip(image.GetSpacing(), spacing, strict=True)]
    )
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetDirection(image.GetDirection())
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    half = np.array(grid.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size]))
    grid.SetOrigin((centre - half).tolist())
    return sitk.Resample(smooth, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
