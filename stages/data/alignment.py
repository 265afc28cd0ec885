"""Alignment of a scan to the reference by ANTs. ANTs repeats itself only with a seed and one thread in the process.

Coarse to fine. Both images are shrunk to cubes whose size follows from the reference's extent, so that neither
millimetres nor thick slices matter. There many positions are rated by how they fit, ANTs improves the best few of them,
and the best result alone is refined on finer copies.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from stages.errors import LrlsError
from stages.parts.classical import UNWRITTEN, check_program

if TYPE_CHECKING:
    import SimpleITK as sitk

MOST_SCALING = 1.6  # singular values of a believable affine map between two people, and 1 / this
SAME_FIT = 0.01  # ANTs optimises another measure: a scan that lies right already may fit this much worse afterwards

SHIFT = 0.1  # of the reference's extent along each axis: so far apart lie the positions that are rated
MOST_STARTS = 6  # that ANTs improves
MUCH_WORSE = 0.1  # in fit: positions so far below the best one are left

Box = tuple[list[float], list[float]]  # lowest and highest (x, y, z) in mm along the reference's axes
Fit = Callable[["sitk.Image", "sitk.Image", np.ndarray], float]


class Level(NamedTuple):
    """Copies of the two images, and what ANTs does with them.

    Args:
        voxels: of the reference's copy, about; an image with fewer is taken as it is.
        sampling: share of the voxels that ANTs draws.
        iterations, shrink: of ANTs's own levels, coarse to fine; ANTs stops earlier where it gains nothing.
        smooth: ANTs's smoothing, in voxels.
    """

    voxels: int
    sampling: float
    iterations: tuple[int, ...]
    shrink: tuple[int, ...]
    smooth: tuple[int, ...]


COARSE = Level(voxels=2**13, sampling=0.25, iterations=(30,), shrink=(1,), smooth=(0,))
FINE = Level(voxels=2**17, sampling=0.125, iterations=(100, 50), shrink=(2, 1), smooth=(1, 0))


def align(
    reference: sitk.Image,
    scan: sitk.Image,
    *,
    kind: Literal["none", "centre", "rigid", "affine"],
    seed: int,
    contrast: Literal["same", "any"] = "same",
    unit_mm: float = 1.0,
    region: Box | None = None,
) -> dict[str, Any]:
    """Map of the reference's space to the scan's.

    Positions round three are rated: the images' centres of mass on one another, their boxes' centres, and where the
    headers put them. A result that fits clearly worse than the centres of mass alone, or that scales beyond
    `MOST_SCALING`, is refused. If it is refused, or if ANTs fails on this scan, the centres of mass are aligned
    instead; so they are where they fit as well.

    Args:
        reference, scan: intensities in [0, 1], one orientation.
        kind: "none" leaves the scan where its header puts it, "centre" moves the centre of its box to the reference's.
        seed: of ANTs's sampling.
        contrast: how a fit is rated. "same": by correlation, bright lies on bright; "any": by the correlation ratio,
            equal intensities in one image lie on equal intensities in the other. ANTs itself optimises mutual
            information in both cases.
        unit_mm: the length that ANTs sees as 1 mm: its steps are made for people; see `stages.parts.lengths`.
        region: the part of the reference that matters, if not all does. Fits are means of the whole reference's and of
            the region's: the whole tells one vertebra from the next, the region a heart from the chest round it. ANTs
            refines the region alone.

    Returns:
        "matrix": 4 x 4, homogeneous, points of the reference in mm (x, y, z; LPS) -> points of the scan.
        "correlation": of the two whole images after alignment, or the root of their correlation ratio.
        "fell_back": whether ANTs failed or its result was refused.

    Raises:
        LrlsError: ANTs fails on the reference itself, so that the scan is not to blame.
    """
    fit = correlation if contrast == "same" else correlation_ratio
    if kind in ("none", "centre"):
        matrix = _shift(box_centre(scan) - box_centre(reference)) if kind == "centre" else np.eye(4)
        return {"matrix": matrix, "correlation": fit(reference, scan, matrix), "fell_back": False}
    centres = _shift(centre_of_mass(scan) - centre_of_mass(reference))
    part = reference if region is None else cropped(reference, region)
    views = [reference] if part.GetSize() == reference.GetSize() else [reference, part]
    floor = _mean_fit(fit, views, scan, centres)
    try:
        ends = _coarse_to_fine(views, scan, fit, kind=kind, seed=seed, unit_mm=unit_mm)
    except RuntimeError:  # "Registration failed"
        check_program(lambda: _ants(reference, reference, np.eye(4), FINE, kind="Rigid", seed=seed, unit_mm=unit_mm))
        return {"matrix": centres, "correlation": fit(reference, scan, centres), "fell_back": True}
    fits = [_mean_fit(fit, views, scan, end) if is_believable(end) else -2.0 for end in ends]
    best = int(np.argmax(fits))
    matrix = ends[best] if fits[best] >= floor else centres
    fell_back = fits[best] < floor - SAME_FIT
    return {"matrix": matrix, "correlation": fit(reference, scan, matrix), "fell_back": fell_back}


def is_believable(matrix: np.ndarray) -> bool:
    """Whether a map scales within `MOST_SCALING` in every direction."""
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(scales.max() <= MOST_SCALING and scales.min() >= 1 / MOST_SCALING)


def _mean_fit(fit: Fit, views: Sequence[sitk.Image], scan: sitk.Image, matrix: np.ndarray) -> float:
    return sum(fit(view, scan, matrix) for view in views) / len(views)


def _coarse_to_fine(
    views: Sequence[sitk.Image], scan: sitk.Image, fit: Fit, *, kind: str, seed: int, unit_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """What ANTs refines the best map of the coarse copies to, and that map.

    Args:
        views: the reference, and perhaps a region of it.
    """
    edge_mm = edge_of_cubes(views[0], COARSE.voxels)
    small, small_scan = [shrunk(view, edge_mm) for view in views], shrunk(scan, edge_mm)
    # An affine map would stretch blurred voxels, and what only one of the images shows.
    coarse_kind = {"rigid": "Rigid", "affine": "Similarity"}[kind]
    ends = [
        _ants(small[0], small_scan, start, COARSE, kind=coarse_kind, seed=seed, unit_mm=unit_mm)
        for start in _best_starts(small, small_scan, fit)
    ]
    best = max(ends, key=lambda end: _mean_fit(fit, small, small_scan, end) if is_believable(end) else -1.0)
    edge_mm = edge_of_cubes(views[-1], FINE.voxels)
    fixed, moving = shrunk(views[-1], edge_mm), shrunk(scan, edge_mm)
    return _ants(fixed, moving, best, FINE, kind=kind.capitalize(), seed=seed, unit_mm=unit_mm), best


def _best_starts(views: Sequence[sitk.Image], scan: sitk.Image, fit: Fit) -> list[np.ndarray]:
    """The translations that fit best, best first, no two of them neighbours."""
    reference = views[0]
    step = SHIFT * np.array(reference.GetSize()) * reference.GetSpacing()
    axes = np.array(reference.GetDirection()).reshape(3, 3)
    middles = (
        centre_of_mass(scan) - centre_of_mass(reference),
        box_centre(scan) - box_centre(reference),
        np.zeros(3),  # where the headers put them
    )
    offsets = list(itertools.product((0, -1, 1), repeat=3))
    shifts = [middle + axes @ (step * offset) for middle in middles for offset in offsets]
    fits = np.array([_mean_fit(fit, views, scan, _shift(shift)) for shift in shifts])
    chosen: list[np.ndarray] = []
    for place in np.argsort(-fits, kind="stable"):
        if fits[place] < fits.max() - MUCH_WORSE or len(chosen) == MOST_STARTS:
            break
        apart = [np.abs(axes.T @ (shifts[place] - other) / step).max() for other in chosen]
        if min(apart, default=np.inf) > 1.5:
            chosen.append(shifts[place])
    return [_shift(shift) for shift in chosen]


def _shift(by: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


def edge_of_cubes(image: sitk.Image, voxels: int) -> float:
    """Edge in mm of cubes of which about `voxels` fill the image, where axes that are coarser stay as they are."""
    spacing = np.array(image.GetSpacing())
    extent = np.array(image.GetSize()) * spacing
    edge = float(min(spacing))
    while (extent / np.maximum(spacing, edge)).prod() > voxels:
        edge *= 1.02
    return edge


def cropped(image: sitk.Image, box: Box) -> sitk.Image:
    """The part of an image that lies in a box along its axes; the whole image if none does."""
    axes = np.array(image.GetDirection()).reshape(3, 3)
    ends = np.array([image.TransformPhysicalPointToContinuousIndex((axes @ np.array(end)).tolist()) for end in box])
    low = np.maximum(0, np.floor(ends.min(0))).astype(int)
    high = np.minimum(image.GetSize(), np.ceil(ends.max(0)) + 1).astype(int)
    if (high <= low).any():
        return image
    return image[tuple(slice(first, last) for first, last in zip(low.tolist(), high.tolist(), strict=True))]


def shrunk(image: sitk.Image, edge_mm: float) -> sitk.Image:
    """Means over whole voxels of the image, so many along each axis that they come nearest to `edge_mm`."""
    import SimpleITK as sitk

    factors = [
        max(1, min(size, round(edge_mm / spacing)))
        for size, spacing in zip(image.GetSize(), image.GetSpacing(), strict=True)
    ]
    return sitk.BinShrink(image, factors) if max(factors) > 1 else image


def _ants(
    reference: sitk.Image, scan: sitk.Image, start: np.ndarray, level: Level, *, kind: str, seed: int, unit_mm: float
) -> np.ndarray:
    """The map that ANTs makes of a start; `kind` is ANTs's name of it."""
    import ants

    # `registration(random_seed=...)` alone does not reach ANTs; 0 would mean a seed from the clock.
    ants.config.set_ants_deterministic(True, seed_value=seed + 1)

    with tempfile.TemporaryDirectory() as folder:
        initial = str(Path(folder) / "start.mat")
        beginning = ants.create_ants_transform(
            transform_type="AffineTransform",
            matrix=start[:3, :3],
            translation=start[:3, 3] / unit_mm,
            center=np.zeros(3),
        )
        with _in_temporary_files():
            ants.write_transform(beginning, initial)
        result = ants.registration(
            fixed=ants_image(reference, unit_mm),
            moving=ants_image(scan, unit_mm),
            type_of_transform=kind,
            initial_transform=initial,
            outprefix=str(Path(folder) / "align_"),
            aff_iterations=level.iterations,
            aff_shrink_factors=level.shrink,
            aff_smoothing_sigmas=level.smooth,
            aff_random_sampling_rate=level.sampling,
        )
        with _in_temporary_files():
            transform = ants.read_transform(result["fwdtransforms"][0])  # none, where ANTs could not write it
    parameters, centre = np.array(transform.parameters), np.array(transform.fixed_parameters)
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = (parameters[9:] + centre - matrix[:3, :3] @ centre) * unit_mm
    return matrix


@contextmanager
def _in_temporary_files() -> Iterator[None]:
    """No scan is to blame, and none is aligned otherwise, where ANTs can neither write nor read what it hands on."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, IndexError):
        raise LrlsError(UNWRITTEN) from None


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
