"""Stage 1: bring scans to one orientation, intensity range, space and grid, and remember the way back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import SimpleITK as sitk

from stages.artifacts.cohort import Cohort, Grid
from stages.artifacts.files import atomic_write_text
from stages.artifacts.manifest import Identity
from stages.artifacts.store import find_finished, new_artifact, verify
from stages.config import Config, IntensitySettings, PreprocessSettings
from stages.data import intake
from stages.data.alignment import affine_transform, align
from stages.errors import LrlsError
from stages.processes import in_processes
from stages.progress import Progress

Part = Literal["train", "supervised", "dev", "test"]
MEMBERS: dict[Part, tuple[str, ...]] = {
    "train": ("atlases", "unlabeled"),
    "supervised": ("supervised",),
    "dev": ("dev",),
    "test": ("test",),
}
TRAINED_ON = ("atlases", "supervised")  # parts whose labels a cohort stores
BIG = 2**21  # voxels; larger scans are aligned at `align_spacing_mm`


def cohort_folder(config: Config, part: Part) -> Path:
    return config.workspace / ("cohort" if part == "train" else f"cohort-{part}")


def preprocess(
    config: Config,
    part: Part = "train",
    *,
    base: Cohort | None = None,
    needs_unlabeled: bool = True,
    force: bool = False,
) -> Cohort:
    """Make the cohort of a part of the split.

    "train" (atlases with labels, unlabelled scans without) sets the grid and the reference; the other parts are brought
    to that grid. Labels of held-out scans are never read here.

    Args:
        base: the "train" cohort where it is open already.
        needs_unlabeled: whether a cohort without unlabelled scans is a fault.
        force: make a new version though one is up to date.

    Raises:
        LrlsError: the first fault of the scans, with the number of further ones.
    """
    members = {role: config.part(role) for role in MEMBERS[part]}
    if part != "train" and not members[part]:
        raise LrlsError(f"data.{part} lists no scan; list labelled scans there.")
    if part != "train" and base is None:
        base = preprocess(config, "train", needs_unlabeled=False)
    intake.refuse(find_faults(config, part, needs_unlabeled=needs_unlabeled))
    scans: dict[str, str] = {}
    for role, cases in members.items():
        for case in cases:
            scan = intake.read_scan(config, case, label=role in TRAINED_ON)
            scans[f"scan/{case}"] = intake.scan_digest(scan)
    identity = Identity(
        kind=Cohort.KIND,
        format_version=Cohort.FORMAT,
        made_by="preprocess",
        config=cohort_settings(config, part),
        seed=config.seed,
        inputs=scans | ({"cohort": base.manifest.digest} if base else {}),
    )
    target = cohort_folder(config, part)
    if not force and (done := find_finished(target, identity)):
        return Cohort.open(done)
    if base:
        verify(base.folder)
    with new_artifact(target, identity) as draft:
        reference = base.reference() if base else _reference(config, members["atlases"][0])
        transforms = draft.folder / "transforms"
        transforms.mkdir(exist_ok=True)
        jobs = [(role, case) for role, cases in members.items() for case in cases]
        _align_all(config, reference, jobs, transforms, part)
        grid = base.grid if base else derive_grid(config, reference, members["atlases"], transforms)
        num_bytes = len(jobs) * int(np.prod(grid.shape)) * 3 + reference.GetNumberOfPixels() * 4
        if fault := intake.disk_fault(draft.folder, num_bytes):
            raise LrlsError(str(fault))
        _write(config, draft.folder, reference, grid, jobs)
        about = {"grid": asdict(grid), "structures": list(config.structures), "parts": members}
        atomic_write_text(draft.folder / "cohort.json", json.dumps(about, indent=1))
        _pictures(draft.folder, jobs, config, base)
        draft.save_elapsed()
    return Cohort.open(draft.result)


def cohort_settings(config: Config, part: Part) -> dict[str, Any]:
    """What a cohort depends on besides the scans and the seed."""
    return {
        "preprocess": config.preprocess.model_dump(mode="json", exclude={"workers"}),
        "structures": [[name, values] for name, values in config.structure_values().items()],  # in the order of classes
        "others": config.others,
        "members": {role: config.part(role) for role in MEMBERS[part]},
    }


def find_faults(config: Config, part: Part, *, needs_unlabeled: bool = True) -> list[intake.Fault]:
    """Faults of the scans of a part, and training images that a held-out part holds too.

    Held-out images that are not there (yet) are no fault of the training part, and their labels are not looked at.
    """
    roles = [role for role in MEMBERS[part] if needs_unlabeled or role != "unlabeled" or config.part("unlabeled")]
    if part in ("train", "supervised"):
        return intake.cohort_faults(config, roles, beside=("dev", "test"))
    return intake.cohort_faults(config, roles, labels=False, beside=("atlases", "unlabeled", "supervised"))


def _align_all(
    config: Config, reference: sitk.Image, jobs: list[tuple[str, str]], transforms: Path, part: Part
) -> None:
    """One JSON file per case in `transforms`; those that are there already are kept (a resumed run)."""
    geometry = packed(reference)
    missing = [(case, role) for role, case in jobs if not (transforms / f"{case}.json").exists()]
    is_reference = {config.part("atlases")[0]} if part == "train" else set()
    arguments = [(config, case, geometry, case in is_reference) for case, _ in missing]
    with Progress(f"align {part}", len(jobs), start=len(jobs) - len(missing)) as progress:
        for case, found in in_processes(_align_case, arguments, workers=config.preprocess.workers):
            atomic_write_text(transforms / f"{case}.json", json.dumps(found, indent=1))
            progress.advance()


def _align_case(config: Config, case: str, geometry: tuple, is_reference: bool) -> tuple[str, dict[str, Any]]:
    scan = intake.read_scan(config, case, label=False)
    reference = unpacked(geometry)
    return case, prepare(scan.image, reference, config.preprocess, seed=config.seed, is_reference=is_reference)[1]


def prepare_new(
    place: int, scan: Path | tuple, case: str, reference: tuple, settings: PreprocessSettings, grid: Grid, seed: int
) -> tuple[int, tuple[np.ndarray, dict[str, Any]] | str]:
    """The place of a scan that no configuration lists among others, and what the cohort's scans are brought to.

    Args:
        scan: its file or DICOM folder, or `packed`.
        reference: `packed`.

    Returns:
        Image (D, H, W) on the grid and the record of `prepare`; or, in one line, why there is none.
    """
    try:
        if isinstance(scan, Path):
            image = intake.read_new_scan(scan, case).image
        else:
            image = intake.checked_image(unpacked(scan), case)
        normalised, record = prepare(image, unpacked(reference), settings, seed=seed)
        return place, (image_on_grid(normalised, record, grid, case), record)
    except LrlsError as error:
        return place, str(error)
    except MemoryError:
        return place, f"case {case}: the image does not fit into memory; crop it."
    except (RuntimeError, ValueError):  # ITK's words quote paths
        return place, f"case {case}: the image could not be aligned; look at the scan and its header."


def packed(image: sitk.Image) -> tuple:
    """Voxels, spacing, origin and direction: an image as it goes to another process."""
    return sitk.GetArrayFromImage(image), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def unpacked(geometry: tuple) -> sitk.Image:
    voxels, spacing, origin, direction = geometry
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def prepare(
    image: sitk.Image,
    reference: sitk.Image,
    settings: PreprocessSettings,
    *,
    seed: int,
    is_reference: bool = False,
) -> tuple[sitk.Image, dict[str, Any]]:
    """Normalise and align one scan.

    Args:
        image: float32, as stored.
        reference: in [0, 1], what it is aligned to.

    Returns:
        The scan in [0, 1] in one orientation, and a JSON-able record: "matrix" (4 x 4, reference mm -> scan mm, LPS),
        "correlation", "fell_back", "intensity" [value that became 0, value that became 1], and the scan's own
        "size", "spacing", "origin" and "direction" (x, y, z).
    """
    normalised, low, high = normalise(image, settings)
    if is_reference:
        record: dict[str, Any] = {"matrix": np.eye(4), "correlation": 1.0, "fell_back": False}
    else:
        coarse = [coarsened(each, settings.align_spacing_mm) for each in (reference, normalised)]
        record = align(coarse[0], coarse[1], kind=settings.align, seed=seed, contrast=settings.align_contrast)
    record["matrix"] = np.asarray(record["matrix"]).tolist()
    record |= {"intensity": [low, high], "size": image.GetSize(), "spacing": image.GetSpacing()}
    record |= {"origin": image.GetOrigin(), "direction": image.GetDirection()}
    return normalised, record


def _reference(config: Config, case: str) -> sitk.Image:
    scan = intake.read_scan(config, case, label=False)
    return coarsened(normalise(scan.image, config.preprocess)[0], config.preprocess.align_spacing_mm)


def normalise(image: sitk.Image, settings: PreprocessSettings) -> tuple[sitk.Image, float, float]:
    """Orientation LPS, N4 where asked, intensities to [0, 1]; also returns the values that became 0 and 1."""
    image = sitk.DICOMOrient(image, "LPS")
    if settings.n4:
        image = _n4(image)
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


def _n4(image: sitk.Image) -> sitk.Image:
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


def derive_grid(config: Config, reference: sitk.Image, atlases: list[str], transforms: Path) -> Grid:
    """The grid: a box in the reference's space, and the spacing and shape that the settings leave open."""
    settings = config.preprocess
    low, high = _box(config, reference, atlases, transforms)
    low, high = low - settings.margin_mm, high + settings.margin_mm
    own = sitk.DICOMOrient(intake.read_scan(config, atlases[0], label=False).image, "LPS")
    if settings.spacing_mm is None:
        spacing = np.full(3, min(own.GetSpacing()))
    else:
        spacing = np.broadcast_to(np.atleast_1d(settings.spacing_mm)[::-1], 3).astype(float)
    if settings.shape is None:
        while True:
            size = np.maximum(16, np.ceil((high - low) / spacing / 8) * 8).astype(int)
            if settings.spacing_mm is not None or size.prod() <= settings.max_voxels:
                break
            spacing = spacing * 1.1
    else:
        size = np.array(settings.shape[::-1])
    direction = np.array(reference.GetDirection()).reshape(3, 3)
    centre = direction @ ((low + high) / 2)  # the box lives on the reference's axes
    origin = centre - direction @ ((size - 1) / 2 * spacing)
    # On voxels of the atlas: half a voxel beside them, every voxel at a structure's surface would be a tie between
    # structure and background, and thin structures would lose a fifth of their volume.
    steps = direction.T @ (origin - np.array(own.GetOrigin())) / own.GetSpacing()
    origin = np.array(own.GetOrigin()) + direction @ (np.round(steps) * own.GetSpacing())
    d, h, w = (int(n) for n in size[::-1])
    return Grid((d, h, w), tuple(spacing[::-1].tolist()), tuple(origin.tolist()), reference.GetDirection())


