"""Volumes of grey values as sheets: slices side by side in one PNG file, which a viewer can show as it is."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts.files import atomic_write_bytes, open_regular

if TYPE_CHECKING:
    import numpy as np

FOLDED = 0  # grey value of a voxel with |J| <= 0 in a sheet of `as_grey`
KEPT = 128  # of one whose volume is kept
MOST_DOUBLINGS = 2.0  # of volume, up or down, that a sheet tells apart


def columns_of(shape: tuple[int, ...]) -> int:
    """Slices side by side in a sheet of a volume (D, H, W), so that the sheet is about square."""
    depth, height, width = shape
    return max(1, math.ceil(math.sqrt(depth * height / width)))


def as_sheet(volume: np.ndarray) -> np.ndarray:
    """Slices of a volume (D, H, W) row by row in a picture; what is left of the last row is 0."""
    import numpy as np

    depth, height, width = volume.shape
    columns = columns_of(volume.shape)
    rows = -(-depth // columns)
    filled = np.zeros((rows * columns, height, width), volume.dtype)
    filled[:depth] = volume
    return filled.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def from_sheet(sheet: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The volume (D, H, W) of a sheet; raises ValueError if the sheet is of another size."""
    depth, height, width = shape
    columns = columns_of(shape)
    rows = -(-depth // columns)
    return sheet.reshape(rows, height, columns, width).swapaxes(1, 2).reshape(-1, height, width)[:depth]


def as_grey(determinant: np.ndarray) -> np.ndarray:
    """Determinants of a Jacobian as uint8: their logarithm to the base 2, `KEPT` for 1, `FOLDED` for 0 and below."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        doublings = np.log2(determinant).clip(-MOST_DOUBLINGS, MOST_DOUBLINGS)
    grey = KEPT + doublings * (127 / MOST_DOUBLINGS)
    return np.where(determinant > 0, grey.round().clip(1, 255), FOLDED).astype(np.uint8)


def write_sheet(path: Path, volume: np.ndarray) -> None:
    """Write a volume (D, H, W) uint8 as a PNG sheet, in full or not at all."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(as_sheet(volume)).save(file, "PNG")
    path.parent.mkdir(exist_ok=True)
    atomic_write_bytes(path, file.getbuffer())


def read_sheet(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The volume (D, H, W) uint8 of a sheet; None: there is none, or it does not hold such a volume."""
    import numpy as np
    from PIL import Image

    try:
        with open_regular(path) as file, Image.open(file, formats=("PNG",)) as picture:
            return from_sheet(np.asarray(picture.convert("L")), shape)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
