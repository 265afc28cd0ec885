"""Reading users' scans: finding files, checking headers, decoding voxels.

Only `read_voxels` decodes voxels. Each fault is reported in one line (`faults`).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stages.config import Config
from stages.data.faults import Fault, IntakeError, not_finite
from stages.data.geometry import geometry_faults, geometry_of
from stages.data.labels import as_integers, classes_of

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")

# Users see one line per fault from us; ITK's own warnings quote paths.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


@dataclass(frozen=True)
class Scan:
    """A scan as it is stored: float32 image and, where asked for, integer label map, in their own geometry."""

    case: str
    image: sitk.Image
    label: sitk.Image | None


def find_file(folder: Path | Sequence[Path], case: str, kind: str) -> Path:
    """The file (or DICOM folder) of a case; `kind` ("image" or "label map") is for the message.

    Accepts `<case>` and nnU-Net's `<case>_0000` with any of `SUFFIXES`, or a folder `<case>` with one DICOM series,
    in the folder or one of the folders.

    Raises:
        IntakeError: there is no such file, several of them, or one per channel.
    """
    if Path(case).name != case:
        raise IntakeError(
            Fault(case, "the case id is not a plain name", "use the file name without its ending", "case-id")
        )
    folders = [folder] if isinstance(folder, Path) else folder
    paths = [path for parent in folders for suffix in SUFFIXES if (path := parent / f"{case}{suffix}").is_file()]
    paths += [path for parent in folders for suffix in SUFFIXES if (path := parent / f"{case}_0000{suffix}").is_file()]
    paths += [path for parent in folders if (path := parent / case).is_dir()]
    if any((parent / f"{case}_0001{suffix}").is_file() for parent in folders for suffix in SUFFIXES):
        remedy = "keep one channel: one image per scan"
        raise IntakeError(Fault(case, f"{kind} in several channels (_0000, _0001, ...)", remedy, "channels"))
    if not paths:
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


def image_file(config: Config, case: str) -> Path:
    """The image of a case of the cohort; raises as `find_file`."""
    return _listed_file(config, case, 0, "image") or find_file(sub_folders(config, config.data.images), case, "image")


def label_file(config: Config, case: str) -> Path:
    """The label map of a case of the cohort; raises as `find_file`."""
    return _listed_file(config, case, 1, "label map") or find_file(
        sub_folders(config, config.data.labels), case, "label map"
    )


def _listed_file(config: Config, case: str, place: int, kind: str) -> Path | None:
    """The file that data.files lists for a case; None: it lists none."""
    if case not in config.data.files:
        return None
    listed = config.data.files[case]
    if len(listed) <= place or not (path := config.data.folder / listed[place]).exists():
        remedy = f"correct data.files.{case}: [image, label map], or take the case out of the configuration"
        raise IntakeError(Fault(case, f"no {kind} file", remedy, "no-file"))
    return path


def read_voxels(files: str | Sequence[str]) -> sitk.Image:
    """Decode a volume: one file, or the slices of a series in order. No other function decodes a scan."""
    return sitk.ReadImage(files)


def read_image(path: Path, case: str, kind: str = "image") -> sitk.Image:
    """Read one volume from a file or a folder with a DICOM series; its header keeps only the geometry.

    Raises:
        IntakeError: the file is unreadable or truncated, does not hold exactly one volume of one channel, or is a NIfTI
            file with NaN or infinite voxels.
    """
    try:
        if path.is_dir():
            image = _read_dicom(path, case, kind)
        else:
            if path.name.endswith((".nii", ".nii.gz")):
                _check_nifti(path, case, kind)
            image = read_voxels(str(path))
    except (EOFError, OSError, OverflowError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        if "orthonormal" in str(error):
            remedy = "resample it to a grid without shear"
            raise IntakeError(Fault(case, f"{kind} has axes that are not at right angles", remedy, "shear")) from None
        remedy = "copy or export the file again"
        raise IntakeError(Fault(case, f"{kind} is unreadable or truncated", remedy, "unreadable")) from None
    if image.GetNumberOfComponentsPerPixel() > 1:
        channels = image.GetNumberOfComponentsPerPixel()
        remedy = "keep one channel: one image per scan"
        raise IntakeError(Fault(case, f"{kind} has {channels} channels", remedy, "channels"))
    size = image.GetSize()
    while len(size) > 3 and size[-1] == 1:
        image = sitk.Extract(image, [*size[:-1], 0], [0] * len(size))
        size = image.GetSize()
    if len(size) > 3:
        problem = f"{kind} has {math.prod(size[3:])} frames, 1 expected"
        raise IntakeError(Fault(case, problem, "store one frame per scan", "frames"))
    if len(size) < 3 or min(size) < 2:
        problem = f"{kind} has size {' x '.join(map(str, size))}, a volume expected"
        raise IntakeError(Fault(case, problem, "export the whole volume", "not-a-volume"))
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def read_scan(config: Config, case: str, *, label: bool) -> Scan:
    """Read a scan of the cohort, and its label map if asked.

    Raises:
        IntakeError: the scan is faulty; the error is its first fault.
    """
    image = checked_image(read_image(image_file(config, case), case), case)
    if not label:
        return Scan(case, image, None)
    label_map = read_image(label_file(config, case), case, "label map")
    for fault in geometry_faults(geometry_of(image), geometry_of(label_map), case):
        raise IntakeError(fault)
    label_map = as_integers(label_map, case)
    classes = classes_of(label_map, config, case)
    if not classes.any() and case in config.part("atlases"):
        raise IntakeError(no_structures(case))
    return Scan(case, image, label_map)


def read_label(config: Config, case: str) -> sitk.Image:
    """Read a label map of the cohort as integers.

    Raises:
        IntakeError: there is no label map, it cannot be read, or its values are not integers.
    """
    return as_integers(read_image(label_file(config, case), case, "label map"), case)


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
        raise IntakeError(Fault(case, "no such file or folder", "correct the path", "no-file"))
    return Scan(case, checked_image(read_image(path, case), case), None)


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
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix).removesuffix("_0000")


def dicom_files(folder: Path, case: str, kind: str = "image") -> Sequence[str]:
    """The files of a folder's one DICOM series, in the order of its slices.

    Raises:
        IntakeError: the folder holds no series, or several.
    """
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        problem = f"{kind} folder holds {len(series)} DICOM series, 1 expected"
        raise IntakeError(Fault(case, problem, "keep the files of one series in it", "dicom-series"))
    return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])


def _read_dicom(folder: Path, case: str, kind: str) -> sitk.Image:
    files = dicom_files(folder, case, kind)
    if len(files) == 1:
        return read_voxels(files[0])
    origins = []
    reader = sitk.ImageFileReader()
    for file in files:
        reader.SetFileName(file)
        reader.ReadImageInformation()
        origins.append(reader.GetOrigin())
    steps_mm = np.linalg.norm(np.diff(np.array(origins), axis=0), axis=1)
    if np.ptp(steps_mm) > 0.1 * np.median(steps_mm):
        problem = f"{kind} has slices {steps_mm.min():.3g} to {steps_mm.max():.3g} mm apart"
        raise IntakeError(Fault(case, problem, "export the series again with all its slices", "dicom-slices"))
    return read_voxels(files)


def _check_nifti(path: Path, case: str, kind: str) -> None:
    """Check what ITK ignores: it reads the missing end of a file as zeros, and NaN and infinity as 0.

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
        raise IntakeError(not_finite(case, kind, num_nan, num_infinite))
