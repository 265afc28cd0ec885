"""Learning rates by step."""

from __future__ import annotations

import math

from stages.config import TrainSettings


def learning_rate(
    peak: float | None, step: int, steps: int, settings: TrainSettings, along: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Learning rate of a step.

    Constant; one cycle (linear warm-up over a tenth, then half a cosine to 0); or exponential: smoothly to a
    twentieth or, with `epochs`, 1 % less with each epoch.

    Args:
        along: the stretch of the schedule that these steps go, in multiples of its length; an exponential one may
            begin after 1, where a round goes on from an earlier training.
    """
    assert peak is not None
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "exponential":
        gone = along[0] + (along[1] - along[0]) * step / steps
        if settings.epochs is None:
            return peak * 0.05**gone
        return peak * 0.99 ** int(settings.epochs * gone + 1e-9)  # a whole epoch may come out as 0.999...
    if along[1] > 1:  # a cycle that has ended begins anew
        along = (0.0, 1.0)
    whole = steps / (along[1] - along[0])
    step, steps = int(along[0] * whole) + step, max(1, round(whole))
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
