"""A first configuration file from a folder of scans: labelled cases, label values, intensities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import SimpleITK as sitk
import yaml

from stages.artifacts.files import rename
from stages.config import load_config
from stages.data.bids import files_in_bids, is_bids, label_table_folders
from stages.data.channels import counted, split_name
from stages.data.faults import IntakeError
from stages.data.folders import Files, files_in, found_by_name
from stages.data.intake import read_image
from stages.data.label_tables import best_table, by_name, tables_in
from stages.data.labels import as_integers
from stages.data.segments import of_segments, segments_of
from stages.errors import LrlsError, printable
from stages.text_files import read_json

MOST_ATLASES = 5
IMAGE_FOLDERS = ("images", "imagesTr", "imagesTs")
LABEL_FOLDERS = ("labels", "labelsTr", "labelsTs")
IMAGES_READ = 5  # to guess the modality
LABELS_READ = 20  # to collect label values, besides the atlases
CT_BELOW_HU = -500.0  # air; MR images do not go so low
MOST_LINES = 10  # of files that are left out


class Description(TypedDict):
    """What a folder of scans holds; sub-folders are relative to the folder, several joined by ", "."""

    folder: Path
    images: str
    labels: str
    files: dict[str, list[str | list[str]]]  # of the cases that are not named after their id; see data.files
    channels: list[str]  # names of a scan's images, where there are several and they have names
    atlases: list[str]
    unlabeled: list[str]
    test: list[str]
    structures: dict[str, int | list[int]]
    colours: dict[str, str]  # of structures, "#rrggbb", as far as a table has them
    modality: str  # "CT" or "MR"
    window: tuple[float, float] | None  # HU, CT only
    spacings_mm: list[tuple[float, ...]]  # of some scans
    notes: list[str]  # decisions, as comments for the file
    left_out: list[str]  # files that no case has, and why


def describe_folder(folder: Path) -> Description:
    """Work out roles, structures, modality and spacing from a folder of scans or a `dataset.json`.

    Reads images/ and labels/ (also imagesTr, imagesTs, labelsTr, labelsTs), the dataset.json of the Medical
    Segmentation Decathlon and of nnU-Net v2, a BIDS folder, or a flat folder of scans.

    Raises:
        LrlsError: the folder holds no scans, or the channels of a scan in one file.
    """
    given = folder
    folder = folder.parent if folder.name == "dataset.json" else folder
    dataset = _read_dataset(folder / "dataset.json") if (folder / "dataset.json").is_file() else {}
    if not folder.is_dir() or (given != folder and not dataset):
        raise LrlsError(f"{given}: no such folder or dataset.json; give the folder that holds the scans.")
    images = [name for name in IMAGE_FOLDERS if (folder / name).is_dir()] or ["."]
    labels = [name for name in LABEL_FOLDERS if (folder / name).is_dir()]
    as_bids = not dataset and is_bids(folder)
    files = files_in_bids(folder) if as_bids else files_in(folder, images, labels)
    if not files.images:
        left_out = f" Left out: {files.left_out[0]}." if files.left_out else ""
        raise LrlsError(
            f"{given}: no scans found; put them into images/ and their label maps, under the same names, "
            f"into labels/ (NIfTI, NRRD, MHA, or one DICOM folder per scan).{left_out}"
        )
    names = _channel_names(dataset)
    number = max((len(paths) for paths in files.channels.values()), default=1)
    if len(names) > 1 and number == 1:
        raise LrlsError(
            f"dataset.json: {len(names)} channels, and no scan has several images; store each channel in a file of its "
            "own (<case>_0000, <case>_0001, ...), as nnU-Net does."
        )
    labelled = [case for case in files.images if case in files.labels]
    unlabeled = [case for case in files.images if case not in files.labels]

    notes = []
    if number > 1:
        named = counted(number, names)
        notes.append(f"Scans have {named}: images that lie on one another. The first one is aligned and shown.")
    if files.by_name:
        image, label = files.by_name[0]
        notes.append(
            f"{len(files.by_name)} label map{'s' * (len(files.by_name) > 1)} of another name than the image: "
            f"{label.as_posix()} goes with {image.as_posix()}; see data.files."
        )
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
    if not atlases and any(f"{name}/" in line for name in labels for line in files.left_out):
        notes.append("No label map goes with a scan; see what was left out.")
    elif not atlases:
        notes.append("No scan has labels yet: label a typical one (`lrls suggest-atlas` says which).")
    elif not unlabeled:
        notes.append("Every scan is an atlas: add scans without labels to learn from.")
    if atlases and not test:
        notes.append("No labelled scan is left to score on: move one or more atlases to data.test.")

    read = dict(_read_some(folder, files.labels, [*atlases, *rest[:LABELS_READ]], "label map", notes))
    label_maps = {case: sitk.GetArrayFromImage(label) for case, label in read.items()}
    nameless = [label_maps[case] for case, label in read.items() if not segments_of(label)]
    values = sorted({int(value) for label in nameless for value in np.unique(label)} - {0})
    known, colours = _known_names(folder, list(files.labels.values()), read.values(), values, notes)
    structures = _structures(dataset, known, values, notes)
    if not structures:
        structures = {"structure_1": 1}
        notes.append("No label values are known yet: write names and values of your structures below.")
    some_cases = [*atlases, *unlabeled, *test][:IMAGES_READ]
    some_images = dict(_read_some(folder, files.images, some_cases, "image", notes))
    modality = _modality(dataset, some_images.values())
    return Description(
        folder=folder,
        images=", ".join(images),
        labels=", ".join(labels) or "labels",
        files=_unlike_their_ids(files, images, labels),
        channels=names if number > 1 else [],
        atlases=atlases,
        unlabeled=unlabeled,
        test=test,
        structures=structures,
        colours={name: colour for name, colour in colours.items() if name in structures},
        modality=modality,
        window=_window(some_images, label_maps) if modality == "CT" else None,
        spacings_mm=[tuple(round(mm, 2) for mm in image.GetSpacing()) for image in some_images.values()],
        notes=notes,
        left_out=_few(files.left_out),
    )


def _unlike_their_ids(files: Files, images: Sequence[str], labels: Sequence[str]) -> dict[str, list[str | list[str]]]:
    """Image, or images, and label map of the cases whose files are not found by the case id."""
    listed: dict[str, list[str | list[str]]] = {}
    for case, image in files.images.items():
        label, channels = files.labels.get(case), files.channels.get(case, [])
        if channels:
            is_found = split_name(image)[0] == case and image.parent.as_posix() in images
        else:
            is_found = found_by_name(case, [image], images)
        if case in files.doubled or not is_found or (label and not found_by_name(case, [label], labels)):
            all_images = [path.as_posix() for path in channels] if len(channels) > 1 else image.as_posix()
            listed[case] = [all_images, *([label.as_posix()] if label else [])]
    return listed


def _few(lines: Sequence[str]) -> list[str]:
    """At most `MOST_LINES` lines, and how many more there are."""
    return [*lines[:MOST_LINES], *([f"{len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else [])]


def write_config(description: Description, output: Path, *, force: bool = False) -> Path:
    """Write a commented configuration file that `load_config` accepts.

    Raises:
        LrlsError: the file exists and `force` is not set.
    """
    if output.exists() and not output.is_file():
        raise LrlsError(f"--output {output} is no file; name one to write.")
    if output.exists() and not force:
        raise LrlsError(f"{output} exists already; write another file with --output, or replace it with --force.")
    draft = output.with_name(f".{output.name}.draft")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(config_text(description, output), encoding="utf-8")
        load_config(draft)
        rename(draft, output)
    finally:
        draft.unlink(missing_ok=True)
    return output


def config_text(description: Description, output: Path) -> str:
    """The configuration file for a described folder; paths are relative to `output` where they lie below it."""
    folder = description["folder"].resolve()
    base = output.resolve().parent
    where = folder.relative_to(base) if folder.is_relative_to(base) else folder
    name, file = folder.name or "scans", printable(output.name)
    spacings = sorted({" x ".join(f"{mm:g}" for mm in spacing) for spacing in description["spacings_mm"]})
    notes = "".join(f"  # {printable(note)}\n" for note in description["notes"])
    notes += "".join(f"  # Left out: {printable(line)}\n" for line in description["left_out"])
    structures = "".join(f"  {_scalar(name)}: {value}\n" for name, value in description["structures"].items())
    colours = "".join(f"  {_scalar(name)}: '{colour}'\n" for name, colour in description["colours"].items())
    colours = f"# Colours of structures, in tables, segmentations and pictures.\ncolours:\n{colours}" if colours else ""
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
# Written by `lrls init`. Next: `lrls check {file}`, then `lrls run {file} --method brbs`.
# Paths are relative to this file.
workspace: {_scalar(f"runs/{name}")}  # everything that is made goes here

data:
  folder: {_scalar(where.as_posix())}
  images: {_scalar(description["images"])}
  labels: {_scalar(description["labels"])}  # label maps, named as the images are
{_list("channels", description["channels"]) if description["channels"] else ""}\
{notes}\
  # Labelled scans to learn from; the others are aligned to the first one.
{_list("atlases", description["atlases"])}\
  # Scans to learn from without labels.
{_list("unlabeled", description["unlabeled"])}\
  # Labelled scans to choose settings on; never trained on.
{_list("dev", [])}\
  # Labelled scans to score once, at the end; never trained on.
{_list("test", description["test"])}\
{_files(description["files"])}\

# Names and label values; a list of values becomes one structure: kidney: [2, 3]
structures:
{structures}\
{colours}\
# Label values that are not named above: error, or background.
others: error

seed: 0
device: auto  # auto, cpu or cuda

preprocess:
  align: affine  # to the first atlas: none, rigid or affine
  crop: labels  # keep the surroundings of the atlases' labels; or foreground, none
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
        dataset = read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LrlsError(f"dataset.json is not readable as JSON ({reason}); correct or remove it.") from None
    return dataset if isinstance(dataset, dict) else {}


def _read_some(
    folder: Path, files: Mapping[str, Path], cases: Sequence[str], kind: str, notes: list[str]
) -> Iterable[tuple[str, sitk.Image]]:
    """The images, or label maps as integers, that can be read; a fault of another one becomes a note."""
    for case in cases:
        try:
            image = read_image(folder / files[case], case, kind)
            yield case, as_integers(image, case) if kind == "label map" else image
        except IntakeError as error:
            notes.append(f"{str(error.fault)[0].upper()}{str(error.fault)[1:]}")


def _known_names(
    folder: Path, labels: Sequence[Path], read: Iterable[sitk.Image], values: Sequence[int], notes: list[str]
) -> tuple[dict[str, int], dict[str, str]]:
    """Value and colour by name, of the values that occur: from segmentations themselves, or from a table beside them.

    Args:
        labels: the label maps, relative to the folder.
        read: those that were read.
    """
    segments = [segment for label in read for segment in segments_of(label)]
    if segments:
        notes.append("Names are those of 3D Slicer's segments; segments with these names get the values below.")
        return of_segments(segments)
    entries, file = best_table(values, tables_in(label_table_folders(folder, labels)))
    if file is None:
        return {}, {}
    notes.append(f"Names of structures are from {file.relative_to(folder).as_posix()}.")
    table = by_name(entries)
    return {name: value for name, (value, _) in table.items()}, {
        name: colour for name, (_, colour) in table.items() if colour
    }


def _structures(
    dataset: dict[str, Any], known: Mapping[str, int], values_in_maps: Sequence[int], notes: list[str]
) -> dict[str, int | list[int]]:
    """Structures by name.

    Names come from the dataset.json: MSD maps values to names, nnU-Net names to values; otherwise from `known`. A value
    that occurs only in the label maps is named after itself. nnU-Net's "ignore" is no structure, and its voxels are no
    background: a note says so.
    """
    named: dict[str, int | list[int]] = {}
    ignored: list[int] = []
    entries = dataset.get("labels")
    for key, value in entries.items() if isinstance(entries, dict) else ():
        name, values = (value, int(key)) if isinstance(value, str) and str(key).isdigit() else (key, value)
        if isinstance(values, list) and not all(isinstance(value, int) for value in values):
            continue
        if str(name).lower() == "ignore" and isinstance(values, int | list):
            ignored += [values] if isinstance(values, int) else values
        elif isinstance(values, int | list) and values not in (0, [0]):
            named[str(name)] = values
    named = named or dict(known)
    flat = [value for values in named.values() for value in ([values] if isinstance(values, int) else values)]
    if len(set(flat)) < len(flat):  # nnU-Net's regions overlap; structures do not
        named, flat = {}, []
    if present := [str(value) for value in ignored if value in values_in_maps]:
        notes.append(
            f"Label value {', '.join(present)} is nnU-Net's ignore: voxels that nobody labelled, which `lrls check` "
            "refuses. Give them their structures; others: background would teach that they are background."
        )
    return named | {f"structure_{value}": value for value in values_in_maps if value not in [*flat, *ignored]}


def _channel_names(dataset: dict[str, Any]) -> list[str]:
    """Names of the images of a scan, in order, as nnU-Net or MSD give them; empty: none or not all are given."""
    channels = dataset.get("channel_names", dataset.get("modality", {}))
    names = list(channels.values()) if isinstance(channels, dict) else []
    return names if all(isinstance(name, str) and name.strip() and name.isprintable() for name in names) else []


def _modality(dataset: dict[str, Any], images: Iterable[sitk.Image]) -> str:
    if names := _channel_names(dataset):
        return "CT" if all(name.upper() == "CT" for name in names) else "MR"
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
    """A string as YAML in one line, in a list too, quoted where it would otherwise be read as something else."""
    quotes = None if text.isprintable() else '"'  # only in these are line breaks escaped
    listed = yaml.safe_dump([text], allow_unicode=True, width=10**6, default_flow_style=True, default_style=quotes)
    return listed.strip().removeprefix("[").removesuffix("]")


def _files(files: Mapping[str, Sequence[str | list[str]]]) -> str:
    """data.files as YAML; nothing if every file is named after its case."""

    def listed(paths: Sequence[str | list[str]]) -> str:
        return f"[{', '.join(_scalar(path) if isinstance(path, str) else listed(path) for path in paths)}]"

    lines = [f"    {_scalar(case)}: {listed(paths)}\n" for case, paths in files.items()]
    return "".join(["  # Image and label map of cases with other names.\n  files:\n", *lines]) if lines else ""


def _list(name: str, cases: Sequence[str]) -> str:
    """A list of case ids as YAML, wrapped."""
    lines = [f"{name}: ["]
    for place, case in enumerate(map(_scalar, cases)):  # never within an id: two spaces of one are not one
        item = case + (", " if place < len(cases) - 1 else "")
        if len(lines[-1]) + len(item.rstrip()) > 110 and not lines[-1].endswith("["):
            lines.append("")
        lines[-1] += item
    lines[-1] += "]"
    return "".join(f"  {'' if index == 0 else '  '}{line.rstrip()}\n" for index, line in enumerate(lines))
