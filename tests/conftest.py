"""A tiny synthetic cohort, and the commands as a user types them, run in this process."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml

from lrls_cli.main import main
from stages.artifacts.digests import digest_of
from stages.artifacts.manifest import MANIFEST, SEAL, Manifest, read_manifest
from stages.artifacts.store import history, versions
from stages.config import Config, load_config
from stages.cores import available_cores
from stages.data.phantoms import ORIENTATIONS, STRUCTURES, make_phantom
from stages.parts import losses
from stages.planning.choosing import Cost, GridOption, Measured

collect_ignore = [] if "LRLS_ON_A_GPU" in os.environ else ["gpu"]  # `test_gpu.py` runs them in a process of their own

MOST_PROCESSES = 8  # for tests: the longest file takes longer than an eighth of all
NAMES = ("light", "full", "brbs")  # of segmentation networks
CASES = ("atlas_1", "atlas_2", "free_1", "free_2", "dev_1", "test_1", "test_2")
SETTINGS = {
    "workspace": "runs",
    "data": {
        "atlases": ["atlas_1"],
        "unlabeled": ["free_1", "free_2"],
        "supervised": ["atlas_2", "free_1"],
        "dev": ["dev_1"],
        "test": ["test_1", "test_2"],
    },
    "structures": STRUCTURES,
    "threads": 1,
    "preprocess": {"align": "none", "spacing_mm": 2.0, "shape": [24, 16, 24], "workers": 1},
    "train_reg": {"steps": 4, "checkpoint_steps": 2},
    "train_seg": {"steps": 4, "checkpoint_steps": 2},
    "methods": {
        "brbs": {"registration_network": "light", "segmentation_network": "light"},
        "voxelmorph": {"registration_network": "light"},
        "data-aug": {"registration_network": "light", "segmentation_network": "light", "appearance_share": 0.5},
        "vae-aug": {"preset": "light", "samples": 3, "autoencoder_share": 0.25, "appearance_share": 0.25},
        "lc-voxelmorph": {"registration_network": "light"},
        "os-medseg": {"registration_network": "light", "segmentation_network": "light"},
        "lt-net": {"registration_network": "light", "backward_network": "own"},
        "sst": {"registration_network": "light", "segmentation_network": "light", "samples": 3}
        | {"style_batch_size": 2, "queue": 8, "flow_share": 0.25, "style_share": 0.25, "autoencoder_share": 0.25},
        "jrss": {"rounds": 2, "round_share": 1.0, "threshold": 0.2},
        "deep-atlas": {"registration_network": "light", "segmentation_network": "light"},
        "rsegnet": {"registration_network": "light", "segmentation_network": "light"},
        "ist": {"preset": "light"},
        **{name: {"preset": "light"} for name in ("deep-rs", "pc-reg-rt", "ua-mt", "cps", "massl")},
        "transmorph": {"preset": "light"},
        "pdd-net": {"preset": "light"},
        "bspline": {"iterations": 2, "samples": 1000},
        "syn": {"reg_iterations": [2, 1, 0]},
        "mabmis": {"most_scans": 2, "along_iterations": [2, 1], "refine_iterations": [1, 1]},
        "greedy": {"iterations": [2, 1, 0]},
    },
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes of `-n auto`: one a core, of those that this process may use."""
    return min(available_cores(), MOST_PROCESSES)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """A folder with a configuration file; its workspace is `runs` beside it."""

    folder: Path

    @property
    def workspace(self) -> Path:
        return self.folder / "runs"

    @property
    def config_file(self) -> Path:
        return self.folder / "lrls.yaml"

    @property
    def config(self) -> Config:
        return load_config(self.config_file)

    def lrls(self, command: str, *arguments: str) -> Done:
        """`lrls COMMAND lrls.yaml ARGUMENTS`; an error that users would see as a traceback is raised."""
        out, err = io.StringIO(), io.StringIO()
        argv = ["lrls", command, str(self.config_file), *arguments]
        with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", argv):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        return Done(code, out.getvalue(), err.getvalue())

    def made(self, command: str, *arguments: str) -> Done:
        """As `lrls`, for a command that must succeed."""
        done = self.lrls(command, *arguments)
        assert done.code == 0, done.err
        return done

    def versions(self, target: str) -> list[str]:
        """Names of the finished versions of a target such as "brbs/scores"."""
        return [folder.name for folder in versions(self.workspace / target)]

    def manifest(self, target: str, version: str = "v0001") -> Manifest:
        return read_manifest(self.workspace / target / version)

    def digests(self) -> dict[str, str]:
        """Content digest of every artifact of the workspace but plans, which hold what was measured."""
        return {
            folder.relative_to(self.workspace).as_posix(): manifest.digest
            for folder, manifest in history(self.workspace)
            if manifest.identity.kind != "plan"
        }


def resealed(folder: Path, **changes: Any) -> Path:
    """An artifact with other values in its `artifact.json`, by someone who makes the seal right again."""
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) | changes
    values.pop(SEAL)
    (folder / MANIFEST).write_text(json.dumps(values | {SEAL: digest_of(values)}), encoding="utf-8")
    return folder


