"""How many processor cores this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from stages.ranks import ranks_here


def available_cores() -> int:
    """Cores that this process may use, at least 1; all of the machine's where nobody says. A job of SLURM is told.

    Processes that `torchrun` started on this machine share them.
    """
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    cores = min(_of_the_system(), int(given)) if given.isdecimal() and int(given) else _of_the_system()
    return max(1, cores // ranks_here())


def _of_the_system() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        cores = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):  # Linux; macOS and Windows have none
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    return max(1, math.ceil(min([cores or 1, *shares()])))


def shares(root: Path = Path("/")) -> Iterator[float]:
    """Cores' worth of time that control groups leave this process (Linux), such as a container's with `--cpus 2`.

    Args:
        root: of the file system.

    Source: `cpu.max` of Linux's control groups, version 2; `cpu.cfs_quota_us` of version 1.
    """
    mounted = root / "sys/fs/cgroup"
    lines: list[str] = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mounted / "cpu" if controllers else mounted
        inside = top / group.lstrip("/")
        for folder in (inside, *inside.parents):  # a limit holds for all groups below it
            with suppress(OSError, ValueError, ZeroDivisionError):  # "max", and groups that a container does not see
                yield _share(folder, old=bool(controllers))
            if folder == top:
                break


def _share(folder: Path, *, old: bool) -> float:
    files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if old else ("cpu.max",)
    quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in files).split()
    share = int(quota) / int(period)
    if share <= 0:
        raise ValueError  # version 1 says -1 for no limit
    return share
