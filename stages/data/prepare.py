"""The steps for a single scan: read, check, normalise, align, bring to the grid. Each scan is decoded once.

These functions run in worker processes. Their results go into files, so that no process holds more than one scan and
a stopped run can resume:

    <case>.npz   "image" (D, H, W), of several channels (C, D, H, W), float16 on the grid, "label" class indices if it
                 is trained on, "about" JSON: "record" (see `prepare`), "faces" (see `stages.data.flat_borders`),
                 "lost" (classes without a voxel); behind the zip a digest

The grid lies around the labels of all atlases, so an atlas is decoded before the grid is known. Until then it is
spilled to a file:

    <case>.npz   "voxels" in [0, 1] in one orientation, further channels "voxels_1", ..., "values" label map as it is
                 stored, "about" as above with "geometry" and "label_geometry" [spacing, origin, direction] and "box"
                 of its labels
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.artifacts.checked import publish_checked
from stages.artifacts.cohort import Grid
from stages.config import Config, PreprocessSettings
from stages.data import intake
from stages.data.alignments import aligned
from stages.data.channels import counted, of_channel
from stages.data.facts import Looked, ScanFacts, examine, faults_of
from stages.data.faults import Fault, IntakeError
from stages.data.flat_borders import border_faces
from stages.data.geometry import geometry_of
from stages.data.grid import cut_shares, image_on_grid, label_box, label_to_grid, packed, unpacked
from stages.data.intensities import coarsened, normalise
from stages.data.labels import classes_of
from stages.data.lost import Labelled
from stages.data.outliers import unlike_reference
from stages.errors import LrlsError


@dataclass(frozen=True)
class Outcome:
    """The result for a scan: its facts, and the fault if a sound scan could not be brought to the grid."""

    case: str
    facts: ScanFacts | None = None
    fault: Fault | None = None


def check_scan(config: Config, looked: Looked) -> Outcome:
    """Decode a scan if its facts are not known."""
    return Outcome(looked.case, examine(config, looked, whole=False).facts)


def bring_scan(config: Config, looked: Looked, reference: tuple, grid: Grid, to: Path) -> Outcome:
    """Bring a scan, and its label map if that was looked for, to the grid.

    Args:
        reference: `packed`, the image that scans are aligned to.
        to: the file to write; not written for a faulty scan.
    """
    examined = examine(config, looked)
    if faults_of(config, examined.facts) or not examined.images:
        return Outcome(looked.case, examined.facts)
    if looked.has_changed:
        return Outcome(looked.case, examined.facts, _changed(looked.case))
    normalised, record = prepare(examined.images, unpacked(reference), config.preprocess, grid, kept=looked.kept)
    about: dict[str, Any] = {"record": record}
    if examined.label is not None:
        about["faces"] = border_faces(classes_of(examined.label, config, looked.case))
    return Outcome(
        looked.case, examined.facts, _bring(config, looked.case, normalised, examined.label, about, grid, to)
    )


def spill_atlas(config: Config, looked: Looked, reference: tuple | None, grid: Grid | None, to: Path) -> Outcome:
    """Align an atlas and spill it for `bring_atlas`.

    Args:
        reference: `packed`; None: this atlas is the reference.
        grid: that the reference alone would have.
        to: the file to write; not written for a faulty scan.
    """
    examined = examine(config, looked)
    images, label = examined.images, examined.label
    if faults_of(config, examined.facts) or not images or label is None:
        return Outcome(looked.case, examined.facts)
    if looked.has_changed:
        return Outcome(looked.case, examined.facts, _changed(looked.case))
    (normalised, *others), ranges = _normalised(images, config.preprocess)
    fixed = unpacked(reference) if reference else coarsened(normalised, config.preprocess.align_spacing_mm)
    record = _record(images[0], aligned(fixed, normalised, config.preprocess, grid, looked.kept), ranges)
    classes = classes_of(label, config, looked.case)
    about = {"record": record, "faces": border_faces(classes)}
    voxels, *about["geometry"] = packed(normalised)
    values, *about["label_geometry"] = packed(label)
    if config.preprocess.crop == "labels":
        about["box"] = label_box(label, classes, record["matrix"], fixed.GetDirection())
    further = {f"voxels_{k}": sitk.GetArrayFromImage(image) for k, image in enumerate(others, start=1)}
    _save(to, {"voxels": voxels, **further, "values": values}, about)
    return Outcome(looked.case, examined.facts)


def bring_atlas(config: Config, case: str, spilled: Path, grid: Grid, to: Path) -> Outcome:
    """Bring a spilled atlas to the grid."""
    with np.load(spilled) as file:
        about = about_of(file)
        names = ["voxels", *(f"voxels_{k}" for k in range(1, len(file.files)) if f"voxels_{k}" in file)]
        normalised = [unpacked((file[name], *about["geometry"])) for name in names]
        label = unpacked((file["values"], *about["label_geometry"]))
    return Outcome(case, None, _bring(config, case, normalised, label, about, grid, to))


def spilled_atlas(config: Config, case: str, spilled: Path) -> Labelled:
    """The label map of a spilled atlas, and where it lies."""
    with np.load(spilled) as file:
        about = about_of(file)
        label = unpacked((file["values"], *about["label_geometry"]))
    return Labelled(case, label, classes_of(label, config, case), np.array(about["record"]["matrix"]))


def spilled_reference(spilled: Path, settings: PreprocessSettings) -> sitk.Image:
    """The image that scans are aligned to: the first atlas, coarsened if it is big."""
    with np.load(spilled) as file:
        return coarsened(unpacked((file["voxels"], *about_of(file)["geometry"])), settings.align_spacing_mm)


def read_about(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return about_of(file)


def about_of(file: Any) -> dict[str, Any]:
    """The value "about" of an open file of this module."""
    return json.loads(str(file["about"]))


def _changed(case: str) -> Fault:
    return Fault(case, "its files changed while they were read", "run the command again", "changed")


def _bring(
    config: Config,
    case: str,
    normalised: Sequence[sitk.Image],
    label: sitk.Image | None,
    about: dict[str, Any],
    grid: Grid,
    to: Path,
) -> Fault | None:
    try:
        arrays = {"image": _on_grid(normalised, about["record"], grid, case)}
    except IntakeError as error:
        return error.fault
    if label is not None:
        classes = classes_of(label, config, case)
        arrays["label"] = label_to_grid(label, classes, len(config.structures) + 1, about["record"], grid)
        about["lost"] = np.setdiff1d(classes, arrays["label"]).tolist()
        about["cut"] = list(cut_shares(label, classes, about["record"]["matrix"], grid).items())
    _save(to, arrays, {key: about[key] for key in ("record", "faces", "lost", "cut") if key in about})
    return None


def _on_grid(normalised: Sequence[sitk.Image], record: dict[str, Any], grid: Grid, case: str) -> np.ndarray:
    """A scan on the grid, float16 in [0, 1]: (D, H, W), of several channels (C, D, H, W)."""
    arrays = [image_on_grid(normalised[0], record, grid, case)]
    for number, image in enumerate(normalised[1:], start=1):
        try:
            arrays.append(image_on_grid(image, record, grid, case))
        except IntakeError:  # it lies where the first one does, and that one is on the grid
            fault = Fault(case, "image is constant round the first atlas", "export it again", "constant")
            raise IntakeError(of_channel(fault, number, len(normalised))) from None
    return np.stack(arrays) if len(arrays) > 1 else arrays[0]


def _save(to: Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    temporary = to.with_name(f".{to.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
    publish_checked(temporary, to)


def prepare(
    images: Sequence[sitk.Image],
    reference: sitk.Image,
    settings: PreprocessSettings,
    grid: Grid,
    *,
    kept: Path | None = None,
) -> tuple[list[sitk.Image], dict[str, Any]]:
    """Normalise and align one scan.

    Args:
        images: its channels, float32, as stored; the first one is aligned, and the others with it.
        reference: the image that it is aligned to, in [0, 1].
        grid: see `stages.data.alignments.aligned`.
        kept: workspace in which alignments are kept.

    Returns:
        The channels in [0, 1] in one orientation, and a JSON-able record: "matrix" (4 x 4, reference mm -> scan mm,
        LPS), "correlation", "fell_back", "intensity" [value that became 0, value that became 1], of several channels a
        list of these, and the scan's own "size", "spacing", "origin" and "direction" (x, y, z).
    """
    normalised, ranges = _normalised(images, settings)
    return normalised, _record(images[0], aligned(reference, normalised[0], settings, grid, kept), ranges)


def _normalised(images: Sequence[sitk.Image], settings: PreprocessSettings) -> tuple[list[sitk.Image], list[Any]]:
    """Channels in [0, 1], each normalised by itself, and the record's "intensity"."""
    each = [normalise(image, settings) for image in images]
    ranges: list[Any] = [[low, high] for _, low, high in each]
    return [image for image, _, _ in each], ranges if len(ranges) > 1 else ranges[0]


