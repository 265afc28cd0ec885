"""Precision and threads: the fastest way, measured once for a workspace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from recipes import config

from stages import device, speed
from stages.device import choose_device
from stages.speed import Way, fastest, fastest_here

MEASURED = speed._measured  # tests get another one
ALL, ONE, HALF = Way("fp32", 8), Way("fp32", 1), Way("bf16", 8)


def timer(**seconds: float):
    """A fake clock by precision and threads, "fp32_8", and the ways that were asked for."""
    asked: list[Way] = []

    def measured(way: Way) -> float:
        asked.append(way)
        return seconds[f"{way.precision}_{way.threads}"]

    return measured, asked


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"fp32_8": 1.0, "fp32_1": 3.0, "bf16_8": 3.0}, ALL),  # the flag says bf16, the clock does not
        ({"fp32_8": 1.0, "fp32_1": 3.0, "bf16_8": 0.5}, HALF),
        ({"fp32_8": 1.0, "fp32_1": 0.7, "bf16_8": 3.0}, ONE),  # the other cores are busy
        ({"fp32_8": 1.0, "fp32_1": 0.95, "bf16_8": 0.93}, ALL),  # no clear margin
    ],
)
def test_the_fastest_way_wins_by_a_clear_margin(seconds, expected):
    measured, _ = timer(**seconds)
    assert fastest([ALL, ONE, HALF], measured) == expected


def test_what_is_hopeless_is_measured_once():
    measured, asked = timer(fp32_8=1.0, fp32_1=1.2, bf16_8=9.0)
    fastest([ALL, ONE, HALF], measured)
    assert asked.count(HALF) == 1 and asked.count(ALL) == speed.ROUNDS


def test_a_single_way_is_not_measured():
    measured, asked = timer()
    assert fastest([HALF], measured) == HALF and not asked


@pytest.fixture
def measurements(monkeypatch) -> list[tuple[Way, ...]]:
    """Eight cores with bf16; the second way is the fastest; what was measured."""
    seen: list[tuple[Way, ...]] = []
    monkeypatch.setattr(speed, "available_cores", lambda: 8)
    monkeypatch.setattr(speed, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(speed, "_measured", lambda ways: seen.append(ways) or ways[1])
    return seen


def test_it_is_measured_once_for_a_workspace(measurements, tmp_path):
    assert fastest_here(tmp_path) == fastest_here(tmp_path) == ONE
    assert measurements == [tuple(Way(p, n) for p in ("fp32", "bf16") for n in (8, 1, 2))]
    (tmp_path / speed.FILE).write_text("{")  # costs a second, and nothing else
    assert fastest_here(tmp_path) == ONE
    assert len(measurements) == 2


def test_a_kept_way_that_is_none_here_is_measured_again(measurements, tmp_path):
    fastest_here(tmp_path)
    stored = json.loads((tmp_path / speed.FILE).read_text(encoding="utf-8"))
    (tmp_path / speed.FILE).write_text(json.dumps({key: ["fp64", 10**6] for key in stored}), encoding="utf-8")
    assert fastest_here(tmp_path) == ONE
    assert len(measurements) == 2


def test_without_a_workspace_nothing_is_written(measurements, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for workspace in (None, Path("."), tmp_path / "none"):
        assert fastest_here(workspace) == ONE
    assert list(tmp_path.iterdir()) == []


def test_what_is_set_by_hand_is_not_measured(measurements, tmp_path):
    assert fastest_here(tmp_path, precision="bf16", threads=3) == Way("bf16", 3)
    assert measurements == []
    fastest_here(tmp_path, threads=3)
    assert measurements == [(Way("fp32", 3), Way("bf16", 3))]


def test_the_real_measurement_chooses_one_of_the_ways():
    threads = torch.get_num_threads()
    MEASURED.cache_clear()
    assert MEASURED((ONE, Way("fp32", 2))) in (ONE, Way("fp32", 2))
    assert torch.get_num_threads() == threads


def test_bf16_by_hand_is_allowed_and_told_where_the_processor_has_none(monkeypatch, capsys):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    device._say_slow.cache_clear()
    settled = config().model_copy(update={"precision": "bf16", "threads": 1, "device": "cpu"})
    for _ in range(2):
        assert choose_device(settled).dtype == torch.bfloat16
    assert capsys.readouterr().err == (
        "note: precision is bf16, which this processor has no instructions for; fp32 is faster here.\n"
    )
