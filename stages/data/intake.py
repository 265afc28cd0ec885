"""Reading users' scans, and finding every fault in them before anything is computed.

Messages name the case and what is wrong with it, never a path or anything from a file's header: headers of medical
scans hold names and dates.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import shutil
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stages.config import Config
from stages.errors import LrlsError

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
GEOMETRY_TOLERANCE = 1e-3  # mm for spacing and origin; entries of direction matrices
TRAINING = ("atlases", "unlabeled", "supervised")
HELD_OUT = ("dev", "test")

# Users get our one line per fault; ITK's own warnings quote paths.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a scan; a fault of the whole cohort has the empty case id."""

    case: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{f'case {self.case}: ' if self.case else ''}{self.found}; {self.remedy}."


class IntakeError(LrlsError):
    """A scan cannot be used; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@dataclass(frozen=True)
class Scan:
    """A scan as it is stored: float32 image and, where asked for, integer label map, in their own geometry."""

    case: str
    image: sitk.Image
    label: sitk.Image | None


def find_file(folder: Path | Sequence[Path], case: str, what: str) -> Path:
    """The file (or DICOM folder) of a case; `what` ("image" or "label map") is for the message.

    Accepts `<case>` and nnU-Net's `<case>_0000` with any of `SUFFIXES`, or a folder `<case>` with one DICOM series,
    in the folder or one of the folders.

    Raises:
        IntakeError: none, several, or one of several channels.
    """
    if Path(case).name != case:
        raise IntakeError(Fault(case, "the case id is not a plain name", "use the file name without its ending"))
    folders = [folder] if isinstance(folder, Path) else folder
    found = [path for each in folders for suffix in SUFFIXES if (path := each / f"{case}{suffix}").is_file()]
    found += [path for each in folders for suffix in SUFFIXES if (path := each / f"{case}_0000{suffix}").is_file()]
    found += [path for each in folders if (path := each / case).is_dir()]
    if any((each / f"{case}_0001{suffix}").is_file() for each in folders for suffix in SUFFIXES):
        remedy = "keep one channel: one image per scan"
        raise IntakeError(Fault(case, f"{what} in several channels (_0000, _0001, ...)", remedy))
    if not found:
        remedy = (
            f"add <case id>.nii.gz (or .nii, .nrrd, .mha, .mhd, or a DICOM folder) to the folder of the {what}s, "
            "or take the case out of the configuration"
        )
        raise IntakeError(Fault(case, f"no {what} file", remedy))
    if len(found) > 1:
        raise IntakeError(Fault(case, f"{len(found)} {what} files or folders of this name", "keep one of them"))
    return found[0]


def sub_folders(config: Config, names: str) -> list[Path]:
    """The folders that data.images or data.labels names: one, or several separated by commas."""
    return [config.data.folder / name.strip() for name in names.split(",")]


def read_image(path: Path, case: str, what: str = "image") -> sitk.Image:
    """Read one volume from a file or a folder with a DICOM series; its header keeps only the geometry.

    Raises:
        IntakeError: unreadable, truncated, NaN or infinite voxels in a NIfTI file, or not one channel of one volume.
    """
    try:
        if path.is_dir():
            image = _read_dicom(path, case, what)
        else:
            if path.name.endswith((".nii", ".nii.gz")):
                _check_nifti(path, case, what)
            image = sitk.ReadImage(str(path))
    except (EOFError, OSError, OverflowError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        if "orthonormal" in str(error):
            remedy = "resample it to a grid without shear"
            raise IntakeError(Fault(case, f"{what} has axes that are not at right angles", remedy)) from None
        remedy = "copy or export the file again"
        raise IntakeError(Fault(case, f"{what} is unreadable or truncated", remedy)) from None
    if image.GetNumberOfComponentsPerPixel() > 1:
        channels = image.GetNumberOfComponentsPerPixel()
        raise IntakeError(Fault(case, f"{what} has {channels} channels", "keep one channel: one image per scan"))
    size = image.GetSize()
    while len(size) > 3 and size[-1] == 1:
        image = sitk.Extract(image, [*size[:-1], 0], [0] * len(size))
        size = image.GetSize()
    if len(size) > 3:
        found = f"{what} has {math.prod(size[3:])} frames, 1 expected"
        raise IntakeError(Fault(case, found, "store one frame per scan"))
    if len(size) < 3 or min(size) < 2:
        found = f"{what} has size {' x '.join(map(str, size))}, a volume expected"
        raise IntakeError(Fault(case, found, "export the whole volume"))
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def read_scan(config: Config, case: str, *, label: bool) -> Scan:
    """Read a scan of the cohort, and its label map if asked.

    Raises:
        IntakeError: anything is wrong with it; the line is its first fault.
    """
    image, label_map, faults = _read_scan(config, case, label=label)
    if faults or image is None:
        raise IntakeError(faults[0])
    return Scan(case, image, label_map)


def read_new_scan(path: Path, case: str | None = None) -> Scan:
    """Read a scan that no configuration lists: a file, or a folder with one DICOM series.

    Args:
        case: its id; by default its name.

    Raises:
        IntakeError: it is missing, or anything is wrong with it.
    """
    case = case or case_id(path)
    if not path.exists():
        raise IntakeError(Fault(case, "no such file or folder", "correct the path"))
    return Scan(case, checked_image(read_image(path, case), case), None)


def checked_image(image: sitk.Image, case: str) -> sitk.Image:
    """An image as float32.

    Raises:
        IntakeError: it is no volume of one channel with finite voxels of several values.
    """
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise IntakeError(Fault(case, "image is no volume of one channel", "give one 3D image per scan"))
    image, faults = _checked_image(image, case)
    if faults:
        raise IntakeError(faults[0])
    return image


def case_id(path: Path) -> str:
    """The name of a scan's file or folder without ending and without nnU-Net's channel `_0000`."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix).removesuffix("_0000")


