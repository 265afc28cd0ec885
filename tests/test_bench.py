"""The speed benchmark compares like with like."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "docs" / "benchmarks"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_plain_and_our_step_compute_the_same_loss_terms(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import brbs_step

    # The second step sees weights that the first one moved, so gradients and optimisers agree as well.
    assert brbs_step.largest_difference((24, 32, 24), 3, seed=seed, steps=2) < 1e-3


def test_draws_of_the_seeds_cover_pairs_with_and_without_the_atlas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import brbs_step

    pairs = {
        brbs_step.next_draws(brbs_step.make_batch((24, 32, 24), 3, seed + step)).pair // 2
        for seed in (0, 1, 2)
        for step in (0, 1)
    }
    assert pairs == {0, 1, 2}
