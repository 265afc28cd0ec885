"""A first configuration file from a folder of scans: labelled cases, label values, intensities."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import SimpleITK as sitk
import yaml

from stages.config import load_config
from stages.data.dicom_files import series_in
from stages.data.faults import IntakeError
from stages.data.intake import SUFFIXES, case_id, find_file, read_image
from stages.errors import LrlsError

MOST_ATLASES = 5
IMAGE_FOLDERS = ("images", "imagesTr", "imagesTs")
LABEL_FOLDERS = ("labels", "labelsTr", "labelsTs")
IMAGES_READ = 5  # to guess the modality
LABELS_READ = 20  # to collect label values, besides the atlases
CT_BELOW_HU = -500.0  # air; MR images do not go so low
LABEL_NAME = re.compile(r"[-_.](label|labels|seg|segmentation|mask)$", re.IGNORECASE)


class Description(TypedDict):
    """What a folder of scans holds; sub-folders are relative to the folder, several joined by ", "."""

    folder: Path
    images: str
    labels: str
    atlases: list[str]
    unlabeled: list[str]
    test: list[str]
    structures: dict[str, int | list[int]]
    drop_others: bool
    modality: str  # "CT" or "MR"
    window: tuple[float, float] | None  # HU, CT only
    spacings_mm: list[tuple[float, ...]]  # of some scans
    notes: list[str]  # decisions, as comments for the file


def describe_folder(folder: Path) -> Description:
    """Work out roles, structures, modality and spacing from a folder of scans or a `dataset.json`.

    Reads images/ and labels/ (also imagesTr, imagesTs, labelsTr, labelsTs), the dataset.json of the Medical
    Segmentation Decathlon and of nnU-Net v2, or a flat folder of scans.

    Raises:
        LrlsError: the folder holds no scans, or several images per scan.
    """
    given = folder
    folder = folder.parent if folder.name == "dataset.json" else folder
    dataset = _read_dataset(folder / "dataset.json") if (folder / "dataset.json").is_file() else {}
    if not folder.is_dir() or (given != folder and not dataset):
        raise LrlsError(f"{given}: no such folder or dataset.json; give the folder that holds the scans.")
    images = [name for name in IMAGE_FOLDERS if (folder / name).is_dir()] or ["."]
    labels = [name for name in LABEL_FOLDERS if (folder / name).is_dir()]
    scans = list(dict.fromkeys(case for name in images for case in _cases(folder / name)))
    labelled_files = {case for name in labels for case in _cases(folder / name)}
    labelled = [case for case in scans if case in labelled_files]
    unlabeled = [case for case in scans if case not in labelled_files]
    if not scans:
        raise LrlsError(
            f"{given}: no scans found; put them into images/ and their label maps, under the same names, "
            "into labels/ (NIfTI, NRRD, MHA, or one DICOM folder per scan)."
        )

    notes = []
    atlases, rest = labelled[:MOST_ATLASES], labelled[MOST_ATLASES:]
    if rest:
        notes.append(
            f"{len(labelled)} scans have labels: the first {MOST_ATLASES} are atlases here; choose others freely."
        )
    if rest and not unlabeled:
        unlabeled, test = rest[: (len(rest) + 1) // 2], rest[(len(rest) + 1) // 2 :]
        notes.append("Every scan has labels: half of the other scans are used without their labels.")
    else:
        test = rest
    if not atlases:
        notes.append("No scan has labels yet: label a typical one (`lrls suggest-atlas` says which).")
    elif not unlabeled:
        notes.append("Every scan is an atlas: add scans without labels to learn from.")
    if atlases and not test:
        notes.append("No labelled scan is left to score on: move one or more atlases to data.test.")

    label_folders, image_folders = [folder / name for name in labels], [folder / name for name in images]
    label_maps = {
        case: sitk.GetArrayFromImage(label)
        for case, label in _read_some([*atlases, *rest[:LABELS_READ]], label_folders, "label map")
    }
    structures, drop_others = _structures(dataset, label_maps.values())
    if not structures:
        structures = {"structure_1": 1}
        notes.append("No label values are known yet: write names and values of your structures below.")
    some_images = dict(_read_some([*atlases, *unlabeled, *test][:IMAGES_READ], image_folders, "image"))
    modality = _modality(dataset, some_images.values())
    return Description(
        folder=folder,
        images=", ".join(images),
        labels=", ".join(labels) or "labels",
        atlases=atlases,
        unlabeled=unlabeled,
        test=test,
        structures=structures,
        drop_others=drop_others,
        modality=modality,
        window=_window(some_images, label_maps) if modality == "CT" else None,
        spacings_mm=[tuple(round(mm, 2) for mm in image.GetSpacing()) for image in some_images.values()],
        notes=notes,
    )


def write_config(description: Description, output: Path, *, force: bool = False) -> Path:
    """Write a commented configuration file that `load_config` accepts.

    Raises:
        LrlsError: the file exists and `force` is not set.
    """
    if output.exists() and not force:
        raise LrlsError(f"{output} exists already; write another file with --output, or replace it with --force.")
    draft = output.with_name(f".{output.name}.draft")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(config_text(description, output), encoding="utf-8")
        load_config(draft)
        os.replace(draft, output)
    finally:
        draft.unlink(missing_ok=True)
    return output


def config_text(description: Description, output: Path) -> str:
    """The configuration file for a described folder; paths are relative to `output` where they lie below it."""
    folder = description["folder"].resolve()
    base = output.resolve().parent
    where = folder.relative_to(base) if folder.is_relative_to(base) else folder
    name = folder.name or "scans"
    spacings = sorted({" x ".join(f"{mm:g}" for mm in spacing) for spacing in description["spacings_mm"]})
    notes = "".join(f"  # {note}\n" for note in description["notes"])
    structures = "".join(f"  {_scalar(name)}: {value}\n" for name, value in description["structures"].items())
    if description["window"]:
        low, high = description["window"]
        intensity = (
            "  intensity:\n"
            "    method: window  # CT; MR: method: percentiles\n"
            f"    window: [{low:g}, {high:g}]  # HU that become 0 and 1: a margin round the labelled voxels' values\n"
        )
    else:
        intensity = (
            "  intensity:\n"
            "    method: percentiles  # MR; for CT: method: window and window: [-160, 240] (HU)\n"
            "    percentiles: [0.5, 99.5]  # of the scan's foreground, become 0 and 1\n"
        )
    return f"""\