def scan_faults(config: Config, case: str, *, label: bool) -> list[Fault]:
    """Everything that is wrong with a scan, and with its label map if asked."""
    return _read_scan(config, case, label=label)[2]


def cohort_faults(
    config: Config, parts: Sequence[str], *, labels: bool = True, beside: Sequence[str] = ()
) -> list[Fault]:
    """Everything that is wrong with the given parts of the split: their scans, their sizes, leaks between them.

    Args:
        parts: what is checked.
        labels: whether label maps are read at all.
        beside: parts that are only compared with the others; their scans may be faulty or missing.
    """
    if not config.data.folder.is_dir():
        return [Fault("", f"data.folder: {config.data.folder} is no folder", "correct it")]
    members = {part: config.part(part) for part in (*parts, *beside)}
    faults = []
    if not members.get("atlases", ["given"]):
        remedy = "label a typical scan (`lrls suggest-atlas` says which) and list it"
        faults.append(Fault("", "data.atlases lists no case, at least 1 is needed", remedy))
    if not members.get("unlabeled", ["given"]):
        faults.append(Fault("", "data.unlabeled lists no case, at least 1 is needed", "list scans without labels"))

    checked = {case for part in parts for case in members[part]}
    labelled = {case for part in parts if part != "unlabeled" and labels for case in members[part]}
    digests: dict[str, str] = {}  # of the images that could be read
    read_atlases: list[str] = []
    missing_structures = dict(enumerate(config.structures, start=1))
    for case in dict.fromkeys(case for cases in members.values() for case in cases):
        image, label_map, found = _read_scan(config, case, label=case in labelled)
        faults += found if case in checked else []
        if image is not None:
            digests[case] = voxel_digest(image)
        if label_map is not None and not found and case in members.get("atlases", []):
            read_atlases.append(case)
            for index in np.unique(class_indices(sitk.GetArrayViewFromImage(label_map), config, case)):
                missing_structures.pop(int(index), None)
    if read_atlases and len(read_atlases) == len(members["atlases"]):
        faults += [
            Fault("", f"structure {name} is in no atlas", "correct its value in structures, or label it in an atlas")
            for name in missing_structures.values()
        ]
    return faults + _leaks(members, digests)


def refuse(faults: Sequence[Fault]) -> None:
    """Go on if there is no fault.

    Raises:
        LrlsError: the first one, with the number of further ones.
    """
    if faults:
        more = f" ({len(faults) - 1} more: `lrls check` lists them)" if len(faults) > 1 else ""
        raise LrlsError(f"{faults[0]}{more}")