def _box(config: Config, reference: sitk.Image, atlases: list[str], transforms: Path) -> tuple[np.ndarray, np.ndarray]:
    """Corners of what the grid must hold, in mm along the reference's axes (x, y, z)."""
    direction = np.array(reference.GetDirection()).reshape(3, 3)
    points = []
    if config.preprocess.crop == "labels":
        for case in atlases:
            label = intake.read_scan(config, case, label=True).label
            assert label is not None
            classes = intake.class_indices(sitk.GetArrayViewFromImage(label), config, case)
            matrix = np.linalg.inv(json.loads((transforms / f"{case}.json").read_text())["matrix"])
            points.append(_points(label, classes > 0) @ matrix[:3, :3].T + matrix[:3, 3])
    else:
        voxels = sitk.GetArrayViewFromImage(reference)
        mask = voxels > 0.1 if config.preprocess.crop == "foreground" else np.ones(voxels.shape, bool)
        points.append(_points(reference, mask))
    along = np.concatenate(points) @ direction  # rows: projections on the reference's axes
    return along.min(0), along.max(0)


def _points(image: sitk.Image, mask: np.ndarray) -> np.ndarray:
    """Positions (n, 3) in mm of a mask's voxels."""
    index = np.argwhere(mask)[:, ::-1] * np.array(image.GetSpacing())
    return index @ np.array(image.GetDirection()).reshape(3, 3).T + np.array(image.GetOrigin())


