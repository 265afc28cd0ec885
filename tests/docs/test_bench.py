"""The speed benchmark compares like with like, and what was made fast equals torch's plain operators."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.losses import box_sum
from stages.parts.networks.blocks import normalise_and_rectify

BENCHMARKS = Path(__file__).parents[2] / "docs" / "benchmarks"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("seed", "steps"), [(0, 2), (4, 1), (6, 1)])  # pairs (U2, U1), (A, U1), (A, U2) in step 1
def test_plain_and_our_step_compute_the_same_loss_terms(seed: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import brbs_step

    # A second step sees weights that the first one moved, so gradients and optimisers agree as well.
    assert brbs_step.largest_difference((24, 32, 24), 3, seed=seed, steps=steps) < 1e-3


def test_the_step_of_best_that_is_timed_learns_and_its_profile_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import best_step

    monkeypatch.setattr(best_step, "SHAPE", (24, 32, 24))
    step = best_step.make_best("light")
    first, *_, last = (float(step()["overlap"]) for _ in range(12))
    assert last < first
    assert best_step.flops(step) > 1e9
    assert sum(best_step.shares(step).values()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_gradient_of_normalise_and_rectify_is_right(groups: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, 8).double()
    weight, bias = torch.randn(2, 8, dtype=torch.float64)
    x = (torch.randn(2, 8, 2, 3, 2, dtype=torch.float64) + 1).contiguous(memory_format=layout)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        norm.weight, norm.bias = weight, bias
        return normalise_and_rectify(x, norm, 0.2)

    del norm.weight, norm.bias  # plain tensors in their place
    assert torch.equal(function(x, weight, bias), F.leaky_relu(F.group_norm(x, groups, weight, bias), 0.2))
    assert torch.autograd.gradcheck(function, tuple(t.requires_grad_() for t in (x, weight, bias)))


def test_bfloat16_gradient_of_normalise_and_rectify_is_as_exact_as_torchs() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 16)
    shape = (2, 16, 12, 10, 14)
    x, gradient = (t.bfloat16().contiguous(memory_format=torch.channels_last_3d) for t in torch.randn(2, *shape) + 0.5)

    def derivative(function: object, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        function(x).backward(gradient.to(x.dtype))  # type: ignore[operator]
        assert x.grad is not None
        return x.grad.double()

    plain = lambda x: F.leaky_relu(norm(x), 0.2)  # noqa: E731
    exact = derivative(plain, x.float())
    ours, torchs = derivative(lambda x: normalise_and_rectify(x, norm, 0.2), x), derivative(plain, x)
    assert (ours - exact).norm() < 1.5 * (torchs - exact).norm()


def test_box_sum_equals_a_dense_convolution() -> None:
    image = torch.rand(2, 5, 12, 10, 14)
    dense = F.conv3d(image.double().flatten(0, 1)[:, None], torch.ones(1, 1, 9, 9, 9, dtype=torch.float64), padding=4)

    torch.testing.assert_close(box_sum(image, 9).double(), dense.view_as(image), atol=1e-3, rtol=0)


def test_steps_of_every_stage_of_a_method_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import method_steps

    monkeypatch.setattr(method_steps, "GRIDS", {"tiny": ((12, 16, 12), 3)})
    light = {"registration_network": "light", "segmentation_network": "light"}
    assert light in list(method_steps.variants(method_steps.METHODS["os-medseg"], light_only=True))
    rows = [method_steps.measure_one("os-medseg", light, "tiny", place, repeats=1) for place in range(3)]
    assert [(row["stage"], row["batch_size"]) for row in rows] == [
        ("train_reg", 2),
        ("train_seg", 2),  # the teacher alone, then the student
        ("train_seg", 2),
    ]
    assert all(row["seconds"] > 0 and row["peak_memory_mib"] > 0 for row in rows)
    rounds = method_steps.phases(method_steps.prepared("jrss", light, "tiny")[1])
    assert [number for number, _, _ in rounds] == [0, 0, 1, 1]
    student = method_steps.measure_one("jrss", light, "tiny", 3, repeats=1)
    assert (student["round"], student["stage"]) == (1, "train_seg")
    found = {
        "phases": [*rows, student],
        "grid": "tiny",
        "repeats": 1,
        "threads": 1,
        "torch": "",
        "processor": {"model": "", "flags": []},
    }
    assert method_steps.table(found).count(", round 1 |") == 1
    assert method_steps.table(found).count("os-medseg") == 3


GPU = str(BENCHMARKS / "gpu.py")


def test_the_gpu_benchmark_writes_down_what_its_parts_print(tmp_path: Path) -> None:
    tiny = ["--shape", "16", "12", "12", "--pairs", "1", "2", "--descent", "1", "1", "--repeats", "1"]
    command = [sys.executable, GPU, "--device", "cpu", "--part", "pairs", *tiny, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pairs = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"]["pairs"]
    assert pairs["ended"] == "whole"
    assert [row["pairs at once"] for row in pairs["rows"]] == [1, 2]
    assert all(row["seconds"] > 0 and row["peak MiB"] > 0 for row in pairs["rows"])
    for text in (done.stdout, (tmp_path / "gpu.md").read_text(encoding="utf-8")):
        assert "| 2 | 16x12x12 |" in text


def test_the_gpu_benchmark_takes_the_plain_step_and_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import gpu

    rows = list(gpu.steps(SimpleNamespace(device="cpu", shape=(8, 8, 8), repeats=1)))
    assert [row["step"] for row in rows] == ["plain fp32", "lrls fp32"]
    assert all(row["seconds"] > 0 and row["peak MiB"] > 0 for row in rows)


def test_a_part_of_the_gpu_benchmark_that_hangs_is_stopped_and_one_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import gpu

    child = tmp_path / "child.py"
    monkeypatch.setattr(gpu, "__file__", str(child))
    child.write_text("print('{\"n\": 1}', flush=True); import time; time.sleep(60)", encoding="utf-8")
    stopped = gpu.run_part("pairs", 5.0)
    assert (stopped["ended"], stopped["rows"]) == ("stopped after 5 s", [{"n": 1}])
    child.write_text("print('{\"n\": 1}'); raise SystemExit('no luck')", encoding="utf-8")
    failed = gpu.run_part("pairs", 60.0)
    assert (failed["ended"], failed["rows"]) == ("failed: no luck", [{"n": 1}])
