"""Keeping a training within its time where the machine turns faster or slower than it was when its steps were counted.

The number of steps is corrected, and the learning rate follows the new number, so that it still comes down to its end.
A run whose steps are set has no clock: it takes them all, and repeats itself.
"""

from __future__ import annotations

from dataclasses import dataclass

LOOKS = 20  # at the clock, evenly over the steps
EARLY, LATE = 0.05, 0.02  # of the time allowed, by which a run may end early or late without a correction
MOST_CHANGE = 0.25  # of the steps that are left, in one look


@dataclass
class Clock:
    """Time that a training may take.

    Args:
        allowed_s: from its start, over all sessions of a run that was stopped.
    """

    allowed_s: float
    _seen: tuple[int, float] | None = None

    def steps(self, step: int, steps: int, elapsed_s: float) -> int:
        """The number of steps to take in all, in `step`, of the `steps` that were to be taken.

        Args:
            elapsed_s: from the start of the training to the end of the step.
        """
        if self._seen is None:
            self._seen = (step, elapsed_s)
            return steps
        since, at_s = self._seen
        if step >= steps or step - since < max(1, steps // LOOKS):
            return steps
        self._seen = (step, elapsed_s)
        step_s = (elapsed_s - at_s) / (step - since)
        left = steps - step
        over = (elapsed_s + left * step_s) / self.allowed_s - 1
        if step_s <= 0 or -EARLY <= over <= LATE:
            return steps
        wanted = (self.allowed_s - elapsed_s) / step_s
        bounded = min(max(wanted, left * (1 - MOST_CHANGE)), left * (1 + MOST_CHANGE))
        return step + max(1, int(bounded if elapsed_s < self.allowed_s else 1))