def to_grid(image: sitk.Image, record: dict[str, Any], grid: Grid, *, nearest: bool = False) -> np.ndarray:
    """A scan on the cohort's grid, (D, H, W); 0 outside the scan. Smoothed first where the grid is much coarser."""
    interpolator = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    if not nearest:
        coarser = min(grid.spacing_mm) / max(image.GetSpacing())
        if coarser > 1.5:
            image = sitk.DiscreteGaussian(image, [(0.35 * min(grid.spacing_mm)) ** 2] * 3)
    transform = affine_transform(np.array(record["matrix"]))
    return sitk.GetArrayFromImage(
        sitk.Resample(image, grid.as_image(), transform, interpolator, 0.0, image.GetPixelID())
    )


def image_on_grid(normalised: sitk.Image, record: dict[str, Any], grid: Grid, case: str) -> np.ndarray:
    """What networks see of a scan: (D, H, W) float16 in [0, 1].

    Raises:
        LrlsError: nothing of the scan lies on the grid.
    """
    voxels = to_grid(normalised, record, grid)
    if voxels.min() == voxels.max():
        raise LrlsError(
            f"case {case}: its image does not reach the grid, which lies round the first atlas; "
            "set preprocess.align to rigid or affine, or correct the header's origin."
        )
    return voxels.astype(np.float16)


