"""Statistics of scores over several scans: intervals and paired tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Values = Sequence[float] | np.ndarray


def bootstrap_interval(values: Values, seed: int = 0, level: float = 0.95, draws: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: one per scan.
        seed: of the draws; the same seed gives the same interval.
        level: coverage.
        draws: number of resamples.

    Returns:
        Lower and upper end; nan for no values.
    """
    values = np.asarray(values, dtype=float)
    if not values.size:
        return float("nan"), float("nan")
    means = np.random.default_rng(seed).choice(values, size=(draws, values.size)).mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def crossed_interval(
    values: np.ndarray, seed: int = 0, level: float = 0.95, draws: int = 10_000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over runs and scans: both are drawn anew, independently.

    Every run answers the same scans, so a draw takes whole rows and whole columns. With one run it is the interval over
    scans alone, with one scan that over runs.

    Args:
        values: (runs, scans); nan is left out.
        seed: of the draws; the same seed gives the same interval.
        level: coverage.
        draws: number of resamples.

    Returns:
        Lower and upper end; nan for no values.

    Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007.
    """
    values = np.asarray(values, dtype=float)
    seen = np.isfinite(values).astype(float)
    if not seen.any():
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    runs, scans = (random.multinomial(n, np.full(n, 1 / n), size=draws).astype(float) for n in values.shape)
    total = ((runs @ np.nan_to_num(values)) * scans).sum(1)
    count = ((runs @ seen) * scans).sum(1)
    low, high = np.quantile(total[count > 0] / count[count > 0], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarize(values: Values) -> dict[str, float]:
    """Mean, population standard deviation, minimum, maximum, 95 % interval of the mean (`low`, `high`) and number `n`.

    No values: all nan but `n`.
    """
    values = np.asarray(values, dtype=float)
    low, high = bootstrap_interval(values)
    empty = not values.size
    return {
        "mean": float("nan") if empty else float(values.mean()),
        "std": float("nan") if empty else float(values.std()),
        "min": float("nan") if empty else float(values.min()),
        "max": float("nan") if empty else float(values.max()),
        "low": low,
        "high": high,
        "n": int(values.size),
    }


def paired_wilcoxon(a: Values, b: Values) -> float:
    """Two-sided p-value of the Wilcoxon signed-rank test.

    Pairs without a difference are left out; the p-value is 1 where no pair is left.

    Args:
        a: one value per scan.
        b: values of the same scans, in the same order.
    """
    from scipy.stats import wilcoxon  # commands that compare nothing need not wait for it

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"paired values have shapes {a.shape} and {b.shape}")
    difference = a - b
    difference = difference[difference != 0]
    return float(wilcoxon(difference).pvalue) if difference.size else 1.0


def holm(pvalues: Values) -> list[float]:
    """Holm's adjusted p-values, in the order given; all hold together at the level of one.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 1979.
    """
    p = np.asarray(pvalues, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1)
    return [float(value) for value in adjusted]
