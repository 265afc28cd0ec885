"""Commands on a GPU, where there is none a pretended one: they end, and predict what they predict on the CPU."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from pretended_gpu import NAME, Generator, PretendedGpu

# Whatever chooses a device is imported before that is replaced.
import stages.answering.model
import stages.evaluate
import stages.generate
import stages.planning.plans
import stages.training.budget
import stages.training.loop
import stages.training.runs
import stages.workflow
from stages.config import Config
from stages.device import Device
from stages.parts.together import Stream


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`device: cuda` means the pretended one, unless there is a real one."""
    if torch.cuda.is_available():
        return

    class AnyGenerator(torch.Generator):
        def __new__(cls, device: object = "cpu") -> torch.Generator:  # type: ignore[misc]
            return Generator() if torch.device(device).type == NAME else super().__new__(cls, device)  # type: ignore[call-overload]

    def choose(config: Config) -> Device:
        torch.set_num_threads(1)
        return Device(torch.device(*(["cpu"] if config.device == "cpu" else [NAME, 0])), torch.float32)

    class OnGpu(Stream):
        device = property(lambda self: torch.device(NAME, 0))

    monkeypatch.setattr(torch, "Generator", AnyGenerator)
    monkeypatch.setattr(stages.training.loop, "Stream", lambda place: OnGpu() if place.type == NAME else Stream(place))
    for name, module in list(sys.modules.items()):
        if name.startswith("stages") and hasattr(module, "choose_device"):
            monkeypatch.setattr(module, "choose_device", choose)


def test_best_is_trained_on_the_gpu_and_answers_there_as_on_the_cpu(
    project, scans, on_gpu, in_this_process, no_pictures
):
    maps = {}
    with nullcontext() if torch.cuda.is_available() else PretendedGpu() as gpu:
        small = ("--set", "methods.best.segmentation_network=light", "--set", "methods.best.coarse_steps=0")
        words = ("--method", "best", *small, "--set", "device=cuda")
        for command in ("run", "calibrate"):
            assert (done := project.lrls(command, *words)).code == 0, done.err
        for where in ("cuda", "cpu"):
            scan, out = str(scans / "images" / "test_1.nii.gz"), project.folder / where
            done = project.lrls("predict", *words, "--set", f"device={where}", scan, "--out", str(out))
            assert done.code == 0, done.err
            (file,) = out.rglob("test_1*.nii.gz")
            maps[where] = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    for room in ("training/loop.py", "answering/registering.py", "calibrate.py"):
        assert gpu is None or any(line.startswith(room) for line in gpu.waits), gpu.waits  # it ran there
    assert np.mean(maps["cuda"] == maps["cpu"]) > 0.999
