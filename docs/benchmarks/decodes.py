"""How often a run decodes each scan: a fresh `lrls run`, the same command again, and processor time and memory.

    python docs/benchmarks/decodes.py data.example/lrls.yaml --method best --set train_seg.steps=4

Every decode of voxels goes through SimpleITK's `ReadImage`; here it counts, and cases are worked on in this process
(worker processes would count apart). Files outside of the data's folder, such as written answers, do not count. Works
on older versions of the code, too: run it with PYTHONPATH set to them.
"""

from __future__ import annotations

import argparse
import collections
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import SimpleITK as sitk

COUNTS: collections.Counter[str] = collections.Counter()
READ = sitk.ReadImage


def counted(path: Any, *arguments: Any, **options: Any) -> sitk.Image:
    first = Path(path if isinstance(path, str | Path) else path[0])
    COUNTS[str(first.resolve())] += 1
    return READ(path, *arguments, **options)


def serial(function: Callable[..., Any], arguments: list[tuple], **_: object) -> Iterator[Any]:
    yield from (function(*each) for each in arguments)


def in_this_process() -> None:
    """Patch whatever starts processes, by whichever name a version of the code has it."""
    import stages.predict
    import stages.suggest_atlas
    import stages.workflow  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith("stages") and hasattr(module, "in_processes"):
            module.in_processes = serial
    processes = sys.modules.get("stages.processes")
    if processes is not None and hasattr(processes, "Processes"):
        processes.Processes.each = lambda self, function, arguments: serial(function, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--method", default="best")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--until", default="eval")
    asked = parser.parse_args()
    sitk.ReadImage = counted
    in_this_process()
    from stages.config import load_config
    from stages.workflow import run

    with tempfile.TemporaryDirectory() as workspace:
        config = load_config(asked.config, [*asked.settings, f"workspace={workspace}"])
        folder = config.data.folder.resolve()
        columns = []
        for name in ("fresh", "again"):
            COUNTS.clear()
            began = time.process_time()
            run(config, asked.method, until=asked.until, tell=lambda _: None)
            inside = {path: number for path, number in COUNTS.items() if folder in Path(path).parents}
            columns.append({str(Path(path).relative_to(folder)): number for path, number in inside.items()})
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{name}: {time.process_time() - began:.1f} s of processor, peak {peak:.0f} MB", flush=True)
    print(f"{'file':40s} fresh  again")
    for path in sorted({*columns[0], *columns[1]}):
        print(f"{path:40s} {columns[0].get(path, 0):5d}  {columns[1].get(path, 0):5d}")
    print(f"{'all':40s} {sum(columns[0].values()):5d}  {sum(columns[1].values()):5d}")


if __name__ == "__main__":
    main()
