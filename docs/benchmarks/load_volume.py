"""Peak memory of what touches a whole volume: each step of `check`, `preprocess` and `predict` in a process of its own.

    python docs/benchmarks/load_volume.py --out load                           a CT of 512 x 512 x 600
    python docs/benchmarks/load_volume.py --out load --size 256 256 300        an eighth of it
    python docs/benchmarks/load_volume.py --out load --lrls ../before          of another checkout

A row is one step: what its process held at most, in MiB, without what it held before, and in copies of
the volume as float32. `load.py --part ct` has the peaks of whole commands.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MIB = 2**20
STAGES = ("check", "preprocess", "predict")
ROOT = Path(__file__).parents[2]


def alone(work: Callable[[], Any]) -> tuple[float, float]:
    """Run something in a child; MiB that it held at most beyond those it began with, and seconds of processor time.

    What a child begins with is asked of the child: it has no page of its parent's libraries until it touches it.
    """
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(writing, Path("/proc/self/statm").read_bytes())
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    began = int(os.read(reading, 1000).split()[1]) * resource.getpagesize() / MIB
    os.close(reading)
    os.close(writing)
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit("the step failed.")
    return used.ru_maxrss / 1024 - began, used.ru_utime + used.ru_stime


def rows(
    folder: Path,
    out: Path,
    structures: dict[str, int],
    size: Sequence[int],
    voxels: int,
    stages: Sequence[str] = STAGES,
) -> list[dict[str, Any]]:
    """Measure every step of some stages.

    Args:
        folder: with images/large.nii.gz and labels/large.nii.gz.
        size: of the volume, (x, y, z).
        voxels: of the grid, at most.
    """
    import SimpleITK as sitk
    import torch

    from stages.config import Config
    from stages.data import facts, prepare
    from stages.data.grid import derive_grid, packed
    from stages.data.labels import label_values
    from stages.data.own_space import as_label_image, classes_in_own_space
    from stages.data.writers import volumes_ml, write_image

    data = {"folder": str(folder), "atlases": ["large"]}
    preprocess = {"align": "none", "max_voxels": voxels}
    config = Config.model_validate(
        {"workspace": str(out / "unused"), "data": data, "structures": structures, "preprocess": preprocess}
    )
    image, label = (folder / kind / "large.nii.gz" for kind in ("images", "labels"))
    looked = facts.Known(config, fresh=True).look({"large": True})["large"]
    spilled, brought = out / "spilled.npz", out / "brought.npz"
    copy_mib, found = size[0] * size[1] * size[2] * 4 / MIB, []

    def step(stage: str, name: str, work: Callable[[], Any]) -> None:
        if stage not in stages:
            return
        wall = time.monotonic()
        mib, cpu_s = alone(work)
        found.append({
            "stage": stage, "step": name, "peak_mib": round(mib), "copies": round(mib / copy_mib, 2),
            "cpu_s": round(cpu_s, 1), "wall_s": round(time.monotonic() - wall, 1),
        })  # fmt: skip
        print(found[-1], flush=True)

    step("check", "image", lambda: facts._read_image(config, "large", image))
    step("check", "label map", lambda: facts._read_label(config, "large", label))
    step("preprocess", "atlas aligned and spilled", lambda: prepare.spill_atlas(config, looked, None, None, spilled))
    about = prepare.read_about(spilled)
    spacing, origin, direction = about["geometry"]
    grid = derive_grid(config.preprocess, about["box"], tuple(direction), tuple(spacing), tuple(origin))
    step("preprocess", "atlas on the grid", lambda: prepare.bring_atlas(config, "large", spilled, grid, brought))
    reference = packed(sitk.Cast(grid.as_image(), sitk.sitkFloat32))
    new = 0, image, "large", reference, config.preprocess, grid
    step("predict", "scan on the grid", lambda: prepare.prepare_new(*new))
    shares = torch.rand(len(structures) + 1, *grid.shape, generator=torch.Generator().manual_seed(0)).softmax(0)

    def answer() -> None:
        classes = classes_in_own_space(shares, about["record"], grid)
        written = as_label_image(label_values(classes, config), about["record"])
        volumes_ml(classes, list(structures), about["record"]["spacing"])
        write_image(written, out / "answer.nii.gz", like=image)

    step("predict", "answer on the scan", answer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("load"))
    parser.add_argument("--lrls", type=Path, default=ROOT, help="folder of the checkout to measure")
    parser.add_argument(
        "--stage", choices=STAGES, action="append", help="default: all; predict needs what preprocess left"
    )
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 600))
    parser.add_argument("--voxels", type=int, default=200_000, help="of the grid, at most")
    args = parser.parse_args()
    sys.path[:0] = [str(args.lrls.resolve()), str(Path(__file__).parent)]
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultThreader("Platform")  # a pool of threads does not outlive a fork
    from load_kit import write_ct

    from stages.data.phantoms import STRUCTURES

    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.out / ("ct_" + "x".join(map(str, args.size)))
    if not (folder / "labels" / "large.nii.gz").exists():
        write_ct(folder, "large", args.size, 0)
    found = {
        "size": list(args.size),
        "rows": rows(folder, args.out, STRUCTURES, args.size, args.voxels, args.stage or STAGES),
    }
    name = f"volume_{args.lrls.resolve().name}.json"
    (args.out / name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
