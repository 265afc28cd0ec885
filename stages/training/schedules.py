"""Learning rates by step."""

from __future__ import annotations

import math

from stages.config import TrainSettings


def learning_rate(peak: float | None, step: int, steps: int, settings: TrainSettings) -> float:
    """Learning rate of a step.

    Constant; one cycle (linear warm-up over a tenth, then half a cosine to 0); or exponential: smoothly to a
    twentieth or, with `epochs`, 1 % less with each epoch.
    """
    assert peak is not None
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "exponential":
        if settings.epochs is None:
            return peak * 0.05 ** (step / steps)
        return peak * 0.99 ** (settings.epochs * step // steps)
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
