"""What a GPU makes of lrls, within 8 minutes: is it right, how fast is it, how much memory does it take?

    python docs/benchmarks/gpu.py --scans FOLDER        # images/, labels/ and split.json, as of brain.yaml
    python docs/benchmarks/gpu.py --device cpu --grid small --part steps --part pairs

Parts, each in a process of its own and within its own time, so that one that fails or hangs takes no other with it:

- tests: those that take a GPU where there is one, `tests/gpu`.
- steps: a training step of BRBS written plainly (`plain_brbs.py`) against ours, 144 x 144 x 128 voxels.
- pairs: instance optimisation of `best`, one pair at a time and in batches of pairs, on the same grid.
- best: `lrls run --method best` on the scans (without a folder: on phantoms of as many voxels) with preprocessing,
  plan, paths, training and scores, then `lrls predict` on the device and on the CPU.

Rows are printed, and `gpu.json` and `gpu.md` written, after each part: the machine may be taken away at any time.
Where torch finds no GPU, one line says so and the CPU takes a small grid.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from brbs_step import Ours, configuration, make_batch, peak_memory_mib, smooth_noise  # noqa: E402
from plain_brbs import Draws, PlainBRBS  # noqa: E402

from stages.answering.registering import pairs_at_once  # noqa: E402
from stages.device import Device, choose_device  # noqa: E402
from stages.memory import is_out_of_memory  # noqa: E402
from stages.parts.instance import InstanceOptimisation  # noqa: E402
from stages.parts.networks.unet import UNet  # noqa: E402
from stages.parts.warps import warp  # noqa: E402

Row = dict[str, Any]
SHAPES = {"brain": (144, 144, 128), "small": (24, 32, 24)}
LIMITS_S = {"tests": 80.0, "steps": 65.0, "pairs": 65.0, "best": 255.0}  # together less than 8 minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--grid", choices=SHAPES, help="of steps and pairs; default: brain, on the CPU small")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("D", "H", "W"), help="another grid")
    parser.add_argument("--part", action="append", choices=LIMITS_S, help="only this one; repeat for more")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts; each has its share")
    parser.add_argument("--scans", type=Path, help="the brain set of brain.yaml; default: phantoms")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="sizes of batches")
    parser.add_argument("--descent", type=int, nargs=2, default=[40, 15], help="steps on coarse levels and the finest")
    parser.add_argument("--tests", default="", help="an expression for pytest -k")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--one", choices=LIMITS_S, help="used by itself: one part, a JSON row a line")
    arguments = parser.parse_args()
    settle(arguments)
    if arguments.one:
        for row in PARTS[arguments.one](arguments):
            print(json.dumps(row), flush=True)
        return
    began = time.monotonic()
    result: Row = {"about": about(arguments), "parts": {}}
    for name in arguments.part or LIMITS_S:
        left = 60 * arguments.minutes - (time.monotonic() - began)
        limit_s = min(left, LIMITS_S[name] * arguments.minutes / 8)
        result["parts"][name] = run_part(name, limit_s) if limit_s > 1 else {"ended": "no time was left", "rows": []}
        write(result, arguments.out)
        print(table({name: result["parts"][name]}), flush=True)
    print(headline(result["about"]))


def settle(arguments: argparse.Namespace) -> None:
    """Fill in what depends on whether there is a GPU."""
    if arguments.device != "cpu" and not torch.cuda.is_available():
        if not arguments.one:
            print("no CUDA GPU here: this runs on the CPU, on a small grid.", flush=True)
        arguments.device = "cpu"
    arguments.device = "cpu" if arguments.device == "cpu" else "cuda"
    arguments.grid = arguments.grid or ("small" if arguments.device == "cpu" else "brain")
    arguments.shape = tuple(arguments.shape or SHAPES[arguments.grid])


def run_part(name: str, limit_s: float) -> Row:
    """A part's rows, and how it ended: "whole", or what stopped it."""
    began = time.monotonic()
    command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8", start_new_session=True
        ) as process,
    ):
        try:
            out, _ = process.communicate(timeout=limit_s)
            ended = "whole" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            ended = f"stopped after {limit_s:.0f} s"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if ended == "failed":
            log.seek(0)
            ended = f"failed: {(log.read().strip().splitlines() or ['without a word'])[-1][:300]}"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    return {"ended": ended, "seconds": round(time.monotonic() - began, 1), "rows": rows}


# Parts