def _record(image: sitk.Image, alignment: dict[str, Any], intensity: list[Any]) -> dict[str, Any]:
    record = alignment | {"intensity": intensity, "size": image.GetSize(), "spacing": image.GetSpacing()}
    return record | {"origin": image.GetOrigin(), "direction": image.GetDirection()}


def prepare_new(
    place: int,
    scan: Path | list[tuple],
    case: str,
    reference: tuple,
    settings: PreprocessSettings,
    grid: Grid,
    channels: tuple[int, Sequence[str]] = (1, ()),
) -> tuple[int, tuple[np.ndarray, dict[str, Any]] | str]:
    """Bring a scan that no configuration lists to the grid.

    Args:
        place: position of the scan among those of the call; returned with the result.
        scan: its file or DICOM folder, of several channels one of them; or its channels, `packed`.
        reference: `packed`.
        channels: how many a scan has, and their names, as far as they are known.

    Returns:
        `place`, and either the image on the grid, (D, H, W) or (C, D, H, W), with the record of `prepare`, or a
        one-line error.
    """
    try:
        if isinstance(scan, Path):
            images = intake.read_new_channels(scan, case, *channels)
        else:
            images = [intake.checked_image(unpacked(channel), case) for channel in scan]
            if len(images) != channels[0]:
                found = f"image of {counted(len(images))}, and the model learned from {counted(*channels)}"
                raise IntakeError(Fault(case, found, "give as many components, in this order", "channels"))
        to = unpacked(reference)
        if fault := unlike_reference(geometry_of(images[0]), geometry_of(to), case):
            return place, str(fault)
        normalised, record = prepare(images, to, settings, grid)
        return place, (_on_grid(normalised, record, grid, case), record)
    except LrlsError as error:
        return place, str(error)
    except MemoryError:
        return place, f"case {case}: the image does not fit into memory; crop it."
    except (RuntimeError, ValueError):  # ITK's messages quote paths
        return place, f"case {case}: the image could not be aligned; look at the scan and its header."
