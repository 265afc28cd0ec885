"""Memory: how much there is, and a limit, so that a process that asks for more gets an error instead of all of it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

TOO_LITTLE = re.compile(
    r"can't allocate memory|not enough memory|out of memory|failed to allocate|cannot allocate memory|bad_alloc",
    re.IGNORECASE,
)  # what torch, ITK and the C++ library say


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the processor or the GPU had too little memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and bool(TOO_LITTLE.search(str(error)))


def available_bytes() -> int | None:
    """Memory that this process may still take from the machine and from its container or job; None: unknown."""
    known = [number for number in (_of_machine(), _of_group()) if number is not None]
    return min(known, default=None)


def limit_memory() -> None:
    """Let this process take what is available now and no more. Systems other than Linux are left as they are."""
    free, status = available_bytes(), Path("/proc/self/status")
    if free is None or not status.is_file():
        return
    import resource

    used = re.search(r"^VmData:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = free + (int(used[1]) * 1024 if used else 0)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))


def _of_machine() -> int | None:
    """Free memory and what the system can make free, with swap."""
    with suppress(OSError):
        lines = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE))
        if "MemAvailable" in lines:
            return 1024 * (int(lines["MemAvailable"]) + int(lines.get("SwapFree", 0)))
    with suppress(AttributeError, OSError, ValueError):  # macOS says only how much there is in all
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_group() -> int | None:
    """What the control group (a container, a job of Slurm) still allows; None: no limit, or none that is visible."""
    root, groups = Path("/sys/fs/cgroup"), ""
    with suppress(OSError):
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    left = []
    for top, own, most, used, held in (  # version 2, version 1
        (root, "0::", "memory.max", "memory.current", "file"),
        (root / "memory", r"\d+:memory:", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    ):
        found = re.search(rf"^{own}/(.*)$", groups, re.MULTILINE)
        folder = top / found[1] if found else top
        for group in (folder, *(parent for parent in folder.parents if parent.is_relative_to(top))):
            with suppress(OSError, ValueError):  # "max" is no number: no limit
                limit, current = (int((group / name).read_text(encoding="utf-8")) for name in (most, used))
                cached = re.search(
                    rf"^{held} (\d+)$", (group / "memory.stat").read_text(encoding="utf-8"), re.MULTILINE
                )
                left.append(max(0, limit - current + (int(cached[1]) if cached else 0)))  # copies of files make room
    return min(left, default=None)
