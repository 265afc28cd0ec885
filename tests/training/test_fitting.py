"""Memory: what cannot fit is refused before it takes any, and an error for lack of it is one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Project

from stages.config import PreprocessSettings
from stages.cores import available_cores, shares
from stages.data.grid import derive_grid
from stages.device import Device
from stages.errors import LrlsError
from stages.memory import available_bytes, is_out_of_memory, limit_memory
from stages.methods import METHODS, plan_of, training_of
from stages.training.fitting import kept_bytes
from stages.training.runs import SECTION
from stages.workflow import opened_cohort

pytestmark = pytest.mark.usefixtures("no_pictures")
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, new_project) -> Project:
    project = new_project(tmp_path_factory.mktemp("prepared"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.pictures.couples_page", lambda _, path, **__: path.write_bytes(b""))
        project.made("preprocess")
    return project


def line_of(project: Project, *command: str) -> str:
    done = project.lrls(*command)
    assert done.code == 1, done
    assert "Traceback" not in done.err
    return done.err.splitlines()[-1].removeprefix("lrls: ")


def test_a_batch_that_cannot_fit_is_refused_with_one_that_should(prepared, monkeypatch):
    monkeypatch.setattr(Device, "free_bytes", lambda _: 2_000_000_000)
    line = line_of(prepared, "train-seg", "--method", "unet", "--set", "train_seg.batch_size=100000")
    assert line.startswith("a batch of 100000 on a grid of 24 x 16 x 24 voxels needs ")
    assert "2 GB are free; set train_seg.batch_size to " in line
    fits = int(line.partition("batch_size to ")[2].partition(",")[0])
    assert 50 < fits < 5000
    assert not list(prepared.workspace.glob("unet/segmentation/v*"))


def test_a_grid_that_cannot_fit_is_refused_with_one_that_should(prepared, monkeypatch):
    monkeypatch.setattr(Device, "free_bytes", lambda _: 1_000_000)
    line = line_of(prepared, "train-seg", "--method", "unet", "--set", "train_seg.batch_size=1")
    assert line.startswith("a batch of 1 on a grid of 24 x 16 x 24 voxels needs ")
    assert "set preprocess.shape to [16, 16, 16], which should fit." in line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_memory_that_runs_out_is_told_with_batch_and_grid_and_the_checkpoint_is_kept(error, prepared, monkeypatch):
    from stages.training import loop

    real, moves = loop._move, []

    def fail(*arguments: object) -> object:
        moves.append(arguments)
        if len(moves) == 4:
            raise error
        return real(*arguments)

    command = ("train-seg", "--method", "unet", "--set", f"seed={len(str(error))}", "--set", "train_seg.batch_size=2")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_move", fail)
        line = line_of(prepared, *command)
    assert line == (
        "training stopped: not enough memory in labelled for a batch of 2 on a grid of 24 x 16 x 24 voxels; "
        "set train_seg.batch_size to 1, which takes half as much. With more memory, the same command resumes at the "
        "last checkpoint."
    )
    assert list(prepared.workspace.glob("unet/segmentation/.draft-*/resume/training.pt"))
    prepared.made(*command)


def test_memory_that_runs_out_elsewhere_is_one_line_too(prepared, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("stages.workflow.preprocess", fail)
    line = line_of(prepared, "run", "--method", "unet")
    assert line.startswith("not enough memory; set a smaller batch_size")


def test_an_error_that_is_none_of_memory_stays_what_it_is():
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("method", ["unet", "voxelmorph", "brbs", "best", "sst", "ist"])
def test_what_a_method_keeps_is_measured_without_a_change_of_random_numbers(method, prepared):
    config, cohort = prepared.config, opened_cohort(prepared.config, "train")
    before = torch.get_rng_state()
    for number, step in plan_of(METHODS[method], config, cohort).training_steps()[:2]:
        batch_size = training_of(METHODS[method], config, SECTION[step.makes]).batch_size
        kept = kept_bytes(step, cohort, config, METHODS[method], batch_size, number)
        assert len(kept) == len(step.phases)
        assert all(10 < number_of_bytes < 10_000 for number_of_bytes in kept), kept
    assert torch.equal(before, torch.get_rng_state())


def grid(box_mm: float, **settings: object) -> tuple[int, int, int]:
    box = ([0.0] * 3, [box_mm] * 3)
    made = derive_grid(PreprocessSettings(margin_mm=0, **settings), box, IDENTITY, (1.0,) * 3, (0.0,) * 3)
    return made.shape


def test_the_fewest_voxels_end():
    assert grid(500.0, max_voxels=16**3) == (16, 16, 16)
    assert np.prod(grid(500.0, max_voxels=100_000)) <= 100_000


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [({"spacing_mm": 1e-30}, "preprocess.spacing_mm to "), ({"spacing_mm": 0.001}, "preprocess.spacing_mm to "),
     ({"shape": (10**6, 10**6, 10**6)}, "preprocess.shape to [")],
)  # fmt: skip
def test_a_grid_of_which_no_scan_fits_is_refused(settings, remedy):
    with pytest.raises(LrlsError, match=r"GB of memory for one scan, .* GB are free; set ") as error:
        grid(200.0, **settings)
    assert remedy in str(error.value)


def test_the_machine_says_how_much_there_is():
    assert available_cores() >= 1
    assert available_bytes() is None or available_bytes() > 10**6


def test_systems_without_an_affinity_of_cores_work(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, [1.5]),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, [0.5]),
        ({"proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/docker/7\n0::/\n",  # a path that the container does not see
          "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, [3.0]),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_a_containers_share_of_the_processor_is_known(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(shares(tmp_path)) == expected


def test_cores_are_as_many_as_the_share_allows(monkeypatch):
    monkeypatch.setattr("stages.cores.shares", lambda: iter([0.5, 3.0]))
    assert available_cores() == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_process_gets_an_error_in_place_of_all_memory(monkeypatch):
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr("stages.memory.available_bytes", lambda: 200_000_000)
    try:
        limit_memory()
        with pytest.raises(RuntimeError) as error:
            torch.empty(10**9)
        assert is_out_of_memory(error.value)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
