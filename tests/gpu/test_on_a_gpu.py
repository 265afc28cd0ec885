"""On a GPU: no tensor of the CPU meets one of the GPU, answers are the CPU's, and steps do not wait without need.

Where there is no GPU, it is a pretended one (`pretended_gpu.py`), whose numbers are the CPU's.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pretended_gpu import NAME, Generator, PretendedGpu
from recipes import SHAPE, built, config, textured
from test_methods import recipe_of, scans_for

from stages.answering import registering
from stages.answering.answers import Answering, Atlas, GridScan
from stages.answering.registering import displacements, pairs_at_once
from stages.artifacts.cohort import Grid
from stages.device import Device
from stages.methods import METHODS, training_of
from stages.parts.augmentation import AUGMENTATIONS
from stages.parts.batches.drawing import Draw
from stages.parts.instance import InstanceOptimisation
from stages.training import loop
from stages.training.runs import SECTION

CPU = Device(torch.device("cpu"), torch.float32)
DRAWING = ("parts/batches/", "parts/augmentation.py")  # what a batch holds is decided on the host


IS_REAL = torch.cuda.is_available()


@pytest.fixture
def gpu() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with nullcontext(SimpleNamespace(waits=Counter())) if IS_REAL else PretendedGpu() as entered:
        yield entered
    torch.set_num_threads(threads)


@pytest.fixture
def device(gpu) -> Device:
    return Device(torch.device("cuda" if IS_REAL else NAME, 0), torch.float32)


def generator() -> torch.Generator:
    return torch.Generator("cuda") if IS_REAL else Generator()


def on(device, data):
    """Scans in the memory of a device, as `scans_to_learn_from` puts them there."""
    to = device.torch
    pseudo = data.pseudo and {
        place: replace(each, label=each.label.to(to), trusted=each.trusted.to(to), accepted=each.accepted.to(to))
        for place, each in data.pseudo.items()
    }
    labels = {place: label.to(to) for place, label in data.labels.items()}
    return replace(data, images=data.images.to(to), labels=labels, pseudo=pseudo)


@pytest.mark.parametrize("name", METHODS)
def test_steps_of_every_method_stay_on_the_gpu(name, gpu, device):
    recipe, data = recipe_of(name), on(device, scans_for(name))
    for _, step in (each for each in recipe.training_steps() if each[0] <= 1):
        for network in (*recipe.networks.values(), *step.as_before.values()):
            network.to(device.torch)
        numbers = training_of(METHODS[name], config(), SECTION[step.makes])
        for phase in step.phases:
            draw = Draw(phase.batch_size or numbers.batch_size, *AUGMENTATIONS[numbers.augmentation], generator())
            batch = phase.batches(data, draw)
            gpu.waits.clear()
            for player in phase.players:
                terms = loop._move(player, loop._optimizer(player, numbers), phase, batch, device, 1, 10)
                assert all(term.device.type == device.torch.type for term in terms.values())
            needless = {line for line in gpu.waits if not line.startswith(DRAWING)}
            assert len(needless) <= 1, needless  # those that choose rows: which images have a label


def test_a_batch_of_best_is_drawn_with_few_waits(gpu, device):
    recipe, data = recipe_of("best"), on(device, scans_for("best"))
    ((_, step),) = recipe.training_steps()
    phase = step.phases[-1]
    phase.batches(data, Draw(2, *AUGMENTATIONS["strong"], Generator()))
    gpu.waits.clear()
    phase.batches(data, Draw(2, *AUGMENTATIONS["strong"], Generator()))
    assert sum(gpu.waits.values()) <= 2 * 2 + 1, gpu.waits  # which couples and styles, and how much each is blurred


def pairs(count):
    return [(textured(*SHAPE, seed=k).numpy(), textured(*SHAPE, seed=k + 1).numpy()) for k in range(count)]


def test_pairs_are_registered_in_batches_and_as_on_the_cpu(gpu, device, monkeypatch):
    registers, images = InstanceOptimisation(3, 2, levels=2), pairs(3)
    monkeypatch.setattr(registering, "MOST_PAIRS", 2)
    numbers = config()
    found = dict(displacements(registers, images, "abc", spacing_mm=(1, 1, 1), device=device, config=numbers))
    assert sorted(found) == [0, 1, 2]
    waits = sum(gpu.waits.values())
    for place, (moving, fixed) in enumerate(images):
        alone = registering.on_arrays(registers, 0, moving, fixed)[1]
        assert np.abs(found[place] - alone).mean() < (0.1 if IS_REAL else 1e-6)  # voxels
    steps = 2 * (2 * 3 + 2)  # two batches; on the coarser level from two starts
    assert waits < 5 * steps  # one a step, for the number of squarings, and those of starts, ends and folds


def test_half_as_many_pairs_are_tried_where_memory_runs_out(gpu, device):
    tried = []

    class Greedy(InstanceOptimisation):
        def __call__(self, moving, fixed):
            tried.append(len(moving))
            if len(moving) > 1:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return moving.repeat(1, 3, 1, 1, 1)

    found = dict(displacements(Greedy(), pairs(4), "abcd", spacing_mm=(1, 1, 1), device=device, config=config()))
    assert tried == [4, 2, 1, 1, 1, 1] and sorted(found) == [0, 1, 2, 3]


@pytest.mark.parametrize(("free", "expected"), [(10**6, 1), (10**9, 1), (3 * 10**9, 3), (10**12, 12)])
def test_a_batch_of_pairs_is_as_large_as_memory_allows(free, expected, monkeypatch):
    monkeypatch.setattr(Device, "free_bytes", lambda self: free)
    image = np.broadcast_to(np.float16(0), (144, 144, 128))
    assert pairs_at_once(Device(torch.device("cuda"), torch.float32), image) == expected
    assert pairs_at_once(CPU, image) == 1


def test_answers_of_best_on_the_gpu_are_those_on_the_cpu(gpu, device):
    images = [textured(*SHAPE, seed=k).numpy() for k in range(3)]
    label = (images[0] > 0.5).astype(np.uint8) + (images[0] > 0.8)
    answers = {}
    for where in (CPU, device):
        answer_by = built("best", segmentation_network="light", coarse_steps=3, fine_steps=1).answer
        grid = Grid(SHAPE, (1.0, 1.0, 1.0), (0.0,) * 3, (1.0,) * 9)
        atlases = [Atlas(str(k), images[k], label) for k in (0, 1)]
        answering = Answering(answer_by, grid, 3, atlases, [], True, config(), where)
        scans = [GridScan("c", images[2], {})]
        answers[where.torch.type] = [each.probabilities.cpu() for each in answering.answers(scans)]
    for on_cpu, on_gpu in zip(*answers.values(), strict=True):
        assert (on_gpu - on_cpu).abs().mean() < (0.02 if IS_REAL else 1e-6)
