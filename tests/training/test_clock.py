"""A training under a clock ends in time on a machine that turns faster or slower, and without one takes its steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from stages.artifacts.weights_file import read_weights
from stages.training import loop
from stages.training.clock import Clock


def trained(allowed_s: float, steps: int, step_s: Callable[[float], float]) -> tuple[int, float]:
    """Steps taken and seconds that they took, of steps that take `step_s` at a time."""
    clock, step, now = Clock(allowed_s), 0, 0.0
    while step < steps:
        now += step_s(now)
        step += 1
        steps = clock.steps(step, steps, now)
    return step, now


def test_a_steady_machine_takes_the_steps_that_were_counted():
    assert trained(1000, 1000, lambda _: 1.0) == (1000, 1000)
    assert trained(1000, 1000, lambda _: 0.97)[0] == 1000


@pytest.mark.parametrize(
    "step_s",
    [
        lambda now: 2.0,  # slower from the start
        lambda now: 0.6,
        lambda now: 1.0 if now < 500 else 2.0,  # a neighbour comes
        lambda now: 2.0 if now < 500 else 1.0,  # a neighbour goes
        lambda now: 1.0 if int(now / 100) % 2 else 2.0,  # one that comes and goes
    ],
)
@pytest.mark.parametrize("steps", [100, 1000])
def test_a_machine_that_changes_its_speed_ends_in_time(step_s, steps):
    scale = 1000 / steps
    _, took = trained(1000, steps, lambda now: scale * step_s(now))
    assert 930 <= took <= 1050


def test_a_training_whose_time_is_over_comes_to_its_end():
    clock = Clock(10)
    assert clock.steps(1, 1000, 5.0) == 1000
    assert clock.steps(60, 1000, 300.0) < 800
    steps, took = trained(10, 1000, lambda _: 1.0)
    assert steps < 1000 and took < 500


def test_a_resumed_training_counts_on():
    clock = Clock(1000)
    assert clock.steps(501, 1000, 501.0) == 1000  # the first look of a session has nothing to compare with
    assert clock.steps(600, 1000, 700.0) < 1000


def test_a_training_takes_the_steps_that_its_clock_says_and_keeps_them_over_a_stop(project, no_pictures, monkeypatch):
    command = ("run", "--method", "unet", "--until", "train-seg", "--budget", "10m")
    monkeypatch.setattr("stages.training.budget.step_seconds", lambda _: 0.5)
    real = loop.learning_rate

    def stops(peak: float, step: int, *others: Any) -> float:
        if step == 5:
            raise KeyboardInterrupt
        return real(peak, step, *others)

    with monkeypatch.context() as first:
        first.setattr(Clock, "steps", lambda self, step, steps, elapsed_s: 7 if step > 2 else steps)
        first.setattr(loop, "learning_rate", stops)
        assert project.lrls(*command).code != 0
    monkeypatch.setattr(Clock, "steps", lambda self, step, steps, elapsed_s: steps)
    project.made(*command)
    assert project.manifest("unet/segmentation").identity.config["train_seg"]["steps"] > 1000  # as they were counted
    folder = project.workspace / "unet" / "segmentation" / "v0001"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[-1]["step"] == 7
    _, about = read_weights(folder / "weights.safetensors")
    assert about == {"method": "unet", "steps": "7"}
    before = project.digests()
    project.made(*command)
    assert project.digests() == before


def test_the_header_counts_the_steps_at_half_resolution_too(project, no_pictures, monkeypatch):
    monkeypatch.setattr("stages.training.budget.step_seconds", lambda _: 100.0)  # of 10 minutes: few steps
    monkeypatch.setattr("stages.training.budget.LEAST_STEPS", 2)
    monkeypatch.setattr(Clock, "steps", lambda self, step, steps, elapsed_s: steps)
    project.made(
        "run", "--method", "unet", "--until", "train-seg", "--budget", "10m",
        "--set", "methods.unet.half_resolution=0.5", "--set", "methods.unet.segmentation_network=light",
    )  # fmt: skip
    folder = project.workspace / "unet" / "segmentation" / "v0001"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    last = {record["phase"]: record["step"] for record in log}
    assert list(last) == ["labelled at half resolution", "labelled"] and min(last.values()) > 0
    _, about = read_weights(folder / "weights.safetensors")
    assert about["steps"] == str(sum(last.values()))
