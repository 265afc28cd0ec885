"""Volumes as text and small pictures that a page can show: WebP sheets, packed label maps, thumbnails.

A page that is opened from a disk must not read the pixels of picture files, so whatever its scripts look into stands in
script files, in base64. Label maps are deflated; one that differs little from the one before is stored as their
difference (exclusive or).
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from stages.artifacts.cohort import Grid
from stages.artifacts.sheets import as_sheet, columns_of
from stages.parts.colors import class_color

ATTEMPTS = ((1.0, 62), (1.0, 45), (1.25, 50), (1.5, 50), (1.8, 45), (2.2, 45), (2.8, 40), (3.6, 35))
"""Times the spacing of the finest axis, and quality of pictures; the first that fits is taken, or else the last one."""
THUMBNAIL = 176  # pixels along the longer edge
TRUTH = (255, 255, 255)


@dataclass(frozen=True)
class Layer:
    """A label map on the grid that is shown: class indices (D, H, W)."""

    name: str
    classes: np.ndarray


def coarser(grid: Grid, times: float) -> Grid:
    """The same box with voxels of at least `times` the finest spacing."""
    if times <= 1:
        return grid
    least = times * min(grid.spacing_mm)
    shape = tuple(max(1, round(n * s / max(s, least))) for n, s in zip(grid.shape, grid.spacing_mm, strict=True))
    spacing = tuple(n * s / m for n, s, m in zip(grid.shape, grid.spacing_mm, shape, strict=True))
    half = (np.array(spacing) - np.array(grid.spacing_mm))[::-1] / 2  # of the first voxel's centre, (x, y, z)
    origin = np.array(grid.origin) + np.array(grid.direction).reshape(3, 3) @ half
    return Grid(shape, spacing, tuple(origin.tolist()), grid.direction)  # type: ignore[arg-type]


def averaged(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A volume (D, H, W) uint8 with fewer voxels, each the mean of those that it takes the place of."""
    if volume.shape == tuple(shape):
        return volume
    mean = F.adaptive_avg_pool3d(torch.from_numpy(volume.astype(np.float32))[None], tuple(shape))[0]  # type: ignore[arg-type]
    return mean.round().numpy().astype(np.uint8)


def packed_image(volume: np.ndarray, quality: int | None) -> dict[str, Any]:
    """A volume (D, H, W) uint8 as a WebP sheet; without a quality as it is."""
    file = io.BytesIO()
    how = {"lossless": True} if quality is None else {"quality": quality}
    Image.fromarray(as_sheet(volume)).save(file, "WEBP", method=4, **how)
    return {"columns": columns_of(volume.shape), "url": f"data:image/webp;base64,{_base64(file.getvalue())}"}


def packed_labels(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Label maps of one shape; "after": stored as the difference to the one before."""
    packed: list[dict[str, Any]] = []
    before: np.ndarray | None = None
    for layer in layers:
        classes = layer.classes.astype("<u2" if layer.classes.max(initial=0) > 255 else "u1")
        data, after = zlib.compress(classes.tobytes(), 9), False
        if before is not None and before.dtype == classes.dtype:
            difference = zlib.compress((classes ^ before).tobytes(), 9)
            data, after = (difference, True) if len(difference) < len(data) else (data, False)
        packed.append(
            {"name": layer.name, "bytes": classes.itemsize, "after": after, "data": _base64(data)},
        )
        before = classes
    return packed


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def hex_color(class_index: int) -> str:
    """The colour of a class in all pictures, as "#rrggbb"."""
    color = class_color(class_index)
    if isinstance(color, str):
        return color
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)


def thumbnail(
    image: np.ndarray, truth: np.ndarray | None, answer: np.ndarray | None, spacing_mm: Sequence[float]
) -> bytes:
    """The slice across D with the most label, as WebP: the answer's outlines in colour, the truth's in white.

    Args:
        image: (D, H, W) uint8.
        truth, answer: class indices (D, H, W), if there are any.
        spacing_mm: along (D, H, W).
    """
    shown = [label for label in (answer, truth) if label is not None]
    filled = sum((label > 0).sum((1, 2)) for label in shown) if shown else np.zeros(len(image))
    place = int(np.argmax(filled)) if np.any(filled) else len(image) // 2
    height, width = (n * s for n, s in zip(image.shape[1:], spacing_mm[1:], strict=True))
    scale = THUMBNAIL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = np.array(Image.fromarray(image[place]).resize(size, Image.Resampling.BICUBIC).convert("RGB"))
    for label, is_truth in ((truth, True), (answer, False)):
        if label is None:
            continue
        large = np.array(Image.fromarray(label[place].astype(np.int32)).resize(size, Image.Resampling.NEAREST))
        for index in np.unique(large[large > 0]):
            rgb = TRUTH if is_truth else tuple(bytes.fromhex(hex_color(int(index))[1:]))
            picture[_edge(large == index)] = rgb
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=55, method=4)
    return file.getvalue()


def _edge(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask (H, W) that touch others."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def as_webp(path: Any, most_width: int = 1500) -> bytes | None:
    """A picture file as WebP, without whatever else it says; None: it is none."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            plain = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if plain.width > most_width:
        plain = plain.resize((most_width, max(1, round(plain.height * most_width / plain.width))))
    file = io.BytesIO()
    plain.save(file, "WEBP", quality=72, method=4)
    return file.getvalue()
