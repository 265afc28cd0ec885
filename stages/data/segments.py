"""Segmentations of 3D Slicer (.seg.nrrd): an image with one or several layers, and fields that name the segments.

    Segment<k>_Name, _LabelValue, _Layer, _Color, _Extent, _ID     of segment k, counted from 0

Segments that overlap lie in layers of their own. A voxel has one structure here, so that layers become one map and
overlaps are refused. Values are no more than numbers that Slicer gave out, and differ between files: where a name of a
file is one of `structures`, names decide.

Source: https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stages.config import Config
from stages.data.faults import Fault, IntakeError
from stages.data.sizes import refuse_full_memory
from stages.data.writers import one_line, write_whole
from stages.errors import shortened

KEPT = "lrls_segments"  # the one entry of a label map's dictionary that outlives reading
SAME_SPACING = 1e-3  # relative
MOST_NAME = 80  # characters


@dataclass(frozen=True)
class Segment:
    """A segment: its name, value and layer, and its colour as "#rrggbb" (empty: none)."""

    name: str
    value: int
    layer: int = 0
    colour: str = ""


def segments_of(image: sitk.Image) -> list[Segment]:
    """The segments that a label map's dictionary names, in order."""
    if image.HasMetaDataKey(KEPT):
        return [Segment(**segment) for segment in json.loads(image.GetMetaData(KEPT))]
    fields: dict[int, dict[str, str]] = {}
    for key in image.GetMetaDataKeys():
        if match := re.fullmatch(r"Segment(\d{1,6})_(\w+)", key):
            fields.setdefault(int(match[1]), {})[match[2]] = image.GetMetaData(key)
    layered = image.GetNumberOfComponentsPerPixel() > 1
    return [
        Segment(
            shortened(one_line(own.get("Name") or own.get("ID") or f"segment {place + 1}"), MOST_NAME),
            _integers(own.get("LabelValue", "1"), 1)[0],  # before values were stored, each segment was a layer of 1
            _integers(own.get("Layer", str(place if layered else 0)), 1)[0],
            _hex_colour(own.get("Color", "")),
        )
        for place, (_, own) in enumerate(sorted(fields.items()))
    ]


def as_label_map(image: sitk.Image, case: str) -> sitk.Image:
    """One label map of a file's layers, of the size of the image that was segmented; other images as they are.

    Raises:
        IntakeError: segments overlap, or their fields contradict the voxels.
        ValueError: a field is damaged.
    """
    segments = segments_of(image)
    if not segments:
        return image
    label = _whole(image, case)
    if image.GetNumberOfComponentsPerPixel() > 1:
        label, segments = _in_one_layer(label, segments, case)
    label.SetMetaData(KEPT, json.dumps([asdict(segment) for segment in segments]))
    return label


def _in_one_layer(image: sitk.Image, segments: Sequence[Segment], case: str) -> tuple[sitk.Image, list[Segment]]:
    layers = sitk.GetArrayViewFromImage(image)
    values = [segment.value for segment in segments]
    if len(set(values)) < len(values) or min(values) < 1:  # counted within each layer
        values = list(range(1, len(segments) + 1))
    owner = np.zeros(layers.shape[:-1], np.uint16)  # 1 + place of the voxel's segment
    for place, segment in enumerate(segments):
        if not 0 <= segment.layer < layers.shape[-1]:
            raise ValueError("no such layer")
        inside = layers[..., segment.layer] == segment.value
        if (shared := inside & (owner > 0)).any():
            other = segments[int(owner[shared][0]) - 1].name
            problem = f"segments '{other}' and '{segment.name}' overlap in {int(shared.sum())} voxels"
            remedy = "a voxel has one structure: in the Segment Editor, mask with 'Overwrite other segments: all'"
            raise IntakeError(Fault(case, f"label map: {problem}", remedy, "segments"))
        owner[inside] = place + 1
    if (nameless := int(((layers != 0).any(-1) & (owner == 0)).sum())) > 0:
        raise IntakeError(_of_no_segment(case, nameless))
    merged = np.array([0, *values], np.min_scalar_type(max(values)))[owner]
    label = sitk.GetImageFromArray(merged)
    label.CopyInformation(image)
    return label, [Segment(s.name, value, 0, s.colour) for s, value in zip(segments, values, strict=True)]


def _of_no_segment(case: str, voxels: int) -> Fault:
    problem = f"label map has {voxels} voxels with values that none of its segments has"
    return Fault(case, problem, "save the segmentation in 3D Slicer again", "segments")


def _whole(image: sitk.Image, case: str) -> sitk.Image:
    """The label map with the margins that Slicer cuts off, as far as the file says how large the image was."""
    keys = ("Segmentation_ReferenceImageExtentOffset", "Segmentation_ConversionParameters")
    if not all(image.HasMetaDataKey(key) for key in keys):
        return image
    offset = np.array(_integers(image.GetMetaData(keys[0]), 3))
    stated = re.search(r"(?:^|&)Reference image geometry\|([-+0-9.eE;]+)\|", image.GetMetaData(keys[1]))
    numbers = [float(word) for word in stated[1].split(";") if word] if stated else []
    if len(numbers) != 22:  # a matrix of voxels to RAS, then first and last voxel along each axis
        return image
    spacing = np.linalg.norm(np.reshape(numbers[:16], (4, 4))[:3, :3], axis=0)
    first, last = np.reshape(numbers[16:], (3, 2)).astype(int).T
    below, above = offset - first, last + 1 - offset - np.array(image.GetSize())
    is_cropped = np.allclose(spacing, image.GetSpacing(), rtol=SAME_SPACING, atol=0) and min(*below, *above) >= 0
    if not is_cropped or not (below.any() or above.any()):
        return image
    refuse_full_memory((last - first + 1).tolist(), image.GetSizeOfPixelComponent(), case, "label map")
    return sitk.ConstantPad(image, below.tolist(), above.tolist(), 0)


