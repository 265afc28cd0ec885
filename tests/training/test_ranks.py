"""Several processes that share every batch train as one process does: gradients, losses, random draws, checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Project, draw_no_pictures
from recipes import SHAPE, built, config, generator, textured
from torch import Tensor, nn

from stages import ranks
from stages.artifacts.store import Draft
from stages.device import Device
from stages.errors import LrlsError
from stages.methods import METHODS, training_of
from stages.methods.phases import Phase
from stages.methods.recipe import Train
from stages.parts.batches.drawing import Draw
from stages.parts.batches.half_labelled import labelled_and_unlabeled
from stages.parts.batches.pseudo_labels import PseudoLabel
from stages.parts.batches.scans import Scans
from stages.parts.together import Stream
from stages.training import loop
from stages.training.loop import Run, train
from stages.training.runs import SECTION

NAMES = ["a", "b", "u1", "u2", "u3", "u4"]


def cpu() -> Device:
    return Device(torch.device("cpu"), torch.float32)


class Bank:
    couples = tuple((atlas, scan) for atlas in (0, 1) for scan in (2, 3, 4, 5))

    def displacement(self, couple: int) -> Tensor:
        return textured(3, *SHAPE, seed=couple) - 0.5

    def style(self, couple: int) -> Tensor:
        return 0.1 * textured(1, *SHAPE, seed=couple)


def scans() -> Scans:
    """Two atlases, of which one lacks a structure, and four scans; everything that any method learns from."""
    label = torch.randint(3, SHAPE, generator=generator()).short()
    labels = {0: label, 1: label.flip(0).clamp(max=1)}
    couples = [
        SimpleNamespace(image=textured(1, *SHAPE, seed=n), label=label.flip(n % 3), scan=NAMES[n], atlas=NAMES[n % 2])
        for n in (2, 3, 4, 5)
    ]
    pseudo = {
        n: PseudoLabel(label.flip(n % 3), textured(*SHAPE, seed=n) > 0.3, torch.tensor([True, True, n % 2 == 0]))
        for n in (2, 3, 4, 5)
    }
    images = textured(6, 1, *SHAPE).half()
    return Scans(NAMES, images, labels, [0, 1], [2, 3, 4, 5], 3, (1.0, 1.0, 1.0), Bank(), couples, pseudo)


@contextmanager
def alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "1")
        patch.setattr(ranks, "is_joined", lambda: False)
        yield


def run_of(name: str, step: Train, networks: dict[str, nn.Module], folder: Path, **settings: Any) -> Run:
    given = training_of(METHODS[name], config(), SECTION[step.makes])
    given = given.model_copy(update={"batch_size": 4, "augmentation": "strong", **settings})
    phases = [replace(phase, batch_size=phase.batch_size and 4) for phase in step.phases]
    return Run(phases, networks, scans(), given, cpu(), 3, Draft(folder))


def steps_of(name: str, **settings: Any) -> Iterator[tuple[Train, dict[str, nn.Module]]]:
    """Steps that train, with all networks; later rounds are as the first one."""
    recipe = built(name, atlases=2, **settings)
    for number, step in recipe.training_steps():
        if number <= 1:
            yield step, {**recipe.networks, **{f"{key} before": net for key, net in step.as_before.items()}}


def kind(phase: Phase) -> str:
    """What a phase draws, passes forward and is told: phases of one kind are compared once."""
    sampler = phase.batches
    drawn = (sampler.func.__name__, sorted(sampler.keywords)) if isinstance(sampler, partial) else repr(sampler)[:30]
    losses = [
        [
            type(player.forward).__name__,
            *(getattr(term, "__name__", type(term).__name__) for _, term in player.loss.terms.values()),
        ]
        for player in phase.players
    ]
    drops = any(getattr(layer, "dropped", 0) for player in phase.players for layer in player.trains.modules())
    return str((drawn, losses, drops))


def gradients(name: str, folder: Path, settings: dict[str, Any], kinds: set[str]) -> dict[str, Tensor]:
    """Of each parameter, after one step of every player of every phase of a kind that is not in `kinds` yet."""
    found = {}
    for number, (step, networks) in enumerate(steps_of(name, **settings)):
        for network in networks.values():
            network.double()
        run = run_of(name, step, networks, folder)
        for phase in run.phases:
            if kind(phase) in kinds:
                continue
            kinds.add(kind(phase))
            batch = phase.batches(run.data, loop._draw(run, phase))
            for player in phase.players:
                optimizer = torch.optim.SGD(player.trains.parameters(), lr=0.0)
                loop._move(player, optimizer, phase, batch, cpu(), 0, None, run.generator)
                for key, parameter in player.trains.named_parameters():
                    if parameter.grad is not None:
                        found[f"{name} {number} {phase.name} {player.name} {key}"] = parameter.grad.clone()
        buffers = {key: value for net in networks for key, value in networks[net].named_buffers(prefix=net)}
        found |= {f"{name} {number} {key}": value.double().clone() for key, value in buffers.items()}
        found[f"{name} {number} stream"] = run.generator.get_state().double()
    return found


@contextmanager
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(torch, "float32", torch.float64)
        yield
    torch.set_default_dtype(torch.float32)


def compare_gradients(folder: Path) -> dict[str, float]:
    """The largest difference of every gradient, of buffers and of the stream, relative to its size.

    Each process takes half of the steps alone, and all of them together.
    """
    differences = {}
    seen: set[str] = set()
    with in_float64():
        for place, (name, settings) in enumerate(CASES):
            before = set(seen)
            found = gradients(name, folder, settings, seen)
            if place % 2 == ranks.rank():
                with alone():
                    expected = gradients(name, folder, settings, before)
                assert found.keys() == expected.keys()
                for key, value in expected.items():
                    worst = (found[key] - value).abs().max() / value.abs().max().clamp(min=1.0)
                    differences[f"{key} {settings}"] = float(worst)
    return differences


CASES: list[tuple[str, dict[str, Any]]] = [
    ("clmorph", {}),  # BatchNorm
    *((name, {"preset": "light"}) for name in METHODS if METHODS[name].train_reg or METHODS[name].train_seg),
    ("jrss", {"preset": "light", "pretraining_loss": "hard-ce", "weigh_classes": True}),
    ("os-medseg", {"preset": "light", "registration": "learned", "registration_network": "light"}),
    ("sst", {"preset": "light", "segmentation_loss": "sst", "appearance": False}),
    ("transmorph", {"preset": "light", "most_dropped": 0.5}),
    *((name, {"preset": "light", "probabilistic": True}) for name in ("voxelmorph", "lc-voxelmorph")),
    ("pdd-net", {"preset": "light", "with_atlas": 1.0}),
    ("massl", {"preset": "light", "attention": False}),
]


# Rounding alone makes losses drift in float32: Adam moves a weight by the whole rate, whatever its gradient's size. In
# one process, weights changed by 1e-7 move BRBS's losses by 0.17 in 20 steps at 1e-3. In float64 nothing drifts, so all
# are compared there, and in float32 those that drift by less than 1e-4.
RATES = {"unet": 1e-3, "voxelmorph": 1e-4}


def losses(name: str, folder: Path, rate: float) -> list[float]:
    """Every loss of 20 steps."""
    found = []
    for number, (step, networks) in enumerate(steps_of(name, preset="light")):
        settings = {"batch_size": 2, "steps": 20, "checkpoint_steps": 100, "ema": 0.9, "learning_rate": rate}
        draft = folder / f"{name} {number} {ranks.ranks()} {torch.get_default_dtype()}"
        run = run_of(name, step, networks, draft, **settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "LOG_STEPS", 1)
            found += [value for record in train(run) for key, value in record.items() if key.endswith("/total")]
    return found


def compare_losses(folder: Path, rates: dict[str, float]) -> dict[str, list[list[float]]]:
    found = {}
    for name, rate in rates.items():
        with alone():
            expected = losses(name, folder, rate)
        found[name] = [expected, losses(name, folder, rate)]
    return found


def command(project: Project, *arguments: str) -> list[Any]:
    """A command in this process, one of two."""
    os.environ["MASTER_PORT"] = arguments[0]
    try:
        return list(astuple(project.lrls(*arguments[1:])))
    finally:
        if torch.distributed.is_initialized():  # after an error the process would end
            torch.distributed.destroy_process_group()


def fail_in_second(step: int) -> Any:
    real, moves = loop._move, []

    def move(*arguments: Any) -> dict[str, Tensor]:
        moves.append(None)
        if len(moves) > step and ranks.rank():
            raise RuntimeError("not enough memory: you tried to allocate 1 byte")
        return real(*arguments)

    return move


def take_part(rank: int, ports: list[str], folder: Path, stopped: Project, fresh: Project) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[0],
    }  # fmt: skip
    torch.set_num_threads(1)
    ranks.WAIT = timedelta(minutes=4)  # a process that is left alone ends with an error, and the suite with it
    own, found = folder / str(rank), dict[str, Any]()
    with ranks.joined(["train-seg"]):
        found["gradients"], found["losses"] = compare_gradients(own), compare_losses(own, RATES)
        with in_float64():
            found["exact losses"] = compare_losses(own, dict.fromkeys(["unet", "voxelmorph", "brbs"], 1e-3))
    with pytest.MonkeyPatch.context() as patch:
        draw_no_pictures(patch)
        found["uneven"] = command(fresh, ports[1], *TRAIN, "--set", "train_seg.batch_size=3")
        found["resumed"] = command(stopped, ports[2], *TRAIN)
        found["again"] = command(stopped, ports[3], *TRAIN)
        patch.setattr(loop, "_move", fail_in_second(3))
        os.environ["MASTER_PORT"] = ports[4]
        found["failed"] = list(astuple(fresh.lrls(*TRAIN)))  # the second process ends with it
    (folder / f"{rank}.json").write_text(json.dumps(found))


TRAIN = ("train-seg", "--method", "unet")


def free_ports(number: int) -> list[str]:
    with ExitStack() as sockets:
        free = [sockets.enter_context(socket.socket()) for _ in range(number)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in free]


@dataclass(frozen=True)
class Told:
    """What each of two processes found and printed, and the projects that they worked in."""

    by: tuple[dict[str, Any], dict[str, Any]]
    straight: Project  # trained by one process
    resumed: Project  # begun by one process, finished by two
    failed: Project  # begun by two processes


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, new_project: Any, no_pictures_in_module: None) -> Told:
    folder = tmp_path_factory.mktemp("ranks")
    small = {"shape": [16, 16, 16], "spacing_mm": 3.0}
    straight = new_project(folder / "straight", preprocess=small, train_seg={"ema": 0.5})
    straight.made("preprocess")
    stopped, fresh = (Project(folder / name) for name in ("stopped", "fresh"))
    for project in (stopped, fresh):
        shutil.copytree(straight.folder, project.folder)
    straight.made(*TRAIN)
    with pytest.MonkeyPatch.context() as patch:
        rate = loop.learning_rate

        def stops(peak: float, step: int, *others: Any) -> float:
            if step == 3:
                raise KeyboardInterrupt
            return rate(peak, step, *others)

        patch.setattr(loop, "learning_rate", stops)
        assert stopped.lrls(*TRAIN).code != 0
    torch.multiprocessing.spawn(take_part, (free_ports(5), folder, stopped, fresh), nprocs=2)
    first, second = (json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    return Told((first, second), straight, stopped, fresh)


def test_gradients_of_two_processes_are_those_of_one_for_every_method(told):
    gradients = told.by[0]["gradients"] | told.by[1]["gradients"]
    assert {key: value for key, value in gradients.items() if not value <= 1e-10} == {}
    assert len(gradients) > 1000


@pytest.mark.parametrize("name", ["unet", "voxelmorph", "brbs"])
def test_losses_of_twenty_steps_are_those_of_one_process_but_for_rounding(told, name):
    expected, found = told.by[0]["exact losses"][name]
    assert len(expected) >= 20
    assert found == pytest.approx(expected, abs=1e-10, rel=1e-10)


@pytest.mark.parametrize("name", RATES)
def test_losses_of_twenty_steps_are_those_of_one_process(told, name):
    expected, found = told.by[0]["losses"][name]
    assert len(expected) >= 20
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-4)


def test_a_batch_without_equal_shares_is_refused_by_the_first_process_alone(told):
    code, out, err = told.by[0]["uneven"]
    assert code == 1 and not out
    assert err.splitlines() == [
        "lrls: train_seg.batch_size: found 3, expected a multiple of 2, because the 2 processes of torchrun share "
        "every batch; set it to 4, or start fewer processes."
    ]
    assert told.by[1]["uneven"] == [1, "", ""]


def log_of(project: Project) -> list[dict[str, Any]]:
    """Records of the losses; weights in front of a norm move by rounding alone, as far as Adam likes."""
    log = project.workspace / "unet" / "segmentation" / "v0001" / "log.jsonl"
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [{key: record[key] for key in ("step", "segmentation/total")} for record in records]


def same_losses(found: Project, expected: Project) -> None:
    assert [record["step"] for record in log_of(found)] == [2, 4]
    for one, other in zip(log_of(found), log_of(expected), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_two_processes_finish_what_one_began_and_only_the_first_one_speaks(told):
    code, out, err = told.by[0]["resumed"]
    assert (code, out.strip()) == (0, str(told.resumed.workspace / "unet" / "segmentation" / "v0001"))
    assert "train labelled: 4/4" in err
    assert told.by[1]["resumed"] == told.by[1]["again"] == [0, "", ""]
    assert told.by[0]["again"] == [0, out, ""]
    same_losses(told.resumed, told.straight)
    manifest = told.resumed.manifest("unet/segmentation")
    assert manifest.identity == told.straight.manifest("unet/segmentation").identity
    assert manifest.device.endswith(", 2 processes")


def test_a_failure_of_the_second_process_is_one_line_of_the_first_and_one_process_goes_on(told):
    code, out, err = told.by[0]["failed"]
    assert code == 1 and not out
    (line,) = err.splitlines()
    assert line.startswith("lrls: training stopped: not enough memory in labelled for a batch of 2 on a grid of 16 x")
    assert told.by[1]["failed"] == [1, "", ""]
    done = told.failed.made(*TRAIN)
    assert "train labelled: 4/4" in done.err
    same_losses(told.failed, told.straight)


def test_a_share_that_has_no_halves_is_refused():
    stream = Stream("cpu")
    stream.ranks = 2
    with pytest.raises(LrlsError, match=r"^a batch of 2 has no equal shares .* for 2 processes; set train_seg\.batch"):
        labelled_and_unlabeled(scans(), Draw(1, None, None, stream))
    stream.manual_seed(0)
    batch = labelled_and_unlabeled(scans(), Draw(2, None, None, stream))
    assert len(batch.image) == len(batch.unlabeled) == 1


def test_torchrun_starts_commands_that_train_and_no_other():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "lrls_cli", "run", "lrls.yaml"], capture_output=True, encoding="utf-8", timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("lrls: ")] == [
        "lrls: torchrun: found `run`, expected train-reg or train-seg, which alone run in several processes; "
        "type `lrls run ...` without torchrun."
    ]
