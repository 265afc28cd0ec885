"""Digests: SHA-256 in hex, of a file's content and of JSON-able values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts.h5 import open_h5

if TYPE_CHECKING:
    import h5py
    import numpy as np

_SLAB_BYTES = 32 * 2**20


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of an HDF5 file's content without the library's internal data.

    Raises:
        DamagedH5: an HDF5 file is damaged, or holds what lrls does not write.
        OSError, RuntimeError, KeyError, ValueError: a file cannot be read.
    """
    if path.suffix == ".h5":
        digest = hashlib.sha256()
        with open_h5(path) as file:
            _update_h5(digest, file)
        return digest.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _update_h5(digest: hashlib._Hash, item: h5py.Group | h5py.Dataset) -> None:
    """Names, attributes, types, shapes and values in sorted order, whatever the order and layout on disk."""
    import h5py
    import numpy as np

    def header(*fields: object) -> None:
        digest.update(canonical(fields))

    header(item.name, type(item).__name__)
    for name in sorted(item.attrs):
        value = np.asarray(item.attrs[name])
        header("attribute", name, _type_name(value.dtype), value.shape)
        _update_values(digest, value)
    if isinstance(item, h5py.Dataset):
        header(_type_name(item.dtype), item.shape)
        if item.shape == ():
            _update_values(digest, np.asarray(item[()]))
        elif item.shape is not None and item.size:
            # Slabs along the first axis give the same bytes for every chunk layout. Each chunk is read once.
            step = item.chunks[0] if item.chunks else 1
            row_bytes = item.dtype.itemsize * item.size // item.shape[0]
            rows = max(_SLAB_BYTES // row_bytes // step, 1) * step
            for start in range(0, item.shape[0], rows):
                _update_values(digest, item[start : start + rows])
    else:
        for name in sorted(item):
            _update_h5(digest, item[name])


def _type_name(dtype: np.dtype) -> str:
    return str(dtype.descr if dtype.names else dtype.str)


def _update_values(digest: hashlib._Hash, values: np.ndarray) -> None:
    if values.dtype.names:  # field by field: the padding between fields has no defined bytes
        for name in values.dtype.names:
            _update_values(digest, values[name])
    elif values.dtype.hasobject:  # strings and arrays of varying length
        for value in values.ravel():
            raw = value.encode() if isinstance(value, str) else value
            raw = raw if isinstance(raw, bytes) else raw.tobytes() if hasattr(raw, "tobytes") else repr(raw).encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)
    else:
        digest.update(values.tobytes())


def digest_of(values: object) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(canonical(values)).hexdigest()


def canonical(values: object) -> bytes:
    """A JSON-able value as canonical JSON, independent of the order of keys."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
