import math

import numpy as np
import pytest

from stages.parts.statistics import bootstrap_interval, holm, paired_wilcoxon, summarize


def test_interval_of_equal_values_is_that_value():
    assert bootstrap_interval([0.5] * 7) == (0.5, 0.5)


def test_interval_is_near_the_normal_one_for_many_values():
    values = np.random.default_rng(3).normal(10, 2, size=400)
    low, high = bootstrap_interval(values)
    half_width = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half_width, abs=0.02)
    assert high == pytest.approx(values.mean() + half_width, abs=0.02)


def test_interval_depends_on_the_seed_only():
    values = np.linspace(0, 1, 9)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_lower_level_gives_a_narrower_interval():
    values = np.linspace(0, 1, 9)
    low, high = bootstrap_interval(values, level=0.5)
    wide_low, wide_high = bootstrap_interval(values, level=0.95)
    assert wide_low < low < high < wide_high


def test_summary_of_known_values():
    summary = summarize([1, 2, 3, 4])
    assert (summary["mean"], summary["min"], summary["max"], summary["n"]) == (2.5, 1, 4, 4)
    assert summary["std"] == pytest.approx(math.sqrt(1.25))
    assert 1 <= summary["low"] < 2.5 < summary["high"] <= 4


def test_summary_of_one_value_and_of_none():
    assert summarize([0.7]) == {"mean": 0.7, "std": 0, "min": 0.7, "max": 0.7, "low": 0.7, "high": 0.7, "n": 1}
    summary = summarize([])
    assert summary["n"] == 0
    assert all(math.isnan(summary[key]) for key in ("mean", "std", "min", "max", "low", "high"))


def test_wilcoxon_of_six_scans_that_all_gain():
    # All six signs equal: 2 of 2^6 sign patterns are as extreme.
    assert paired_wilcoxon([2, 4, 6, 8, 10, 12], [1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 64)


def test_wilcoxon_leaves_out_pairs_without_a_difference():
    assert paired_wilcoxon([1, 2, 3, 4, 5, 6, 0, 0], np.zeros(8)) == pytest.approx(2 / 64)
    assert paired_wilcoxon([0.1, 0.2], [0.1, 0.2]) == 1


def test_wilcoxon_refuses_values_that_are_not_paired():
    with pytest.raises(ValueError, match="paired"):
        paired_wilcoxon([1, 2, 3], [1, 2])


def test_holm_on_a_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, then never falling: 0.02, 0.03, 0.06, 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_below_one_and_leaves_a_single_value():
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