def with_own_values(label: sitk.Image, config: Config, case: str) -> sitk.Image:
    """A label map whose segments have the values that `structures` gives to their names; others as they are.

    Only if a segment has a structure's name; otherwise values are what they are in every other label map.

    Raises:
        IntakeError: a segment has no structure's name, and `others` is not "background"; it has the names of two; or
            voxels are of no segment.
    """
    segments = segments_of(label)
    own: dict[str, list[int]] = {}
    named: dict[str, list[str]] = {}
    for name, values_of_name in config.structure_values().items():
        own[plain_name(name)] = values_of_name
        named.setdefault(plain_name(name), []).append(name)
    if not any(plain_name(segment.name) in own for segment in segments):
        return label
    for segment in segments:
        if len(alike := named.get(plain_name(segment.name), [])) > 1:
            problem = f"segment '{segment.name}' has the name of two structures, '{alike[0]}' and '{alike[1]}'"
            raise IntakeError(Fault(case, problem, "rename one of them in structures", "segments"))
    voxels = sitk.GetArrayFromImage(label)
    segments = [segment for segment in segments if segment.value != 0]  # 0 is what lies around them
    if nameless := int((~np.isin(voxels, [0, *(segment.value for segment in segments)])).sum()):
        raise IntakeError(_of_no_segment(case, nameless))
    found = voxels.copy()
    for segment in segments:
        values = own.get(plain_name(segment.name))
        if values is not None and segment.value in values:
            continue
        inside = voxels == segment.value
        if values is None and config.others == "error" and inside.any():
            remedy = "name it there, or set others: background"
            raise IntakeError(
                Fault(case, f"segment '{segment.name}' is not named in structures", remedy, "label-value")
            )
        if values is not None and not np.can_cast(np.min_scalar_type(values[0]), found.dtype):
            found = found.astype(np.int64)
        found[inside] = 0 if values is None else values[0]
    translated = sitk.GetImageFromArray(found)
    translated.CopyInformation(label)
    return translated


def of_segments(segments: Iterable[Segment]) -> tuple[dict[str, int], dict[str, str]]:
    """One value for each name of the segments of many files, their own where no other name has it, and colours."""
    values: dict[str, int] = {}
    colours: dict[str, str] = {}
    names: dict[str, str] = {}
    for segment in segments:
        name = names.setdefault(plain_name(segment.name), segment.name)
        if name not in values:
            taken = set(values.values())
            free = next(value for value in range(1, len(taken) + 2) if value not in taken)
            values[name] = free if segment.value in taken else segment.value
        if segment.colour:
            colours.setdefault(name, segment.colour)
    return values, colours


def plain_name(name: str) -> str:
    """A name as it is compared: `Left lobe` is `left_lobe`."""
    return "_".join(re.split(r"[\s_]+", name.strip().casefold()))


def write_segmentation(label: sitk.Image, structures: Mapping[str, int], colours: Sequence[str], path: Path) -> None:
    """Write a label map as .seg.nrrd.

    Args:
        structures: value of each structure.
        colours: of them, "#rrggbb".

    Raises:
        LrlsError: the file cannot be written.
    """
    label = sitk.Image(label)
    for key in label.GetMetaDataKeys():
        label.EraseMetaData(key)
    voxels = sitk.GetArrayViewFromImage(label)
    for place, ((name, value), colour) in enumerate(zip(structures.items(), colours, strict=True)):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        fields = {
            "ID": f"Segment_{place + 1}", "Name": one_line(name), "NameAutoGenerated": "0", "LabelValue": str(value),
            "Layer": "0", "Color": " ".join(f"{part:.6f}" for part in parts), "ColorAutoGenerated": "0",
            "Extent": " ".join(map(str, _extent(voxels == value))),
        }  # fmt: skip
        for key, text in fields.items():
            label.SetMetaData(f"Segment{place}_{key}", text)
    label.SetMetaData("Segmentation_ContainedRepresentationNames", "Binary labelmap|")
    label.SetMetaData("Segmentation_MasterRepresentation", "Binary labelmap")
    label.SetMetaData("Segmentation_ReferenceImageExtentOffset", "0 0 0")
    write_whole(path, lambda temporary: sitk.WriteImage(label, str(temporary), useCompression=True))


def _extent(mask: np.ndarray) -> list[int]:
    """First and last voxel of a mask (D, H, W) along x, y and z; 0 to -1 if it is empty."""
    extent: list[int] = []
    for axis in (2, 1, 0):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        extent += [int(used[0]), int(used[-1])] if used.size else [0, -1]
    return extent


def _integers(text: str, number: int) -> list[int]:
    values = [int(word) for word in text.split()]
    if len(values) != number or not -(2**31) <= min(values) <= max(values) < 2**32:  # what label maps hold
        raise ValueError("not as many integers as expected")
    return values


def _hex_colour(text: str) -> str:
    try:
        parts = [round(255 * float(word)) for word in text.split()]
    except (ValueError, OverflowError):
        return ""
    return "#" + "".join(f"{part:02x}" for part in parts) if len(parts) == 3 and set(parts) <= set(range(256)) else ""
