"""Digests of scans' geometry and voxels, independent of file names and formats. Lineage starts from them."""

from __future__ import annotations

import hashlib

import numpy as np
import SimpleITK as sitk

from stages.artifacts.digests import digest_of
from stages.data.slabs import slabs


def voxel_digest(image: sitk.Image) -> str:
    """SHA-256 of size and voxels alone, to recognise the same image under another name or header."""
    digest = hashlib.sha256(repr(image.GetSize()).encode())
    _update(digest, image, np.float32)
    return digest.hexdigest()


def image_digest(image: sitk.Image) -> str:
    """SHA-256 of an image's geometry and voxels."""
    return _with_geometry(image, "image", np.float32)


def label_digest(label: sitk.Image) -> str:
    """SHA-256 of a label map's geometry and values, whatever its integer type."""
    return _with_geometry(label, "label", np.int64)


def scan_digest(image: str, label: str | None = None) -> str:
    """The digest of a scan: of its image and, if it was read, its label map.

    Args:
        image, label: their digests.
    """
    return image if label is None else digest_of({"image": image, "label": label})


def _with_geometry(image: sitk.Image, kind: str, dtype: type) -> str:
    geometry = (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    digest = hashlib.sha256(f"{kind} {geometry}".encode())
    _update(digest, image, dtype)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, image: sitk.Image, dtype: type) -> None:
    voxels = sitk.GetArrayViewFromImage(image)
    for slab in slabs(voxels):
        array: np.ndarray = voxels[slab].astype(dtype)
        array += 0  # -0.0 and 0.0 are the same voxel
        digest.update(np.ascontiguousarray(array).data.cast("B"))