# Written by `lrls init`. Next: `lrls check {output.name}`, then `lrls run {output.name} --method brbs`.
# Paths are relative to this file.
workspace: {_scalar(f"runs/{name}")}  # everything that is made goes here

data:
  folder: {_scalar(where.as_posix())}
  images: {_scalar(description["images"])}
  labels: {_scalar(description["labels"])}  # label maps, named as the images are
{notes}\
  # Labelled scans to learn from; the others are aligned to the first one.
{_list("atlases", description["atlases"])}\
  # Scans to learn from without labels.
{_list("unlabeled", description["unlabeled"])}\
  # Labelled scans to choose settings on; never trained on.
{_list("dev", [])}\
  # Labelled scans to score once, at the end; never trained on.
{_list("test", description["test"])}\

# Names and label values; a list of values becomes one structure: kidney: [2, 3]
structures:
{structures}\
# Label values that are not named above: error, or background.
others: {"background" if description["drop_others"] else "error"}

seed: 0
device: auto  # auto, cpu or cuda

preprocess:
  align: affine  # to the first atlas: none, rigid or affine
  crop: labels  # keep the surroundings of the atlases' labels; or foreground, none
  margin_mm: 12
  # spacing_mm: 1.0  # of the grid; left out: the atlases' finest. Found: {"; ".join(spacings) or "-"} mm
{intensity}\