def label_to_grid(
    label: sitk.Image, classes: np.ndarray, num_classes: int, record: dict[str, Any], grid: Grid
) -> np.ndarray:
    """A label map on the grid, (D, H, W) class indices: the class with the largest share of each voxel."""
    best = np.full(grid.shape, 0.5, np.float32)  # background unless a structure has at least half of it
    result = np.zeros(grid.shape, classes.dtype)
    total = np.zeros(grid.shape, np.float32)
    shares = {}
    for index in range(1, num_classes):
        mask = sitk.GetImageFromArray((classes == index).astype(np.float32))
        mask.CopyInformation(label)
        share = to_grid(mask, record, grid)
        if share.any():
            shares[index] = share
            total += share
    best = 1 - total
    for index, share in shares.items():
        result[share > best] = index
        best = np.maximum(best, share)
    return result


def _write(config: Config, folder: Path, reference: sitk.Image, grid: Grid, jobs: list[tuple[str, str]]) -> None:
    num_classes = len(config.structures) + 1
    with h5py.File(folder / "cohort.h5", "w") as file:
        data = file.create_dataset("reference", data=sitk.GetArrayFromImage(reference))
        data.attrs["spacing"] = reference.GetSpacing()
        data.attrs["origin"] = reference.GetOrigin()
        data.attrs["direction"] = reference.GetDirection()
        images, labels = file.create_group("images"), file.create_group("labels")
        with Progress("resample", len(jobs)) as progress:
            for role, case in jobs:
                scan = intake.read_scan(config, case, label=role in TRAINED_ON)
                record = json.loads((folder / "transforms" / f"{case}.json").read_text())
                normalised, _, _ = normalise(scan.image, config.preprocess)
                images[case] = image_on_grid(normalised, record, grid, case)
                if scan.label is not None:
                    classes = intake.class_indices(sitk.GetArrayFromImage(scan.label), config, case)
                    labels[case] = label_to_grid(scan.label, classes, num_classes, record, grid)
                progress.advance()


def _pictures(folder: Path, jobs: list[tuple[str, str]], config: Config, base: Cohort | None) -> None:
    """The same slice of every scan under the first atlas's contours: a scan that is not aligned is seen."""
    from stages.pictures import couples_page

    (folder / "qc").mkdir(exist_ok=True)
    with h5py.File(folder / "cohort.h5") as file:
        labels = file["labels"]
        first = next((case for _, case in jobs if case in labels), None)
        outline = labels[first][()] if first else None
        if base and base.parts["atlases"]:
            outline = base.label(base.parts["atlases"][0])
        rows = []
        for role, case in jobs[:24]:
            name = "atlas" if role == "atlases" else "scan"
            rows.append({"image": file["images"][case][()].astype(np.float32), "label": outline, name: case})
        couples_page(rows, folder / "qc" / "cohort.png", structures=list(config.structures))
