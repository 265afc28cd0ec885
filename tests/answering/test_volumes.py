"""Intervals of volumes, and scans that are unlike the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.answering.answers import Answer
from stages.answering.outliers import FAR, outlier_rows, spread_of
from stages.answering.volumes import coverage, fitted_factor, half_width, interval_ml, spread_of_volumes
from stages.parts.warps import one_hot


def answer(final: torch.Tensor, votes: torch.Tensor | None = None) -> Answer:
    maps = [None if each is None else one_hot(each[None], 3)[0] for each in (final, votes)]
    return Answer("x", maps[0], maps[1], [], maps[0], maps[0])


def boxes(a: int, b: int) -> torch.Tensor:
    """A label map with `a` voxels of class 1 and `b` of class 2."""
    classes = torch.zeros(1000, dtype=torch.long)
    classes[:a], classes[a : a + b] = 1, 2
    return classes.view(10, 10, 10)


def test_the_spread_is_that_of_the_answers_volumes():
    final = boxes(100, 50)
    alike = spread_of_volumes(answer(final, final), [final], [100, 50], 3)
    np.testing.assert_allclose(alike, np.sqrt([2**2 + 0.25, 1 + 0.25]))  # 2 % of the usual volume, half a voxel
    unlike = spread_of_volumes(answer(final, boxes(160, 50)), [boxes(100, 20)], [0, 0], 3)
    np.testing.assert_allclose(unlike**2 - 0.25, [60**2 / 3, 30**2 / 3])  # network, registration and one turned scan
    alone = spread_of_volumes(Answer("x", None, answer(final).network, [], *2 * [answer(final).network]), [], [0, 0], 3)
    np.testing.assert_allclose(alone, 0.5)


def test_nine_of_ten_true_volumes_lie_in_their_intervals_where_errors_follow_the_spreads():
    random = np.random.default_rng(0)
    spreads = random.uniform(1, 50, (400, 3))
    errors = spreads * random.normal(0, 2, spreads.shape)
    factor = fitted_factor(errors[:200], spreads[:200])
    assert factor == pytest.approx(2 * 1.645, rel=0.1)  # of a normal distribution
    assert np.mean(np.abs(errors[200:]) <= factor * spreads[200:]) == pytest.approx(0.9, abs=0.02)
    assert coverage(errors[:40], spreads[:40]) == pytest.approx(0.9, abs=0.05)
    assert fitted_factor(np.array([[3.0]]), np.array([[1.0]])) == 3.0  # too few to know better


def test_an_interval_is_in_ml_of_the_scan_and_holds_the_volume():
    # The scan's voxels hold twice the volume of the grid's, because alignment made it smaller.
    (a, b) = interval_ml([0.2, 0.0], np.array([100.0, 0.0]), [10.0, 5.0], 0.001)
    assert a == pytest.approx((0.18, 0.22)) and b == pytest.approx((0.0, 0.01))
    assert interval_ml([0.0], np.array([0.0]), [5.0], 0.001) == [(0.0, pytest.approx(0.005))]


def test_what_annotators_differ_by_is_added_as_another_error():
    np.testing.assert_allclose(half_width(np.array([3.0, 1.0]), 1.0, 0.1, [40.0, 0.0]), [5.0, 1.0])


def test_outliers_are_far_from_the_median_and_one_cannot_hide_another():
    values = {f"s{k}": 10 + 0.1 * (k % 5) for k in range(20)} | {"big": 30.0, "bigger": 90.0}
    found = spread_of("amygdala (ml)", values)
    assert found.outliers == ["bigger", "big"]
    assert outlier_rows([found])[0] | {"z": 0} == {
        "case": "bigger", "what": "amygdala (ml)", "value": 90.0, "median": found.median, "z": 0,
    }  # fmt: skip
    same = spread_of("x", dict.fromkeys("abcde", 1.0) | {"f": 1.01})
    assert same.outliers == [] and all(abs(z) < FAR for z in same.z.values())  # scans that hardly differ are alike
