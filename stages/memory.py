"""How much memory is free."""

from __future__ import annotations

from pathlib import Path


def available_bytes() -> int | None:
    """Memory that this process could still take without swapping; None: unknown on this system.

    The smaller of what the system has and what a container's limit (cgroup v2) leaves.
    """
    system = _number(Path("/proc/meminfo"), "MemAvailable:")
    group = Path("/sys/fs/cgroup")
    limit, used = (_number(group / name) for name in ("memory.max", "memory.current"))
    files = _number(group / "memory.stat", "inactive_file") or 0  # a cache that the kernel gives back
    within = None if limit is None or used is None else max(0, limit - used + files)
    known = [free for free in (None if system is None else 1024 * system, within) if free is not None]
    return min(known, default=None)


def _number(path: Path, key: str = "") -> int | None:
    """The number that follows a key in a file of the kernel, or that the file begins with."""
    try:
        words = path.read_text(encoding="ascii").split()
        return int(words[words.index(key) + 1 if key else 0])
    except (OSError, ValueError, IndexError):
        return None
