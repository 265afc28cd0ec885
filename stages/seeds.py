"""Seeds by name: every random stream has its own, so that no two streams are equal by accident."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """The seed of a stream, in [0, 2^63).

    Args:
        seed: the configuration's.
        names: what the stream is for, such as "train-seg", 2 (its round). Other names give an unrelated seed.

    Source: SHA-256 of seed and names; equal on all machines and versions of Python.
    """
    text = "\0".join(f"{type(name).__name__}:{name}" for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