def disk_fault(folder: Path, needed_bytes: int) -> Fault | None:
    """The fault that the disk of a folder (which need not exist yet) has no room for `needed_bytes`, or None."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes <= free_bytes:
        return None
    found = f"{_size(needed_bytes)} are needed, the disk of the workspace has {_size(free_bytes)} free"
    return Fault("", found, "make room, or set workspace to a folder on another disk")


def voxel_digest(image: sitk.Image) -> str:
    """SHA-256 of size and voxels alone: finds the same image under another name or header."""
    digest = hashlib.sha256(repr(image.GetSize()).encode())
    digest.update(_bytes(image, np.float32))
    return digest.hexdigest()


def scan_digest(scan: Scan) -> str:
    """SHA-256 of a scan's voxels, geometry and, if it was read, label map: where lineage ends."""
    digest = hashlib.sha256()
    for kind, image in (("image", scan.image), ("label", scan.label)):
        if image is not None:
            geometry = (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
            digest.update(f"{kind} {geometry}".encode())
            digest.update(_bytes(image, np.float32 if kind == "image" else np.int64))
    return digest.hexdigest()


def class_indices(label_array: np.ndarray, config: Config, case: str) -> np.ndarray:
    """The user's label values as class indices: 0 background, then the structures in the order of the configuration.

    Returns:
        uint8 (uint16 for over 255 structures), the shape of `label_array`.

    Raises:
        IntakeError: a value is neither named nor background, and `others` is not "background".
    """
    values, indices = _value_table(config)
    place = np.searchsorted(values, label_array).clip(max=len(values) - 1)
    known = values[place] == label_array
    if config.others == "error" and not known.all():
        raise IntakeError(_unknown_values(case, np.unique(label_array[~known])))
    classes = indices[place]
    classes[~known] = 0
    return classes


def label_values(classes: np.ndarray, config: Config) -> np.ndarray:
    """Class indices as the user's label values; a structure of several values gets its first.

    Returns:
        The smallest unsigned integer type that holds every value of the table; signed if one is negative.
    """
    table = [0, *(values[0] for values in config.structure_values().values())]
    if min(table) < 0:
        dtype = np.promote_types(np.int32, np.promote_types(*(np.min_scalar_type(f(table)) for f in (min, max))))
    else:
        dtype = np.min_scalar_type(max(table))
    return np.array(table, dtype=dtype)[classes]


def _value_table(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """All known label values, sorted, and the class index of each."""
    index_of = {0: 0}
    for index, values in enumerate(config.structure_values().values(), start=1):
        index_of |= dict.fromkeys(values, index)
    dtype = np.uint8 if len(config.structures) <= 255 else np.uint16
    return np.array(sorted(index_of)), np.array([index_of[value] for value in sorted(index_of)], dtype=dtype)


def _read_scan(config: Config, case: str, *, label: bool) -> tuple[sitk.Image | None, sitk.Image | None, list[Fault]]:
    """Image (float32) and label map (integers) as far as they can be read, and all their faults."""
    image: sitk.Image | None = None
    label_map: sitk.Image | None = None
    faults: list[Fault] = []
    try:
        image = read_image(find_file(sub_folders(config, config.data.images), case, "image"), case, "image")
        image, faults = _checked_image(image, case)
    except IntakeError as error:
        faults = [error.fault]
    if label:
        try:
            path = find_file(sub_folders(config, config.data.labels), case, "label map")
            label_map = read_image(path, case, "label map")
            if image is not None:
                faults += _geometry_faults(image, label_map, case)
            label_map, found = _checked_label(label_map, config, case)
            faults += found
        except IntakeError as error:
            faults.append(error.fault)
    return image, label_map, faults


def dicom_files(folder: Path, case: str, what: str = "image") -> Sequence[str]:
    """The files of a folder's one DICOM series, in the order of its slices.

    Raises:
        IntakeError: none or several series.
    """
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = f"{what} folder holds {len(series)} DICOM series, 1 expected"
        raise IntakeError(Fault(case, found, "keep the files of one series in it"))
    return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])


