"""How a network learns: a phase draws batches, and its players move in turn in every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from stages.parts.batches.drawing import Sampler
from stages.parts.batches.halved import AtHalfResolution


@dataclass(frozen=True)
class Ramp:
    """A weight that changes linearly from the first step of a phase on, and then stays constant.

    Args:
        start, end: the weight in the first step, and after the change.
        steps: steps that the change takes; None: as many as `most` allows.
        most: largest share of the phase that the change takes.
        jumps: the weight stays at `start` for these steps, and then is `end`.
        gaussian: it goes exp(-5 (1 - x)^2) of the way, x from 0 to 1, and so begins 0.7 % after `start`. Source: Laine,
            Aila, "Temporal ensembling", ICLR 2017.
    """

    start: float
    end: float
    steps: int | None = None
    most: float = 1.0
    jumps: bool = False
    gaussian: bool = False

    def __call__(self, step: int, of: int | None = None) -> float:
        """The weight in a step, counted from 0, of a phase of `of` steps."""
        limits = [n for n in (self.steps, None if of is None else int(self.most * of)) if n is not None]
        steps = min(limits, default=1)
        if self.jumps:
            return self.start if step < steps else self.end
        gone = min(step / max(steps, 1), 1.0)
        return self.start + (self.end - self.start) * (math.exp(-5 * (1 - gone) ** 2) if self.gaussian else gone)


@dataclass(frozen=True)
class Ramped:
    """A term of which a number changes over a phase.

    Args:
        ramp: the number.
        term: (state, number) -> scalar.
    """

    ramp: Ramp
    term: Callable[[Any, float], Tensor]

    def at(self, state: Any, step: int, of: int | None) -> Tensor:
        return self.term(state, self.ramp(step, of))


Term = tuple[float | Ramp, Callable[[Any], Tensor] | Ramped]  # weight, term of the loss
Terms = dict[str, Term]


class WeightedSum:
    """Named terms with weights; the names become log keys. A weight of 0 switches a term off: it is not computed."""

    def __init__(self, **terms: Term) -> None:
        self.terms = {name: term for name, term in terms.items() if term[0] != 0}

    def __call__(self, state: Any, step: int = 0, of: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted total and unweighted terms.

        Args:
            step, of: step of the phase, from 0, and the number of its steps; for weights that change.
        """
        values = {
            name: term.at(state, step, of) if isinstance(term, Ramped) else term(state)
            for name, (_, term) in self.terms.items()
        }
        weights = {name: w(step, of) if isinstance(w, Ramp) else w for name, (w, _) in self.terms.items()}
        return sum(weights[name] * value for name, value in values.items()), values  # type: ignore[return-value]


@dataclass(frozen=True)
class Player:
    """Owns a network, its optimiser and its loss; all players of a phase move in turn in every step.

    Args:
        name: log key.
        trains: the network that moves; all others stand still meanwhile.
        forward: batch -> the state that the loss terms read.
        loss: terms over that state.
        learning_rate: overrides the run's, where a paper has several.
        momentum: Adam's beta_1.
        paces: sub-networks whose learning rate is a multiple of the player's, each with its factor.
        weight_decay: L2 penalty of Adam.
        ema: overrides the run's decay of averaged weights.
        ema_warms_up: the average forgets early weights faster; off: its decay is constant from the first step on.
        every: the player moves every `every` steps, starting with the first.
    """

    name: str
    trains: nn.Module
    forward: Callable[[Any], Any]
    loss: WeightedSum
    learning_rate: float | None = None
    momentum: float = 0.9
    paces: Sequence[tuple[nn.Module, float]] = ()
    weight_decay: float = 0.0
    ema: float | None = None
    ema_warms_up: bool = True
    every: int = 1


@dataclass(frozen=True)
class Phase:
    """A stretch of training: batches and the players that learn from them.

    Args:
        name: log key.
        batches: draws the batch of a step.
        players: move in this order.
        share: share of the run's steps that this phase takes.
        batch_size: overrides the run's, where a paper has several.
        schedule: the stretch of the learning rate's schedule that the phase goes, in multiples of its length: phases
            that follow one another can share one, and a round that goes on from an earlier training begins after 1.
        fades: in its second half the learning rate falls linearly to 0, on top of the run's schedule.
    """

    name: str
    batches: Sampler
    players: Sequence[Player]
    share: float = 1.0
    batch_size: int | None = None
    schedule: tuple[float, float] = (0.0, 1.0)
    fades: bool = False


COARSE_SCHEDULE = 0.6  # of the learning rate's, at half resolution: about its share of the time


def coarse_to_fine(phase: Phase, half_resolution: float) -> list[Phase]:
    """A phase whose first steps are at half of the grid's resolution.

    Args:
        half_resolution: share of the phase's steps that are; 0: the phase as it is.
    """
    if not half_resolution:
        return [phase]
    coarse = replace(
        phase,
        name=f"{phase.name} at half resolution",
        batches=AtHalfResolution(phase.batches),
        share=phase.share * half_resolution,
        schedule=(0.0, COARSE_SCHEDULE),
    )
    return [coarse, replace(phase, share=phase.share * (1 - half_resolution), schedule=(COARSE_SCHEDULE, 1.0))]
