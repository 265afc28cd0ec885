"""A plan as a short table: what was chosen, why, what it costs, and what twice the time would choose."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from stages.planning.choosing import ALIGNING, COUPLING, Choices, Given, Measured


@dataclass(frozen=True)
class Row:
    """A row; see `stages.artifacts.plan`."""

    choice: str
    value: str
    reason: str
    cost: str = ""
    more: str = ""


def rows(measured: Measured, choices: Choices, doubled: Choices | None, given: Given) -> list[dict[str, str]]:
    """The table of a plan.

    Args:
        doubled: the choices for twice the budget; None: there is no budget.
    """
    made = [
        _scans(measured, choices),
        _grid(measured, choices),
        _couples(measured, choices, given),
        _network(measured, choices, given),
        Row("couples a step", str(choices.batch_size), _hand(given.batch_size) or _by_steps(choices)),
        _half_resolution(choices, doubled, given),
        Row("augmentation", choices.augmentation, _hand(given.augmentation) or _augmentation(measured, doubled)),
        _steps(measured, choices, doubled),
        Row("precision", measured.way, "measured"),
    ]
    if doubled:
        later = rows(measured, doubled, None, given)
        made = [
            replace(row, more=other["value"] if other["value"] != row.value else "")
            for row, other in zip(made, later, strict=True)
        ]
    return [asdict(row) for row in made]


def duration(seconds: float) -> str:
    """A time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _hand(value: object) -> str:
    return "set by hand" if value is not None else ""


def _scans(measured: Measured, choices: Choices) -> Row:
    reason = (
        "all"
        if choices.scans == measured.scans
        else f"of {measured.scans}; all would take over {ALIGNING:.0%} of the time"
    )
    cost = f"{duration(choices.seconds['alignment'])}, {measured.align_s:.1f} s each"
    return Row("unlabelled scans", str(choices.scans), reason, cost)


def _grid(measured: Measured, choices: Choices) -> Row:
    grid = choices.grid
    if len(measured.grids) == 1:
        reason = "set by hand"
    elif choices.is_derived:
        reason = "the derived one"
    else:
        least, step_s = measured.steps_of_a_grid, measured.step_of(grid, choices.network, choices.batch_size)
        has_enough = choices.seconds["training"] > (least - 1) * step_s  # at full resolution
        reason = f"the finest with {least} steps" if has_enough else "the coarsest"
    kept = f"{grid.ceiling:.3f} of the atlas's label survives it" if len(measured.grids) > 1 else ""
    return Row("grid", str(grid), reason, kept)


def _couples(measured: Measured, choices: Choices, given: Given) -> Row:
    possible = choices.scans * measured.atlases
    if given.couples is not None:
        reason = "set by hand"
    else:
        reason = (
            "each atlas with each scan"
            if choices.couples == possible
            else f"more would take over {COUPLING:.0%} of the time"
        )
    each = measured.couple.at(choices.grid.voxels)
    return Row("couples", str(choices.couples), reason, f"{duration(choices.seconds['couples'])}, {each:.1f} s each")


def _network(measured: Measured, choices: Choices, given: Given) -> Row:
    step = measured.step_of(choices.grid, choices.network, choices.batch_size, choices.half_resolution)
    costlier = measured.by_cost[measured.by_cost.index(choices.network) + 1 :]
    reason = f"{choices.steps} steps of it fit" if not costlier else f"{' and '.join(costlier)} would get too few steps"
    return Row("network", choices.network, _hand(given.network) or reason, f"{step:.2f} s a step")


def _half_resolution(choices: Choices, doubled: Choices | None, given: Given) -> Row:
    share = choices.half_resolution
    value = f"first {share:.0%} of the steps" if share else "none"
    if doubled is None:
        reason = "the recipe's"
    else:
        reason = "so that there are enough steps" if share else "enough steps at full resolution"
    return Row("half resolution", value, _hand(given.half_resolution) or reason)


def _by_steps(choices: Choices) -> str:
    return "enough steps remain" if choices.batch_size > 1 else "steps before batch"


def _augmentation(measured: Measured, doubled: Choices | None) -> str:
    if doubled is None:
        return "the recipe's"
    return f"alignment leaves structures scaled by {math.exp(measured.residual_scaling) - 1:.0%}"


def _steps(measured: Measured, choices: Choices, doubled: Choices | None) -> Row:
    reason = "what the time allows" if doubled else "the recipe's"
    return Row("steps", str(choices.steps), reason, duration(choices.seconds["training"]))
