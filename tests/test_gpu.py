"""The tests in `tests/gpu`, in a process of their own: with a pretended GPU torch starts threads that forbid forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_everything_runs_on_a_gpu_or_on_one_that_is_pretended():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=os.environ | {"LRLS_ON_A_GPU": "1"}, capture_output=True,
        encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
