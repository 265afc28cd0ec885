"""Label maps in the formats of other tools: NIfTI, label tables for ITK-SNAP and 3D Slicer."""

from __future__ import annotations

import errno
import gzip
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.artifacts.files import atomic_write_text, fsync, is_disk_full, rename
from stages.data.neutral import ending_of
from stages.data.nifti import NIFTI_BYTES, nifti_header, with_geometry_of
from stages.data.slabs import slabs
from stages.errors import LrlsError
from stages.parts.colors import class_color

TEMPORARY = ".lrls-tmp-"  # begins the names of files that are being written
NIFTI_DATA_AT = 352  # where ITK writes the first voxel of a NIfTI file
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets run cells that begin so

SNAP_HEADER = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Where:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    MSH:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
"""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a hidden temporary path, then rename that file to `path`: it appears in full or not at all.

    The temporary name has the ending and nothing else of the name, which writers may read as something else.

    Raises:
        LrlsError: the file cannot be written.
    """
    token = secrets.token_hex(8)  # process numbers of two machines may be the same
    temporary = path.with_name(f"{TEMPORARY}{token}{ending_of(path) or path.suffix}")
    try:
        write(temporary)
        fsync(temporary)
        rename(temporary, path)
    except (OSError, RuntimeError) as error:  # ITK's messages quote the hidden name
        why = "there is no room on the disk" if is_disk_full(error) else "no permission, or no room on the disk"
        raise LrlsError(f"{path} cannot be written ({why}); free some, or name another folder.") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what `write_whole` left in a folder when the process was killed."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            leftover.unlink()


def write_by_itk(image: sitk.Image, path: Path, *, level: int = -1) -> None:
    """Let ITK write a compressed image; a plain one where the name ends in .nii.

    ITK passes over what the system refuses its NIfTI writer, such as room on a full disk, so the bytes are counted.

    Args:
        level: of the compression; -1: ITK's own.

    Raises:
        OSError, RuntimeError: the file is not whole.
    """
    sitk.WriteImage(image, str(path), useCompression=ending_of(path) != ".nii", compressionLevel=level)
    if ending_of(path) not in (".nii", ".nii.gz"):
        return
    voxel_bytes = image.GetSizeOfPixelComponent() * image.GetNumberOfComponentsPerPixel()
    left = NIFTI_DATA_AT + image.GetNumberOfPixels() * voxel_bytes
    try:
        with gzip.open(path) if ending_of(path) == ".nii.gz" else path.open("rb") as file:
            while left >= 0 and (piece := file.read(1 << 20)):  # behind the last one stands a checksum of packed files
                left -= len(piece)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        left = 1
    if left:
        raise OSError(errno.EIO, "only a part was written; look whether the disk is full")


def write_image(image: sitk.Image, path: Path, *, like: Path | None = None) -> None:
    """Write a compressed image, in full or not at all.

    Args:
        path: ends in .nii.gz, .nrrd or .mha.
        like: the scan on whose voxels the image lies; of a NIfTI file, the numbers of the geometry are copied to NIfTI.

    Raises:
        LrlsError: the file cannot be written.
    """
    header = nifti_header(like) if like and path.name.endswith(".nii.gz") else None
    if header is None:
        write_whole(path, lambda temporary: write_by_itk(image, temporary))
        return

    def write(temporary: Path) -> None:
        plain = temporary.with_suffix("")  # .nii
        try:
            write_by_itk(image, plain)
            with (
                plain.open("rb") as file,
                temporary.open("wb") as raw,  # neither name nor time inside: the same label map is the same file
                gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
            ):
                packed.write(with_geometry_of(header, file.read(NIFTI_BYTES)))
                shutil.copyfileobj(file, packed, 1 << 20)
        finally:
            plain.unlink(missing_ok=True)

    write_whole(path, write)


def write_label_tables(structures: Mapping[str, int], folder: Path, colours: Sequence[str] = ()) -> None:
    """`labels.txt` for ITK-SNAP (Segmentation > Import label descriptions) and `labels.ctbl` for 3D Slicer.

    Args:
        structures: value of each structure, in the order of classes.
        colours: of them, "#rrggbb"; by default those of `colours_of`.
    """
    colours = colours or colours_of(structures, {})
    snap, slicer = [(0, (0, 0, 0), "Clear Label")], [(0, (0, 0, 0), "background")]
    for (name, value), hex_colour in zip(structures.items(), colours, strict=True):
        colour, name = _bytes_of(hex_colour), one_line(name)
        snap.append((value, colour, name.replace('"', "'")))
        slicer.append((value, colour, re.sub(r"\s+", "_", name)))
    lines = [
        f'{value:5d} {r:5d} {g:4d} {b:4d} {int(value != 0):8d} {int(value != 0):2d} {int(value != 0):2d}    "{name}"'
        for value, (r, g, b), name in sorted(snap)
    ]
    atomic_write_text(folder / "labels.txt", SNAP_HEADER + "\n".join(lines) + "\n")
    lines = [f"{value} {name} {r} {g} {b} {255 * int(value != 0)}" for value, (r, g, b), name in sorted(slicer)]
    head = f"# Color table file labels.ctbl\n# {len(lines)} values\n"
    atomic_write_text(folder / "labels.ctbl", head + "\n".join(lines) + "\n")


def colours_of(structures: Iterable[str], chosen: Mapping[str, str]) -> list[str]:
    """The colour of each structure as "#rrggbb": the one that was chosen, or that of its class."""
    from matplotlib.colors import to_hex  # workers that read scans need nothing of this file that waits for it

    return [chosen.get(name, to_hex(class_color(index))).lower() for index, name in enumerate(structures, start=1)]


def _bytes_of(colour: str) -> tuple[int, int, int]:
    r, g, b = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return r, g, b


def volumes_ml(classes: np.ndarray, structures: Sequence[str], spacing_mm: Sequence[float]) -> dict[str, float]:
    """Volume of each structure in ml, by counting voxels."""
    number = len(structures) + 1
    counts = np.sum([np.bincount(classes[slab].ravel(), minlength=number) for slab in slabs(classes)], axis=0)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return {name: float(counts[index]) * voxel_ml for index, name in enumerate(structures, start=1)}


def csv_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Rows as CSV. Texts that a spreadsheet would run as formulas get an apostrophe in front.

    Args:
        columns: of a table that may have no rows.
    """
    import pandas as pd

    def inert(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value

    inert_rows = [{inert(key): inert(value) for key, value in row.items()} for row in rows]
    return pd.DataFrame(inert_rows, columns=columns or None).to_csv(index=False, float_format="%.6g")


def one_line(text: str) -> str:
    """A name without line breaks and other control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
