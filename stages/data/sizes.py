"""Whether a file can hold the voxels that its header claims, and whether they fit into memory."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

from stages.data.faults import Fault, IntakeError, in_bytes
from stages.memory import available_bytes

MOST_EXPANSION = 1100  # deflate's limit is 1032: no compressed file holds more than this times its own size
CHUNK_BYTES = 1 << 20
FLOAT_COPIES = 3  # of an image in float32 while it is brought to the grid


def refuse_impossible_size(
    path: Path, shape: Sequence[int], item_bytes: int, case: str, kind: str, *, is_compressed: bool
) -> None:
    """Check a header's claim before memory is taken for it.

    Args:
        path: the file with the voxels.
        shape: voxels along each axis.
        item_bytes: of a stored voxel.

    Raises:
        EOFError: the file is too small to hold the voxels.
        IntakeError: they do not fit into the free memory.
    """
    num_voxels = math.prod(int(n) for n in shape)
    if num_voxels * item_bytes > path.stat().st_size * (MOST_EXPANSION if is_compressed else 1):
        raise EOFError
    refuse_full_memory(shape, item_bytes, case, kind)


def refuse_full_memory(shape: Sequence[int], item_bytes: int, case: str, kind: str) -> None:
    """Refuse voxels that do not fit into the free memory; arguments and errors as of `refuse_impossible_size`."""
    needed, free = math.prod(shape) * (item_bytes + 4 * FLOAT_COPIES), available_bytes()
    if free is not None and needed > free:
        problem = f"{kind} has {' x '.join(map(str, shape))} voxels, which need {in_bytes(needed)} of memory"
        remedy = "crop it, or close other programs"
        raise IntakeError(Fault(case, f"{problem}, {in_bytes(free)} are free", remedy, "memory"))


def check_packed(path: Path, start: int, num_bytes: int) -> int:
    """Inflate what is packed (zlib or gzip) behind a header once; libraries take the voxels before a damage, and go on.

    Args:
        start: byte at which it begins.
        num_bytes: of the voxels.

    Returns:
        How many bytes of the file it takes.

    Raises:
        EOFError, zlib.error: it is damaged, ends too early, or does not hold the voxels.
    """
    count, taken, rest = 0, 0, b""
    with path.open("rb") as file:
        file.seek(start)
        while count < num_bytes:  # gzip may have several parts
            inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
            while not inflater.eof:
                data = rest or file.read(CHUNK_BYTES)
                if not data:
                    count += len(inflater.flush())
                    if not inflater.eof:
                        raise EOFError
                    break
                count += len(inflater.decompress(data, CHUNK_BYTES))
                rest = inflater.unconsumed_tail or inflater.unused_data
                taken += len(data) - len(rest)
                if count > num_bytes + CHUNK_BYTES:
                    raise EOFError
    return taken