# Left out: the number of steps of each method's own recipe.
# train_reg:
#   steps: 2000
# train_seg:
#   steps: 2000
"""


def _read_dataset(path: Path) -> dict[str, Any]:
    try:
        dataset = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise LrlsError("dataset.json is not readable as JSON; correct or remove it.") from None
    channels = dataset.get("channel_names", dataset.get("modality", {})) if isinstance(dataset, dict) else {}
    if isinstance(channels, dict) and len(channels) > 1:
        raise LrlsError(f"dataset.json: {len(channels)} channels, 1 expected; keep one image per scan.")
    return dataset if isinstance(dataset, dict) else {}


def _cases(folder: Path) -> list[str]:
    """Case ids of the scans in a folder, sorted.

    Raises:
        LrlsError: several channels, or label maps beside the images.
    """
    cases = set()
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_file() and path.name.endswith(SUFFIXES):
            if case_id(path).endswith("_0001") and any(folder.glob(f"{case_id(path).removesuffix('_0001')}_0000.*")):
                raise LrlsError(f"{folder.name}: several channels (_0000, _0001, ...); keep one image per scan.")
            cases.add(case_id(path))
        elif path.is_dir() and series_in(path):
            cases.add(path.name)
    for case in cases:
        if LABEL_NAME.search(case) and LABEL_NAME.sub("", case) in cases:
            raise LrlsError(
                f"{folder.name}: case {case} looks like a label map beside its image; "
                "put images into images/ and label maps, under the same names, into labels/."
            )
    return sorted(cases)


def _read_some(cases: Sequence[str], folders: Sequence[Path], kind: str) -> Iterable[tuple[str, sitk.Image]]:
    """The images of the cases that can be read; `lrls check` reports the faults of the others."""
    for case in cases:
        try:
            yield case, read_image(find_file(folders, case, kind), case, kind)
        except IntakeError:
            continue


def _structures(dataset: dict[str, Any], label_maps: Iterable[np.ndarray]) -> tuple[dict[str, int | list[int]], bool]:
    """Structures by name, and whether values without a name are to be dropped.

    Names come from the dataset.json: MSD maps values to names, nnU-Net names to values. A value that occurs only in
    the label maps is named after itself.
    """
    values_in_maps = sorted(
        {int(value) for label in label_maps for value in np.unique(label) if value == int(value)} - {0}
    )
    named: dict[str, int | list[int]] = {}
    ignored = False
    entries = dataset.get("labels")
    for key, value in entries.items() if isinstance(entries, dict) else ():
        name, values = (value, int(key)) if isinstance(value, str) and str(key).isdigit() else (key, value)
        if name == "ignore":
            ignored = True
        elif isinstance(values, int | list) and values not in (0, [0]):
            named[str(name)] = values
    flat = [value for values in named.values() for value in ([values] if isinstance(values, int) else values)]
    if len(set(flat)) < len(flat):  # nnU-Net's regions overlap; structures do not
        named, flat = {}, []
    if not ignored:
        named |= {f"structure_{value}": value for value in values_in_maps if value not in flat}
    return named, ignored


def _modality(dataset: dict[str, Any], images: Iterable[sitk.Image]) -> str:
    channels = dataset.get("channel_names", dataset.get("modality", {}))
    channel = next(iter(channels.values()), "") if isinstance(channels, dict) else ""
    if isinstance(channel, str) and channel:
        return "CT" if channel.upper() == "CT" else "MR"
    minima = [sitk.GetArrayViewFromImage(image).min() for image in images]
    return "CT" if minima and np.median(minima) < CT_BELOW_HU else "MR"


def _window(images: dict[str, sitk.Image], label_maps: dict[str, np.ndarray]) -> tuple[float, float]:
    """HU: 200 below the labelled voxels' 0.5th to 200 above their 99.5th percentile; without labels, all tissues."""
    labelled = [
        sitk.GetArrayViewFromImage(image)[label_maps[case] != 0]
        for case, image in images.items()
        if case in label_maps and label_maps[case].shape == image.GetSize()[::-1]
    ]
    values = np.concatenate([voxels for voxels in labelled if voxels.size] or [np.array([-800.0, 800.0])])
    low, high = np.percentile(values, (0.5, 99.5))
    return float(max(-1000, np.floor(low / 10) * 10 - 200)), float(min(3000, np.ceil(high / 10) * 10 + 200))


def _scalar(text: str) -> str:
    """A string as YAML, quoted where it would otherwise be read as something else."""
    return yaml.safe_dump(text, allow_unicode=True, width=10**6).splitlines()[0]


def _list(name: str, cases: Sequence[str]) -> str:
    """A list of case ids as YAML, wrapped."""
    text = f"{name}: [{', '.join(map(_scalar, cases))}]"
    lines = textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False)
    return "".join(f"  {'' if index == 0 else '  '}{line}\n" for index, line in enumerate(lines))
