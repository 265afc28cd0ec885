"""Alignment of a scan to the reference by ANTs. ANTs repeats itself only with a seed and one thread in the process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stages.parts.classical import check_ants

if TYPE_CHECKING:
    import SimpleITK as sitk

MOST_SCALING = 1.6  # singular values of a believable affine map between two people, and 1 / this
SAME_FIT = 0.01  # ANTs optimises another measure: a scan that lies right already may fit this much worse afterwards


def align(
    reference: sitk.Image,
    scan: sitk.Image,
    *,
    kind: Literal["none", "centre", "rigid", "affine"],
    seed: int,
    contrast: Literal["same", "any"] = "same",
    unit_mm: float = 1.0,
) -> dict[str, Any]:
    """Map of the reference's space to the scan's.

    ANTs starts twice, from the images' centres of mass and from their boxes' centres, and the better result is kept.
    A result that fits clearly worse than the centres of mass alone, or that scales beyond `MOST_SCALING`, is refused.
    If it is refused, or if ANTs fails on this scan, the centres of mass are aligned instead; so they are where they
    fit as well.

    Args:
        reference, scan: intensities in [0, 1], one orientation.
        kind: "none" leaves the scan where its header puts it, "centre" moves the centre of its box to the reference's.
        seed: of ANTs's sampling.
        contrast: how a fit is rated. "same": by correlation, bright lies on bright; "any": by the correlation ratio,
            equal intensities in one image lie on equal intensities in the other. ANTs itself optimises mutual
            information in both cases.
        unit_mm: the length that ANTs sees as 1 mm: its steps are made for people; see `stages.parts.lengths`.

    Returns:
        "matrix": 4 x 4, homogeneous, points of the reference in mm (x, y, z; LPS) -> points of the scan.
        "correlation": of the two images after alignment, or the root of their correlation ratio.
        "fell_back": whether ANTs failed or its result was refused.

    Raises:
        LrlsError: ANTs fails on the reference itself, so that the scan is not to blame.
    """
    fit = correlation if contrast == "same" else correlation_ratio
    boxes = np.eye(4)
    boxes[:3, 3] = box_centre(scan) - box_centre(reference)
    if kind in ("none", "centre"):
        matrix = boxes if kind == "centre" else np.eye(4)
        return {"matrix": matrix, "correlation": fit(reference, scan, matrix), "fell_back": False}
    centres = np.eye(4)
    centres[:3, 3] = centre_of_mass(scan) - centre_of_mass(reference)
    floor = fit(reference, scan, centres)
    try:
        ends = [_ants(reference, scan, start, kind=kind, seed=seed, unit_mm=unit_mm) for start in (centres, boxes)]
    except RuntimeError:  # "Registration failed"
        check_ants(lambda: _ants(reference, reference, np.eye(4), kind=kind, seed=seed, unit_mm=unit_mm))
        return {"matrix": centres, "correlation": floor, "fell_back": True}
    fits = [fit(reference, scan, end) for end in ends]
    best = int(np.argmax(fits))
    scales = np.linalg.svd(ends[best][:3, :3], compute_uv=False)
    is_believable = scales.max() <= MOST_SCALING and scales.min() >= 1 / MOST_SCALING
    if fits[best] < floor or not is_believable:
        fell_back = fits[best] < floor - SAME_FIT or not is_believable
        return {"matrix": centres, "correlation": floor, "fell_back": fell_back}
    return {"matrix": ends[best], "correlation": fits[best], "fell_back": False}


def _ants(
    reference: sitk.Image, scan: sitk.Image, start: np.ndarray, *, kind: str, seed: int, unit_mm: float
) -> np.ndarray:
    import ants

    # `registration(random_seed=...)` alone does not reach ANTs; 0 would mean a seed from the clock.
    ants.config.set_ants_deterministic(True, seed_value=seed + 1)

    with tempfile.TemporaryDirectory() as folder:
        initial = str(Path(folder) / "start.mat")
        ants.write_transform(
            ants.create_ants_transform(
                transform_type="AffineTransform",
                matrix=start[:3, :3],
                translation=start[:3, 3] / unit_mm,
                center=np.zeros(3),
            ),
            initial,
        )
        result = ants.registration(
            fixed=ants_image(reference, unit_mm),
            moving=ants_image(scan, unit_mm),
            type_of_transform={"rigid": "Rigid", "affine": "Affine"}[kind],
            initial_transform=initial,
            outprefix=str(Path(folder) / "align_"),
        )
        transform = ants.read_transform(result["fwdtransforms"][0])
    parameters, centre = np.array(transform.parameters), np.array(transform.fixed_parameters)
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = (parameters[9:] + centre - matrix[:3, :3] @ centre) * unit_mm
    return matrix


def ants_image(image: sitk.Image, unit_mm: float = 1.0) -> Any:
    """The image as an ANTs image, whose array axes are (x, y, z) and whose lengths are in units of `unit_mm`."""
    import ants
    import SimpleITK as sitk

    return ants.from_numpy(
        sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32),
        origin=[mm / unit_mm for mm in image.GetOrigin()],
        spacing=[mm / unit_mm for mm in image.GetSpacing()],
        direction=np.array(image.GetDirection()).reshape(3, 3),
    )


def affine_transform(matrix: np.ndarray) -> sitk.AffineTransform:
    """A homogeneous matrix as a SimpleITK transform."""
    import SimpleITK as sitk

    transform = sitk.AffineTransform(3)
    transform.SetMatrix([float(v) for v in matrix[:3, :3].ravel()])
    transform.SetTranslation([float(v) for v in matrix[:3, 3]])
    return transform


def correlation(reference: sitk.Image, scan: sitk.Image, matrix: np.ndarray) -> float:
    """Pearson correlation of the reference and the aligned scan where they overlap; -1: hardly any overlap."""
    a, b = _overlap(reference, scan, matrix)
    spread = a.std() * b.std() if len(a) else 0.0
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else -1.0


def correlation_ratio(reference: sitk.Image, scan: sitk.Image, matrix: np.ndarray, *, levels: int = 32) -> float:
    """Root of the share of the aligned scan's variance that the reference's intensity explains; -1: hardly any overlap.

    Between 0 and 1 for any contrasts. For two images of the same contrast it is close to the correlation.

    Source: Roche, Malandain, Pennec, Ayache, "The correlation ratio as a new similarity measure for multimodal image
    registration", MICCAI 1998.
    """
    a, b = _overlap(reference, scan, matrix)
    if not len(a) or b.var() == 0:
        return -1.0
    level = np.minimum((a.clip(0, 1) * levels).astype(int), levels - 1)
    count = np.bincount(level, minlength=levels)
    mean = np.bincount(level, b, minlength=levels) / np.maximum(count, 1)
    return float(np.sqrt((count * (mean - b.mean()) ** 2).sum() / len(b) / b.var()))


def _overlap(reference: sitk.Image, scan: sitk.Image, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intensities of the reference and of the aligned scan where they overlap; empty if they hardly do."""
    import SimpleITK as sitk

    aligned = sitk.Resample(scan, reference, affine_transform(matrix), sitk.sitkLinear, -1.0, sitk.sitkFloat32)
    a, b = sitk.GetArrayViewFromImage(reference).ravel(), sitk.GetArrayViewFromImage(aligned).ravel()
    inside = b >= 0
    if inside.mean() < 0.3:
        inside[:] = False
    return a[inside].astype(np.float64), b[inside].astype(np.float64)


def centre_of_mass(image: sitk.Image) -> np.ndarray:
    """Mean position (x, y, z) in mm, weighted by intensity."""
    import SimpleITK as sitk

    array = sitk.GetArrayViewFromImage(image).astype(np.float64)
    total = array.sum()
    if total <= 0:
        return box_centre(image)
    index = [
        float((array.sum(axis=tuple(a for a in range(3) if a != axis)) * np.arange(n)).sum() / total)
        for axis, n in enumerate(array.shape)
    ]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index[::-1]))


def box_centre(image: sitk.Image) -> np.ndarray:
    """Centre of the image's box (x, y, z) in mm."""
    return np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
