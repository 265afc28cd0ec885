"""How many processor cores this process may use."""

from __future__ import annotations

import os

from stages.ranks import ranks_here


def available_cores() -> int:
    """Cores that this process may use, at least 1; all of the machine's where the system does not say.

    Processes that `torchrun` started on this machine share them.
    """
    return max(1, _cores() // ranks_here())


def _cores() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS and Windows have none
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
