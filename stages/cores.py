"""How many processor cores this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores that this process may use, at least 1; all of the machine's where nobody says. A job of SLURM is told."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(_of_the_system(), int(given)) if given.isdecimal() and int(given) else _of_the_system()


def _of_the_system() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS and Windows have none
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
