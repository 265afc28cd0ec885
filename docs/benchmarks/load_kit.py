"""What the load benchmarks share: commands that are watched, large scans, digests, and a browser."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import SimpleITK as sitk
import yaml

ROOT = Path(__file__).parents[2]
LRLS = [sys.executable, "-m", "lrls_cli.main"]
SAMPLE_S = 0.1
MIB = 2**20
SETTINGS = {  # small, so that what is not the network's own work shows
    "seed": 0, "device": "cpu", "precision": "fp32", "threads": 1,
    "preprocess": {"align": "none", "max_voxels": 40_000, "workers": 1},
    "train_seg": {"steps": 5},
    "methods": {"unet": {"segmentation_network": "light"}},
}  # fmt: skip
HU = (-1000.0, 1400.0)  # air and bone


@dataclass
class Ran:
    """What a command took.

    Args:
        samples: (seconds since its start, MiB of all its processes, open files of the command itself, `progress()`).
    """

    code: int = -1
    wall_s: float = 0.0
    said: str = ""
    samples: list[tuple[float, float, int, int]] = field(default_factory=list)

    @property
    def peak_mib(self) -> float:
        return max((mib for _, mib, _, _ in self.samples), default=0.0)


class Load:
    """A folder for all parts, and the checkout that they run.

    Args:
        lrls: folder of the checkout.
    """

    def __init__(self, out: Path, lrls: Path) -> None:
        self.out, self.lrls, self.temporary = out, lrls, out / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {"PYTHONPATH": str(lrls), "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)}

    def run(self, *command: str, progress: Callable[[], int] = lambda: 0, must: bool = True) -> Ran:
        """Run a command and watch it; output goes to a file, so that a full pipe stops nothing."""
        ran, began = Ran(), time.monotonic()
        log = self.out / "command.log"
        with log.open("w") as file:
            process = subprocess.Popen([*LRLS, *command], env=self.environment, stdout=file, stderr=file)
            while process.poll() is None:
                ran.samples.append((time.monotonic() - began, *watched(process.pid), progress()))
                time.sleep(SAMPLE_S)
        ran.code, ran.wall_s, ran.said = process.returncode, time.monotonic() - began, log.read_text(errors="replace")
        if must and ran.code:
            sys.exit(f"lrls {command[0]} ended with {ran.code}: {ran.said[-500:]}")
        return ran

    def left(self) -> int:
        """Temporary files that commands have left."""
        return sum(file.is_file() for file in self.temporary.rglob("*"))

    def project(self, name: str, data: dict[str, Any], **changes: Any) -> Path:
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        structures = changes.pop("structures")
        config = SETTINGS | {"workspace": "runs", "data": data, "structures": structures} | changes
        (folder / "lrls.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return folder / "lrls.yaml"

    def phantoms(self, scans: int) -> tuple[Path, list[str], dict[str, int]]:
        """A folder of phantoms, their ids, and their structures."""
        folder = self.out / f"phantoms_{scans}"
        if not (folder / "lrls.yaml").exists():
            self.run("phantom", str(folder), "--scans", str(scans))
        config = yaml.safe_load((folder / "lrls.yaml").read_text(encoding="utf-8"))
        cases = [case for part in ("atlases", "unlabeled", "dev", "test") for case in config["data"][part]]
        return folder, cases, config["structures"]

    def model(self) -> Path:
        """A network of few steps, exported."""
        folder, cases, structures = self.phantoms(4)
        data = {"folder": str(folder), "atlases": cases[:1], "unlabeled": cases[1:2]}
        config, model = self.project("model", data, structures=structures), self.out / "model.zip"
        if not model.exists():
            self.run("run", str(config), "--method", "unet", "--until", "train-seg")
            self.run("export", str(config), "--method", "unet", "--out", str(model))
        return model


def watched(pid: int) -> tuple[float, int]:
    """MiB of a process and all below it, and its own open files."""
    held, files = 0.0, 0
    try:
        process = psutil.Process(pid)
        files = process.num_fds()
        for each in (process, *process.children(recursive=True)):
            held += each.memory_info().rss / MIB
    except psutil.Error:
        pass  # one of them has just ended
    return held, files


def tenths(samples: Sequence[tuple[float, float, int, int]], most: int) -> list[dict[str, float]]:
    """Peak memory, open files and seconds by tenths of the progress."""
    rows = []
    for k in range(10):
        inside = [one for one in samples if k * most / 10 <= one[3] < (k + 1) * most / 10]
        if inside:
            done = inside[-1][3] - inside[0][3] or 1
            rows.append({
                "tenth": k + 1, "peak_mib": round(max(one[1] for one in inside), 1),
                "files": max(one[2] for one in inside), "s_a_scan": round((inside[-1][0] - inside[0][0]) / done, 3),
            })  # fmt: skip
    return rows


def write_ct(folder: Path, case: str, size: Sequence[int], seed: int) -> None:
    """A phantom as a CT of any size, with noise and a round field of view, and its label map."""
    sys.path.append(str(ROOT))  # behind the checkout that is measured
    from stages.data.phantoms import make_phantom

    small, small_label = make_phantom(np.random.default_rng([77, seed]), "LPS")
    extent = np.array(small.GetSize()) * small.GetSpacing()
    grid = sitk.Image([int(n) for n in size], sitk.sitkUInt8)
    spacing = extent / size
    grid.SetSpacing(spacing.tolist())
    corner = (spacing / 2 - np.array(small.GetSpacing()) / 2) / small.GetSpacing()
    grid.SetOrigin(small.TransformContinuousIndexToPhysicalPoint(corner.tolist()))
    grid.SetDirection(small.GetDirection())
    image = sitk.GetArrayFromImage(sitk.Resample(small, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkInt16))
    image = (image.astype(np.float32) * ((HU[1] - HU[0]) / float(image.max())) + HU[0]).astype(np.int16)
    noise = np.random.default_rng(seed).integers(-12, 13, image[0].shape).astype(np.int16)
    for number, plane in enumerate(image):
        plane += np.roll(noise, 37 * number, 1)
    label = sitk.Resample(small_label, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt16)
    scan = sitk.GetImageFromArray(image)
    scan.CopyInformation(grid)
    scale = 10.0  # a phantom is 5 cm long
    for kind, volume in (("images", scan), ("labels", label)):
        volume.SetSpacing([scale * mm for mm in volume.GetSpacing()])
        volume.SetOrigin([scale * mm for mm in volume.GetOrigin()])
        (folder / kind).mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(volume, str(folder / kind / f"{case}.nii.gz"), useCompression=True, compressionLevel=1)


def digests(workspace: Path) -> dict[str, str]:
    """Of everything that was made, by content."""
    manifests = sorted(workspace.glob("**/v0*/artifact.json"))
    read = [(file.parent, json.loads(file.read_text(encoding="utf-8"))) for file in manifests]
    return {
        folder.relative_to(workspace).as_posix(): about["digest"]
        for folder, about in read
        if about["identity"]["kind"] != "plan"  # which hold what was measured
    }


def files_in(folder: Path) -> dict[str, str]:
    files: Iterable[Path] = sorted(folder.glob("[!.]*.*")) if folder.is_dir() else ()
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.suffix != ".png"}


def opens(page: Path) -> dict[str, Any]:
    """What a browser without a network makes of a page: seconds to its table, rows in it, and errors."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        return {"browser": "none"}
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as browser:
        began = time.monotonic()
        browser.get(page.resolve().as_uri())
        rows = browser.execute_script("return document.querySelectorAll('tbody tr').length")
        took_s = time.monotonic() - began
        told = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return {"browser": Path(chromium).name, "s": round(took_s, 2), "rows": rows, "errors": len(told)}
