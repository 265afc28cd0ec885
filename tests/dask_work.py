"""What workers do in tests of a cluster; imports little, because each worker does."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from stages.errors import LrlsError


def told(place: int, folder: Path) -> tuple[int, int, str]:
    (folder / f"{place}.{os.getpid()}").touch()
    time.sleep(0.3)
    return place, os.getpid(), tempfile.gettempdir()


def killing(place: int, bad: int, count: Path) -> int:
    if place == bad:
        with count.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return place


def raising(place: int) -> None:
    raise LrlsError(f"case {place}: damaged; export it again.")


def doubled(array: Any, place: int) -> int:
    return int(array.sum()) + place


def waiting(array: Any, seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