def tests(arguments: argparse.Namespace) -> Iterator[Row]:
    """The test suite's part that runs on a GPU where there is one."""
    files = ["tests/gpu"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    selected = ["-k", arguments.tests] if arguments.tests else []
    environment = os.environ | {"LRLS_ON_A_GPU": "1"}  # without it pytest leaves them out
    done = subprocess.run(
        [*command, *selected], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    yield {"tests": "passed" if done.returncode == 0 else "failed", "summary": lines[-1] if lines else ""}
    yield from ({"failed": line.removeprefix("FAILED ")[:300]} for line in lines if line.startswith("FAILED"))
    sys.exit(done.returncode)


def steps(arguments: argparse.Namespace) -> Iterator[Row]:
    """Seconds and memory of a step: R and S move once each, batch 1, three classes, the published networks."""
    shape, num_classes = arguments.shape, 3
    plain_s = None
    variants: list[tuple[str, str, bool, bool]] = [  # name, precision, TF32, search for convolutions
        ("plain fp32", "fp32", True, False),
        ("lrls bf16", "bf16", False, False),
        ("lrls bf16, cudnn.benchmark", "bf16", False, True),
        ("lrls fp32", "fp32", False, False),
    ]
    for name, precision, tf32, search in variants[:: 3 if arguments.device == "cpu" else 1]:
        device = device_for(arguments, precision)
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, search
        row: Row = {"step": name, "shape": "x".join(map(str, shape)), "classes": num_classes}
        try:
            step = plain_step(shape, num_classes, device) if name.startswith("plain") else our_step(
                shape, num_classes, device
            )  # fmt: skip
            row |= timed(step, device, warm=2, repeats=arguments.repeats)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            row["seconds"] = "out of memory"
        else:
            plain_s = plain_s or row["seconds"]
            row["plain / this"] = round(plain_s / row["seconds"], 2)
        step = None
        yield row


def plain_step(shape: tuple[int, int, int], num_classes: int, device: Device) -> Callable[[], Any]:
    levels = len(Ours(shape, num_classes, 0).recipe.networks["segmentation"].down)  # type: ignore[arg-type]
    batch = make_batch(shape, num_classes, seed=0)
    tensors = [each.to(device.torch) for each in (batch.atlas, batch.label, batch.first, batch.second)]
    with device.torch:
        plain = PlainBRBS(num_classes, UNet.WIDTHS[:levels])

    def step() -> None:
        with device.torch:  # where the plain step makes its own tensors
            plain.step(*tensors, Draws(pair=0, alpha=0.5, beta=0.5, gamma=0.5))

    return step


def our_step(shape: tuple[int, int, int], num_classes: int, device: Device) -> Callable[[], Any]:
    ours, batch = Ours(shape, num_classes, 0, device), make_batch(shape, num_classes, seed=0)
    for name in ("atlas", "label", "first", "second"):
        setattr(batch, name, getattr(batch, name).to(device.torch))
    object.__setattr__(batch.draw, "generator", torch.Generator(device.torch).manual_seed(0))
    return lambda: ours.step(batch, device)


def pairs(arguments: argparse.Namespace) -> Iterator[Row]:
    """Pairs a second and memory, and how far a pair's displacement in a batch is from what it gets alone."""
    device, shape = device_for(arguments, "fp32"), arguments.shape
    register = InstanceOptimisation(*arguments.descent)
    made: list[tuple[Tensor, Tensor]] = []
    alone: Tensor | None = None
    for count in arguments.pairs:
        row: Row = {"pairs at once": count, "shape": "x".join(map(str, shape))}
        try:
            made += [make_pair(shape, seed, device) for seed in range(len(made), count)]
            row["lrls would take"] = pairs_at_once(device, made[0][0][0, 0].cpu().numpy())
            moving, fixed = (torch.cat(images) for images in zip(*made[:count], strict=True))
            found: list[Tensor] = []
            warm = int(alone is None)
            row |= timed(lambda m=moving, f=fixed, to=found: to.append(register(m, f)), device, warm, 1)  # type: ignore[misc]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            yield row | {"seconds": "out of memory"}
            return
        row["pairs a second"] = round(count / row["seconds"], 3)
        alone = found[-1][:1] if alone is None else alone
        apart = (found[-1][:1] - alone).abs()
        yield row | {"voxels from alone (mean, max)": f"{float(apart.mean()):.4f}, {float(apart.max()):.3f}"}


def make_pair(shape: tuple[int, int, int], seed: int, device: Device) -> tuple[Tensor, Tensor]:
    """A smooth texture and the same, smoothly displaced by some voxels, (1, 1, D, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    noise = smooth_noise(4, shape, generator).to(device.torch)
    moving = noise[:, :1].sigmoid() * 0.9
    return moving, warp(moving, 2 * noise[:, 1:])


def best(arguments: argparse.Namespace) -> Iterator[Row]:
    """`best` from scans to scores and new label maps."""
    from stages.config import load_config

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = [f"workspace={folder / 'runs'}", f"device={arguments.device}"]
        if arguments.scans:
            file = HERE / "brain.yaml"
            sets.append(f"data.folder={arguments.scans.resolve()}")
        else:
            lrls(folder, "phantom", str(folder / "phantoms"), "--scans", "14" if arguments.grid == "brain" else "6")
            file = folder / "phantoms" / "lrls.yaml"
            sets.append(f"preprocess.spacing_mm={0.8 if arguments.grid == 'brain' else 3.0}")
        budget_s = 0.55 * LIMITS_S["best"] * arguments.minutes / 8
        settings = [word for each in sets for word in ("--set", each)]
        began = time.monotonic()
        words = ("run", str(file), "--method", "best", "--json", *settings, "--budget")
        try:
            scores = json.loads(lrls(folder, *words, f"{budget_s:.0f}s"))["scores"]
        except SystemExit as error:
            if "too short" not in str(error):
                raise
            yield {"what": str(error)}
            scores = json.loads(lrls(folder, *words, "200steps"))["scores"]
        yield {
            "what": "run to scores", "seconds": round(time.monotonic() - began, 1), "budget_s": round(budget_s),
            "device": scores["device"],
            "DSC": ", ".join(f"{of} {each['dsc']['mean']:.3f}" for of, each in scores["outputs"].items()),
        }  # fmt: skip
        scans = [str(scan) for scan in test_scans(load_config(file, sets))[:2]]
        maps: dict[str, list[Any]] = {}
        for where in dict.fromkeys((arguments.device, "cpu")):
            out, began = folder / f"labels-{where}", time.monotonic()
            lrls(folder, "predict", str(file), *scans, "--method", "best", "--out", str(out), *settings,
                 "--set", f"device={where}")  # fmt: skip
            maps[where] = label_maps(out)
            yield {
                "what": f"predict {len(scans)} scans, device {where}", "seconds": round(time.monotonic() - began, 1),
            }  # fmt: skip
        if len(maps) == 2:
            ours, cpu = maps.values()
            same = [float((a == b).mean()) for a, b in zip(ours, cpu, strict=True)]
            yield {"what": "label maps of both", "voxels as on the CPU": round(min(same), 5)}


def lrls(folder: Path, *words: str) -> str:
    """A command's output, as a user types it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "lrls_cli.main", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"lrls {words[0]}: {(done.stderr.strip().splitlines() or ['it ended without a word'])[-1]}")
    return done.stdout


def test_scans(config: Any) -> list[Path]:
    from stages.data.intake import image_files

    return [file for case in config.part("test") for file in image_files(config, case)]


def label_maps(folder: Path) -> list[Any]:
    import SimpleITK as sitk

    return [sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in sorted(folder.rglob("*.nii.gz"))]


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "tests": tests, "steps": steps, "pairs": pairs, "best": best
}  # fmt: skip


# Measuring


def device_for(arguments: argparse.Namespace, precision: str) -> Device:
    return choose_device(configuration(precision).model_copy(update={"device": arguments.device}))


def timed(step: Callable[[], Any], device: Device, warm: int, repeats: int) -> Row:
    """Median seconds of a step, and the most memory that it took."""
    is_cuda = device.torch.type == "cuda"
    for _ in range(warm):
        step()
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        if is_cuda:
            torch.cuda.synchronize()  # a step has only been asked for until then
        times.append(time.perf_counter() - began)
    peak_mib = torch.cuda.max_memory_allocated() / 2**20 if is_cuda else peak_memory_mib()
    return {"seconds": round(statistics.median(times), 5), "peak MiB": round(peak_mib)}


def about(arguments: argparse.Namespace) -> Row:
    """What the figures depend on."""
    is_cuda = arguments.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_cuda else platform.processor() or platform.machine(),
        "memory GB": round(torch.cuda.mem_get_info()[1] / 1e9, 1) if is_cuda else None,
        "torch": torch.__version__, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version(),
        "driver": said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if is_cuda else None,
        "commit": said_by("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"), "cores": os.cpu_count(),
        "grid": arguments.grid, "shape": list(arguments.shape), "minutes": arguments.minutes,
    }  # fmt: skip


def said_by(*command: str) -> str | None:
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0].strip() if lines else None


# Writing


def headline(about: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)


def table(parts: dict[str, Row]) -> str:
    """A Markdown table of each part."""
    lines = []
    for name, part in parts.items():
        lines += ["", f"## {name}: {part['ended']}" + (f", {part['seconds']} s" if "seconds" in part else ""), ""]
        columns = list(dict.fromkeys(column for row in part["rows"] for column in row))
        if columns:
            lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        for row in part["rows"]:
            lines.append(f"| {' | '.join(str(row.get(column, '')) for column in columns)} |")
    return "\n".join(lines)


def write(result: Row, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = f"# On a GPU\n\n{headline(result['about'])}\n{table(result['parts'])}\n"
    (folder / "gpu.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