def aged(folder: Path, **unknown: Any) -> Path:
    """An artifact as if the format before its own had been written."""
    identity = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["identity"]
    return resealed(folder, identity=identity | {"format_version": identity["format_version"] - 1}, **unknown)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the changes on top."""
    both = {
        key: merged(base[key], value) if isinstance(base.get(key), dict) and isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return {**base, **both}


def write_scans(folder: Path) -> Path:
    """images/ and labels/ of `CASES`, round one centre; unlabelled scans have label maps too, which nothing may use."""
    for number, case in enumerate(CASES):
        pair = make_phantom(np.random.default_rng([11, number]), ORIENTATIONS[number])
        middle = [(n - 1) / 2 for n in pair[0].GetSize()]
        centre_mm = np.array(pair[0].TransformContinuousIndexToPhysicalPoint(middle))
        for kind, image in zip(("images", "labels"), pair, strict=True):
            image.SetOrigin((np.array(image.GetOrigin()) - centre_mm).tolist())
            (folder / kind).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(folder / kind / f"{case}.nii.gz"), useCompression=True)
    return folder


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny cohort of seven scans; tests only read it."""
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="session")
def new_project(scans: Path) -> Callable[..., Project]:
    """Writes `lrls.yaml` into a folder: `new_project(folder, seed=1, preprocess={"align": "affine"})`."""

    def write(folder: Path, **changes: Any) -> Project:
        folder.mkdir(parents=True, exist_ok=True)
        settings = merged(merged(SETTINGS, {"data": {"folder": str(scans)}}), changes)
        (folder / "lrls.yaml").write_text(yaml.safe_dump(settings))
        return Project(folder)

    return write


@pytest.fixture
def project(tmp_path: Path, new_project: Callable[..., Project]) -> Project:
    """A project with an empty workspace."""
    return new_project(tmp_path)


def work_here(patch: pytest.MonkeyPatch) -> None:
    """Cases are worked on in this process, which tests can patch; starting others takes longer than a tiny cohort."""

    def each(_: object, function: Callable[..., Any], arguments: list[tuple], **_broken: Any) -> Iterator[Any]:
        yield from (function(*case) for case in arguments)

    patch.setattr("stages.processes.Processes.each", each)


@pytest.fixture(scope="session")
def made_report(scans: Path, new_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A report of two methods; see `reports`. Tests only read it."""
    import reports

    return reports.made(scans, new_project, tmp_path_factory.mktemp("report"))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """A test draws the same numbers whatever ran before it: which files share a process is left to chance."""
    torch.manual_seed(0)


MADE_UP = Measured(
    grids=(GridOption((2.0, 2.0, 2.0), (24, 16, 24)),),
    align_s=0.01, couple=Cost(0.0, 1e-7),
    step={name: Cost(0.0, seconds) for name, seconds in {"light": 1e-7, "full": 1.0, "brbs": 1.0}.items()},
    step_bytes=dict.fromkeys(NAMES, 1.0), scans=2, way="cpu, fp32, 1 threads",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def made_up_costs() -> Iterator[None]:
    """Nothing is timed for plans and devices, in workspaces that tests share neither: that takes seconds in each."""

    def measure(config: Config, *_: object, **__: object) -> Measured:
        return replace(MADE_UP, scans=len(config.part("unlabeled")), atlases=len(config.part("atlases")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.planning.plans.measure", measure)
        patch.setattr("stages.speed._measured", lambda ways: ways[0])
        yield


PICTURES = (
    "couples_page", "degrees_page", "loss_curves", "next_scans_page", "overlay_page", "panels_page", "points_plot",
    "predictions_page", "registration_overlay", "rounds_page", "score_boxes", "side_by_side_page", "suggestion_page",
    "sweep_page",
)  # fmt: skip


def draw_no_pictures(patch: pytest.MonkeyPatch) -> None:
    """Files without a picture in place of pictures, which take longer than everything else on a tiny cohort."""

    def picture(*shown: object, **__: object) -> None:
        path = shown[-1]
        assert isinstance(path, Path)
        path.write_bytes(b"picture")

    for name in PICTURES:
        patch.setattr(f"stages.pictures.{name}", picture)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_no_pictures(monkeypatch)


@pytest.fixture(scope="module")
def no_pictures_in_module() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        draw_no_pictures(patch)
        yield


def goes_on_after_a_fault(
    project: Project, patch: pytest.MonkeyPatch, *, method: str, stage: str, kind: str, term: str, player: str
) -> None:
    """A stage whose third value of a term is not a number stops, and ends with the files of one that never stopped.

    Args:
        kind: of the artifact that the stage makes.
        term: name in `stages.parts.losses` of what goes wrong.
        player: whose loss it is part of.
    """
    project.made("run", "--method", method, "--until", stage)
    real, calls = getattr(losses, term), []

    def third_is_nan(*tensors: Any, **options: Any) -> Any:
        calls.append(term)
        return real(*tensors, **options) * (float("nan") if len(calls) == 3 else 1.0)

    with patch.context() as broken:
        broken.setattr(losses, term, third_is_nan)
        done = project.lrls(stage, "--method", method, "--force")
    assert "lrls: training stopped: " in done.err and f"of {player} is nan at step" in done.err
    project.made(stage, "--method", method, "--force")
    made = f"{method}/{kind}"
    assert project.versions(made) == ["v0001", "v0002"]
    assert len({project.manifest(made, version).digest for version in ("v0001", "v0002")}) == 1
