"""Reading users' scans: finding files, checking headers, decoding voxels.

Only `read_voxels` decodes voxels. Each fault is reported in one line (`faults`).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stages.config import PARTS, Config
from stages.data.channels import channel_files, channel_grid_faults, new_channels, of_channel
from stages.data.dicom_files import is_dicom
from stages.data.faults import Fault, IntakeError, not_finite
from stages.data.geometry import MOST_SHEAR, Geometry, geometry_faults, geometry_of
from stages.data.labels import as_integers, classes_of
from stages.data.neutral import SUFFIXES, ending_of, files_named, muted, under_neutral_name
from stages.data.nifti import HEADER_BYTES, check_nifti, head_of, parse_nifti
from stages.data.segments import KEPT, as_label_map, with_own_values
from stages.data.text_headers import check_text_header
from stages.errors import LrlsError

# Users see one line per fault from us. ITK's own warnings quote paths, and tell of headers that it repaired, which
# are refused before it sees them.
sitk.ProcessObject.SetGlobalWarningDisplay(False)

APART = "keep one, or store each in a file of its own (<case>_0000, <case>_0001, ...)"
ONE_FRAME = "store one frame per scan, or channels in files of their own (<case>_0000, <case>_0001, ...)"
UNREADABLE = (EOFError, OSError, OverflowError, RuntimeError, ValueError, struct.error, zlib.error)


@dataclass(frozen=True)
class Scan:
    """A scan as it is stored: float32 image and, where asked for, integer label map, in their own geometry."""

    case: str
    image: sitk.Image
    label: sitk.Image | None


def find_file(folder: Path | Sequence[Path], case: str, kind: str) -> Path:
    """The file (or DICOM folder) of a case; `kind` ("image" or "label map") is for the message.

    Accepts `<case>` and nnU-Net's `<case>_0000` with any of `SUFFIXES`, of label maps `<case>.seg`, too, or a folder
    `<case>` with one DICOM series, in the folder or one of the folders.

    Raises:
        IntakeError: there is no such file, or several of them.
    """
    if Path(case).name != case:
        raise IntakeError(
            Fault(case, "the case id is not a plain name", "use the file name without its ending", "case-id")
        )
    folders = [folder] if isinstance(folder, Path) else folder
    paths = [path for parent in folders for path in files_named(parent, case)]
    paths += [path for parent in folders for path in files_named(parent, f"{case}_0000")]
    if kind == "label map":
        paths += [path for parent in folders for path in files_named(parent, f"{case}.seg")]
    paths += [path for parent in folders if (path := parent / case).is_dir()]
    if not paths:
        for suffix in SUFFIXES:
            if case.endswith(suffix) and any((parent / case).exists() for parent in folders):
                found = f"no {kind} file; the id ends with {suffix}, as its file does"
                raise IntakeError(
                    Fault(case, found, f"leave the ending out: the case id is {case.removesuffix(suffix)}", "case-id")
                )
        remedy = (
            f"add <case id>.nii.gz (or .nii, .nrrd, .mha, .mhd, or a DICOM folder) to the folder of the {kind}s, "
            "or take the case out of the configuration"
        )
        raise IntakeError(Fault(case, f"no {kind} file", remedy, "no-file"))
    if len(paths) > 1:
        found = f"{len(paths)} {kind} files or folders of this name"
        raise IntakeError(Fault(case, found, "keep one of them", "several-files"))
    return paths[0]


def sub_folders(config: Config, names: str) -> list[Path]:
    """The folders that data.images or data.labels names: one, or several separated by commas."""
    return [config.data.folder / name.strip() for name in names.split(",")]


def image_files(config: Config, case: str) -> list[Path]:
    """The images of a case of the cohort, its channels in order; raises as `find_file` and `channel_files`."""
    if listed := _listed_files(config, case, 0, "image"):
        return listed
    images, labels = (sub_folders(config, names) for names in (config.data.images, config.data.labels))

    def is_a_case(name: str) -> bool:
        has_label = any(files_named(folder, name) for folder in labels if folder not in images)
        return has_label or any(name in config.part(part) for part in PARTS)

    return channel_files(images, case, is_a_case) or [find_file(images, case, "image")]


def image_file(config: Config, case: str) -> Path:
    """The image of a case of the cohort, the first one of several; raises as `image_files`."""
    return image_files(config, case)[0]


def label_file(config: Config, case: str) -> Path:
    """The label map of a case of the cohort, the corrected one if there is one; raises as `find_file`."""
    if config.review and (corrected := config.review.labels.get(case)):
        if not corrected.exists():
            remedy = f"put it back where {config.review.file.name} names it, or write the review anew"
            raise IntakeError(Fault(case, "its corrected label map is gone", remedy, "no-file"))
        return corrected
    if listed := _listed_files(config, case, 1, "label map"):
        return listed[0]
    return find_file(sub_folders(config, config.data.labels), case, "label map")


def _listed_files(config: Config, case: str, place: int, kind: str) -> list[Path] | None:
    """The files that data.files lists for a case in a place; None: it lists none."""
    if case not in config.data.files:
        return None
    entry = config.data.files[case][place : place + 1]
    paths = [config.data.folder / name for given in entry for name in (given if isinstance(given, list) else [given])]
    for channel, path in enumerate(paths or [None]):
        if path is None or not path.exists():
            remedy = f"correct data.files.{case}: [image, label map], or take the case out of the configuration"
            fault = Fault(case, f"no {kind} file", remedy, "no-file")
            raise IntakeError(of_channel(fault, channel, len(paths) or 1))
    return paths


def first_channels(config: Config) -> tuple[str, int] | None:
    """The first atlas and how many channels it has, which is how many all scans need; None: it is not known."""
    try:
        case = config.part("atlases")[0]
        return case, len(image_files(config, case))
    except (LrlsError, IndexError, OSError):
        return None  # whoever needs atlases, or folders that can be read, reports it


def read_voxels(path: Path, data_file: Path | None = None) -> sitk.Image:
    """Decode a volume in one file, whose header was checked. No other function decodes a scan; `read_dicom` DICOM.

    Args:
        data_file: that holds the voxels, if its header names one.
    """
    with under_neutral_name(path, data_file) as neutral, muted():
        return sitk.ReadImage(str(neutral))


def read_image(path: Path, case: str, kind: str = "image") -> sitk.Image:
    """Read one volume: a file, or a folder with a DICOM series. Its header keeps only the geometry.

    Raises:
        IntakeError: the file is unreadable or truncated, its header contradicts itself or lacks the geometry, it does
            not hold exactly one volume of one channel, or it is a NIfTI file with NaN or infinite voxels.
    """
    try:
        if path.is_dir() or (not ending_of(path) and is_dicom(path)):
            from stages.data.dicom import read_dicom  # most scans need not wait for pydicom

            image = read_dicom(path, case, kind)
        else:
            image = _read_file(path, case, kind)
    except MemoryError:
        raise IntakeError(_too_big(case, kind)) from None
    except PermissionError:
        remedy = "give yourself permission to read it (chmod), or copy it"
        raise IntakeError(Fault(case, f"no permission to read its {kind}", remedy, "permission")) from None
    except UNREADABLE as error:
        if "orthonormal" in str(error):
            remedy = "resample it to a grid without shear"
            raise IntakeError(Fault(case, f"{kind} has axes that are not at right angles", remedy, "shear")) from None
        if "allocat" in str(error):
            raise IntakeError(_too_big(case, kind)) from None
        remedy = "copy or export the file again"
        raise IntakeError(Fault(case, f"{kind} is unreadable or truncated", remedy, "unreadable")) from None
    if image.GetNumberOfComponentsPerPixel() > 1:
        channels = image.GetNumberOfComponentsPerPixel()
        raise IntakeError(Fault(case, f"{kind} has {channels} channels in one file", APART, "channels"))
    if "complex" in image.GetPixelIDTypeAsString():
        problem = f"{kind} has complex values, plain numbers expected"
        raise IntakeError(Fault(case, problem, "save its magnitude", "voxel-type"))
    size = image.GetSize()
    while len(size) > 3 and size[-1] == 1:
        image = sitk.Extract(image, [*size[:-1], 0], [0] * len(size))
        size = image.GetSize()
    if len(size) > 3:
        problem = f"{kind} has {math.prod(size[3:])} frames, 1 expected"
        raise IntakeError(Fault(case, problem, ONE_FRAME, "frames"))
    if len(size) < 3 or min(size) < 2:
        problem = f"{kind} has size {' x '.join(map(str, size))}, a volume expected"
        raise IntakeError(Fault(case, problem, "export the whole volume", "not-a-volume"))
    if fault := _impossible_geometry(image, case, kind):
        raise IntakeError(fault)
    for key in image.GetMetaDataKeys():
        if key != KEPT or kind != "label map":
            image.EraseMetaData(key)
    return image


def _read_file(path: Path, case: str, kind: str) -> sitk.Image:
    ending = ending_of(path)
    if not ending or not path.is_file():
        problem = f"{kind} is no file of a kind that is read ({', '.join(SUFFIXES)})"
        remedy = "convert it to NIfTI, or name the folder of its DICOM series"
        raise IntakeError(Fault(case, problem, remedy, "format"))
    if ending in (".nii", ".nii.gz"):
        check_nifti(path, case, kind)  # whose unit ITK knows
        return read_voxels(path)
    header = check_text_header(path, case, kind)
    image = read_voxels(path, header.data_file)
    image.SetSpacing([header.unit_mm * length for length in image.GetSpacing()])
    image.SetOrigin([header.unit_mm * length for length in image.GetOrigin()])
    return as_label_map(image, case) if kind == "label map" and ending == ".nrrd" else image


def header_geometry(path: Path, case: str, kind: str = "image") -> Geometry | None:
    """The geometry in a file's header, read without voxels; None: not a plain volume, decoding it reports why.

    Raises:
        IntakeError: the header contradicts itself or lacks the geometry.
    """
    data_file, unit_mm = None, 1.0
    try:
        if path.is_dir() or not ending_of(path):
            return None
        if ending_of(path) in (".nii", ".nii.gz"):
            parse_nifti(head_of(path, HEADER_BYTES), case, kind)
        else:
            header = check_text_header(path, case, kind)
            data_file, unit_mm = header.data_file, header.unit_mm
        reader = sitk.ImageFileReader()
        with under_neutral_name(path, data_file) as neutral, muted():
            reader.SetFileName(str(neutral))
            reader.ReadImageInformation()
    except UNREADABLE:
        return None
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        return None
    size = tuple(int(n) for n in reader.GetSize())
    spacing, origin = (tuple(unit_mm * length for length in of) for of in (reader.GetSpacing(), reader.GetOrigin()))
    return Geometry(size, spacing, origin, reader.GetDirection())


def _impossible_geometry(image: sitk.Image, case: str, kind: str) -> Fault | None:
    """What no scanner says of a volume (x, y, z), whatever the format."""
    numbers = (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())
    if not np.isfinite(numbers).all() or min(image.GetSpacing()) <= 0:
        return Fault(
            case, f"{kind} has an impossible geometry in its header", "correct it or export it again", "header"
        )
    axes = np.reshape(image.GetDirection(), (3, 3))
    if np.abs(axes.T @ axes - np.eye(3)).max() > MOST_SHEAR:
        problem = f"{kind} has axes that are not at right angles"
        return Fault(case, problem, "resample it to a grid without shear", "shear")
    return None


def _too_big(case: str, kind: str) -> Fault:
    return Fault(case, f"{kind} does not fit into memory", "crop it, or close other programs", "memory")


def read_scan(config: Config, case: str, *, label: bool) -> Scan:
    """Read a scan of the cohort, its first channel of several, and its label map if asked.

    Raises:
        IntakeError: the scan is faulty; the error is its first fault.
    """
    image = checked_image(read_image(image_file(config, case), case), case)
    if not label:
        return Scan(case, image, None)
    label_map = read_image(label_file(config, case), case, "label map")
    for fault in geometry_faults(geometry_of(image), geometry_of(label_map), case):
        raise IntakeError(fault)
    label_map = with_own_values(as_integers(label_map, case), config, case)
    classes = classes_of(label_map, config, case)
    if not classes.any() and case in config.part("atlases"):
        raise IntakeError(no_structures(case))
    return Scan(case, image, label_map)


def read_label(config: Config, case: str) -> sitk.Image:
    """Read a label map of the cohort as integers.

    Raises:
        IntakeError: there is no label map, it cannot be read, or its values are not integers.
    """
    return with_own_values(as_integers(read_image(label_file(config, case), case, "label map"), case), config, case)


def no_structures(case: str) -> Fault:
    problem = "atlas has none of the configuration's structures"
    return Fault(case, problem, "correct the values in structures, or choose another atlas", "no-structures")


def read_new_scan(path: Path, case: str | None = None) -> Scan:
    """Read a scan that no configuration lists: a file, or a folder with one DICOM series.

    Args:
        case: its id; by default its name.

    Raises:
        IntakeError: the scan is missing or faulty.
    """
    case = case or case_id(path)
    if not path.exists():
        raise IntakeError(_missing(case))
    return Scan(case, checked_image(read_image(path, case), case), None)


def _missing(case: str) -> Fault:
    return Fault(case, "no such file or folder", "correct the path", "no-file")


def read_new_channels(path: Path, case: str, number: int, names: Sequence[str] = ()) -> list[sitk.Image]:
    """Read all channels of a scan that no configuration lists; see `new_channels`.

    Raises:
        IntakeError: the scan is missing or faulty, or its channels are not as many or not on one grid.
    """
    if not path.exists():
        raise IntakeError(_missing(case))
    images = []
    for channel, file in enumerate(new_channels(path, case, number, names)):
        try:
            images.append(read_new_scan(file, case).image)
        except IntakeError as error:
            raise IntakeError(of_channel(error.fault, channel, number)) from None
    for fault in channel_grid_faults([geometry_of(image) for image in images], case):
        raise IntakeError(fault)
    return images


def checked_image(image: sitk.Image, case: str) -> sitk.Image:
    """An image as float32.

    Raises:
        IntakeError: the image is not a volume of one channel, has voxels that are not finite, or is constant.
    """
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        remedy = "give one 3D image per scan"
        raise IntakeError(Fault(case, "image is not a volume of one channel", remedy, "not-a-volume"))
    image = sitk.Cast(image, sitk.sitkFloat32)
    if fault := voxel_fault(image, case):
        raise IntakeError(fault)
    return image


def voxel_fault(image: sitk.Image, case: str) -> Fault | None:
    """The fault of a float32 image's voxels, if any: not finite, or constant."""
    voxels = sitk.GetArrayViewFromImage(image)
    low, high = voxels.min(), voxels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        return not_finite(case, "image", int(np.isnan(voxels).sum()), int(np.isinf(voxels).sum()))
    if low == high:
        problem = "image is empty (every voxel is 0)" if low == 0 else f"image is constant (every voxel is {low:g})"
        return Fault(case, problem, "export the scan again or take the case out of the configuration", "constant")
    return None


def case_id(path: Path) -> str:
    """The name of a scan's file or folder without ending and without nnU-Net's channel `_0000`."""
    ending = ending_of(path) or (path.suffix if path.suffix.lower() == ".dcm" else "")
    return path.name[: len(path.name) - len(ending)].removesuffix("_0000")
