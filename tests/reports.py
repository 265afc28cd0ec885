"""A report of two methods on a tiny cohort, one of whose scans and structures have names that attack a page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import CASES, Project, draw_no_pictures, work_here

from stages.data.phantoms import STRUCTURES

HOSTILE = "=1+1 <img src=x onerror=document.title='owned'>'\"&"
STRUCTURE = "</script><script>document.title='owned'</script>"


@dataclass(frozen=True)
class Made:
    project: Project
    folder: Path

    @property
    def index(self) -> str:
        return (self.folder / "index.html").read_text(encoding="utf-8")


def made(scans: Path, new_project: Callable[..., Project], folder: Path) -> Made:
    """The report; `affine` and `unet` run for it."""
    for kind in ("images", "labels"):
        (folder / "scans" / kind).mkdir(parents=True)
        for case in CASES:
            name = HOSTILE if case == "test_2" else case
            shutil.copy(scans / kind / f"{case}.nii.gz", folder / "scans" / kind / f"{name}.nii.gz")
    project = new_project(
        folder, data={"folder": str(folder / "scans"), "test": ["test_1", HOSTILE, "dev_1"], "dev": []},
        train_seg={"steps": 1}, methods={"unet": {"segmentation_network": "light"}},
    )  # fmt: skip
    settings = yaml.safe_load(project.config_file.read_text(encoding="utf-8"))
    settings["structures"] = {STRUCTURE if k == 0 else s: v for k, (s, v) in enumerate(STRUCTURES.items())}
    project.config_file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        draw_no_pictures(patch)
        work_here(patch)
        project.made("run", "--method", "affine")
        project.made("run", "--method", "unet", "--report", str(folder / "alone"))
        project.made("report", "--method", "affine", "--method", "unet", "--out", str(folder / "out"))
    return Made(project, folder / "out")