def _read_dicom(folder: Path, case: str, what: str) -> sitk.Image:
    files = dicom_files(folder, case, what)
    if len(files) == 1:
        return sitk.ReadImage(files[0])
    origins = []
    reader = sitk.ImageFileReader()
    for file in files:
        reader.SetFileName(file)
        reader.ReadImageInformation()
        origins.append(reader.GetOrigin())
    steps_mm = np.linalg.norm(np.diff(np.array(origins), axis=0), axis=1)
    if np.ptp(steps_mm) > 0.1 * np.median(steps_mm):
        found = f"{what} has slices {steps_mm.min():.3g} to {steps_mm.max():.3g} mm apart"
        raise IntakeError(Fault(case, found, "export the series again with all its slices"))
    return sitk.ReadImage(files)


def _check_nifti(path: Path, case: str, what: str) -> None:
    """Look at what ITK passes over: it reads the missing half of a file as zeros, and NaN and infinity as 0.

    Raises:
        IntakeError: voxels are not finite.
        EOFError, OSError, ValueError, OverflowError, struct.error, zlib.error: the file is damaged or ends too early.
    """
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        header = file.read(352)
        order = "<" if struct.unpack_from("<i", header)[0] in (348, 540) else ">"
        (header_size,) = struct.unpack_from(f"{order}i", header)
        if header_size == 348:
            dim = struct.unpack_from(f"{order}8h", header, 40)
            datatype, bits = struct.unpack_from(f"{order}2h", header, 70)
            offset = int(struct.unpack_from(f"{order}f", header, 108)[0])
        elif header_size == 540:  # NIfTI-2
            datatype, bits = struct.unpack_from(f"{order}2h", header, 12)
            dim = struct.unpack_from(f"{order}8q", header, 16)
            offset = struct.unpack_from(f"{order}q", header, 168)[0]
        else:
            raise ValueError("no NIfTI header")
        file.seek(offset)
        dtype = {16: np.dtype(f"{order}f4"), 64: np.dtype(f"{order}f8")}.get(datatype)
        missing_bytes = math.prod(dim[1 : dim[0] + 1]) * bits // 8
        num_nan = num_infinite = 0
        while chunk := file.read(1 << 22):
            if dtype is not None and missing_bytes > 0:
                voxels = np.frombuffer(chunk, dtype, count=min(len(chunk), missing_bytes) // dtype.itemsize)
                num_nan += int(np.isnan(voxels).sum())
                num_infinite += int(np.isinf(voxels).sum())
            missing_bytes -= len(chunk)
    if missing_bytes > 0:
        raise EOFError
    if num_nan or num_infinite:
        raise IntakeError(_not_finite(case, what, num_nan, num_infinite))


def _checked_image(image: sitk.Image, case: str) -> tuple[sitk.Image, list[Fault]]:
    """The image as float32, and its faults."""
    image = sitk.Cast(image, sitk.sitkFloat32)
    voxels = sitk.GetArrayViewFromImage(image)
    if not np.isfinite(voxels).all():
        return image, [_not_finite(case, "image", int(np.isnan(voxels).sum()), int(np.isinf(voxels).sum()))]
    low, high = voxels.min(), voxels.max()
    if low == high:
        found = "image is empty (every voxel is 0)" if low == 0 else f"image is constant (every voxel is {low:g})"
        return image, [Fault(case, found, "export the scan again or take the case out of the configuration")]
    return image, []


def _checked_label(label: sitk.Image, config: Config, case: str) -> tuple[sitk.Image, list[Fault]]:
    """The label map as integers, and its faults."""
    voxels = sitk.GetArrayViewFromImage(label)
    if np.issubdtype(voxels.dtype, np.floating):
        if not np.isfinite(voxels).all():
            return label, [_not_finite(case, "label map", int(np.isnan(voxels).sum()), int(np.isinf(voxels).sum()))]
        uneven = voxels[voxels != np.round(voxels)]
        if uneven.size:
            found = f"label map has values that are no integers ({_listed(np.unique(uneven))})"
            return label, [Fault(case, found, "resample label maps with nearest neighbour and save them as integers")]
        label = sitk.Cast(label, sitk.sitkInt64 if np.abs(voxels).max() > 2**31 - 1 else sitk.sitkInt32)
        voxels = sitk.GetArrayViewFromImage(label)
    try:
        classes = class_indices(voxels, config, case)
    except IntakeError as error:
        return label, [error.fault]
    if case in config.part("atlases") and not classes.any():
        found = "atlas has none of the configuration's structures"
        return label, [Fault(case, found, "correct the values in structures, or choose another atlas")]
    return label, []


def _geometry_faults(image: sitk.Image, label: sitk.Image, case: str) -> list[Fault]:
    faults = []
    resample = "resample the label or fix its header"
    if image.GetSize() != label.GetSize():
        found = f"label size {label.GetSize()} voxels, image size {image.GetSize()} voxels"
        faults.append(Fault(case, found, "resample the label to the image's grid"))
    for what, of_label, of_image in (
        ("spacing", label.GetSpacing(), image.GetSpacing()),
        ("origin", label.GetOrigin(), image.GetOrigin()),
    ):
        if not np.allclose(of_label, of_image, rtol=0, atol=GEOMETRY_TOLERANCE):
            found = f"label {what} {_rounded(of_label)} mm, image {what} {_rounded(of_image)} mm"
            faults.append(Fault(case, found, resample))
    if not np.allclose(label.GetDirection(), image.GetDirection(), rtol=0, atol=GEOMETRY_TOLERANCE):
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
        of_label, of_image = code(label.GetDirection()), code(image.GetDirection())
        if of_label != of_image:
            found = f"label direction {of_label}, image direction {of_image}"
        else:
            turn = np.reshape(label.GetDirection(), (3, 3)).T @ np.reshape(image.GetDirection(), (3, 3))
            degrees = math.degrees(math.acos(min(1.0, (np.trace(turn) - 1) / 2)))
            found = f"label direction {degrees:.2g} degrees away from the image direction"
        faults.append(Fault(case, found, resample))
    return faults


def _leaks(members: dict[str, list[str]], digests: dict[str, str]) -> list[Fault]:
    """Cases in two parts that must be apart, and images that training and held-out parts share under two names."""
    faults = [
        Fault(case, "listed in data.atlases and data.unlabeled", "keep it in one of them")
        for case in members.get("atlases", [])
        if case in members.get("unlabeled", [])
    ]
    training = {case: part for part in TRAINING for case in members.get(part, [])}
    held_out = {case: part for part in HELD_OUT for case in members.get(part, [])}
    trained_voxels = {digests[case]: case for case in training if case in digests}
    for case, part in held_out.items():
        if case in training:
            found = f"listed in data.{training[case]} and data.{part}"
            faults.append(Fault(case, found, "keep what is trained on and what is scored apart"))
        elif twin := trained_voxels.get(digests.get(case, "")):
            found = f"same image as case {twin}, which data.{training[twin]} trains on, and data.{part} scores this one"
            faults.append(Fault(case, found, "take one of the two out of the configuration"))
    return faults


def _unknown_values(case: str, values: np.ndarray) -> Fault:
    found = f"label value{'s' if len(values) > 1 else ''} {_listed(values)} not named in structures"
    return Fault(case, found, "name them there, or set others: background")


def _not_finite(case: str, what: str, num_nan: int, num_infinite: int) -> Fault:
    counts = (("NaN", num_nan), ("infinite", num_infinite))
    found = " and ".join(f"{count} {name} voxel{'s' if count > 1 else ''}" for name, count in counts if count)
    return Fault(case, f"{what} has {found}", "replace these voxels by 0 or export it again")


def _bytes(image: sitk.Image, dtype: type) -> bytes:
    array: np.ndarray = sitk.GetArrayViewFromImage(image).astype(dtype)
    array += 0  # -0.0 and 0.0 are the same voxel
    return array.tobytes()


def _listed(values: np.ndarray, most: int = 5) -> str:
    text = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values[:most].tolist())
    return f"{text}, ... ({len(values)} in all)" if len(values) > most else text


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def _size(num_bytes: int) -> str:
    power = min(4, int(math.log10(max(num_bytes, 1)) // 3))
    return f"{num_bytes / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
