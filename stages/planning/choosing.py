"""From measured costs and a budget to grid, network, batch, augmentation, scans and couples: the rules alone.

`choose` is a pure function. Its rules, in order:

1. Alignments take at most `ALIGNING` of the budget: otherwise only the first unlabelled scans are used, 4 at least.
2. Registering couples takes at most `COUPLING` of it: otherwise fewer couples are, 4 at least.
3. The grid is the finest on which the cheapest network gets `STEPS_OF_A_GRID` steps of one couple, or
   `STEPS_WHERE_ALIKE` where alignment leaves scans alike, so that registration answers well and gains from
   resolution; none: the coarsest.
4. The network is the costliest one that gets `STEPS_OF_TWO` steps of two couples there, or of all but the full one
   as many steps of one couple as a grid needs.
5. A step has two couples where `STEPS_OF_TWO` steps of them remain.
6. Where fewer steps remain than `STEPS_OF_A_GRID`, `HALF_RESOLUTION` of them are taken at half of the resolution, where
   they cost a fraction: so there are more of them.

Source of the numbers: docs/plan.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from stages.parts.batches.halved import factors

MARGIN = 0.04  # of the budget: checkpoints, pictures, a machine that slows down
OVERHEAD_S = 3.0  # reading and verifying what the stages before wrote
ALIGNING, COUPLING = 0.25, 0.3  # of the budget, at most
LEAST_SCANS = LEAST_COUPLES = 4
MOST_COUPLES = 150
STEPS_OF_A_GRID, STEPS_WHERE_ALIKE, STEPS_OF_TWO = 800, 150, 1000
HALF_RESOLUTION = 0.85  # of the steps
LEAST_STEPS = 100
LEAST_CEILING = 0.85  # DSC of the atlas's own label after a round trip over the grid
MEMORY = 1.5  # a step takes about this much of what is kept for the gradients
SCALED = 0.08  # |log scaling| left after alignment, from which scans differ in more than their details

Augmentation = Literal["mild", "strong"]


@dataclass(frozen=True)
class GridOption:
    """A grid that scans may come to.

    Args:
        spacing_mm, shape: (D, H, W).
        ceiling: mean DSC of the atlas's own structures after a round trip over the grid; what no answer exceeds.
        lost: structures of the atlas without a voxel on it.
    """

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    ceiling: float = 1.0
    lost: tuple[str, ...] = ()

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def halved_voxels(self) -> int:
        """At half of the resolution; see `stages.parts.batches.halved`."""
        return math.prod(n // block for n, block in zip(self.shape, factors(self.shape, self.spacing_mm), strict=True))

    def __str__(self) -> str:
        edges = [f"{mm:.3g}" for mm in self.spacing_mm]
        edges = edges[:1] if len(set(edges)) == 1 else edges
        return f"{' x '.join(map(str, self.shape))} voxels of {' x '.join(edges)} mm"


@dataclass(frozen=True)
class Cost:
    """Seconds that something takes on a grid: fixed ones, and seconds per voxel."""

    fixed_s: float
    per_voxel_s: float

    def at(self, voxels: int) -> float:
        return self.fixed_s + self.per_voxel_s * voxels


@dataclass(frozen=True)
class Measured:
    """What was measured on this machine, of these scans.

    Args:
        grids: the derived one first, then coarser ones; or the only one that the settings allow.
        align_s: of one scan, by one process, with reading it.
        couple: of registering one couple, by one of `couple_workers`.
        step: of a training step, by network; voxels are those of all its couples.
        step_bytes: that a step keeps, per voxel of a couple, by network.
        free_bytes: memory that there is; None: unknown.
        scans, atlases: unlabelled and labelled scans that are listed.
        align_workers, couple_workers: processes.
        residual_scaling: see `stages.planning.residual`; mean over the registered scans.
        start_s: until processes work, for alignments and again for couples.
        way: precision and threads, in words.
        took_s: time that measuring took.
    """

    grids: tuple[GridOption, ...]
    align_s: float
    couple: Cost
    step: Mapping[str, Cost]
    step_bytes: Mapping[str, float]
    scans: int
    atlases: int = 1
    free_bytes: int | None = None
    align_workers: int = 1
    couple_workers: int = 1
    residual_scaling: float = 0.0
    start_s: float = 3.0
    way: str = ""
    took_s: float = 0.0

    def allowed(self) -> list[GridOption]:
        """The first grid, and coarser ones that keep every structure and enough of its shape."""
        return [
            grid
            for place, grid in enumerate(self.grids)
            if not place or (not grid.lost and grid.ceiling >= LEAST_CEILING)
        ]

    def fits(self, grid: GridOption, network: str, batch_size: int) -> bool:
        """Whether there is memory for a step."""
        needed = MEMORY * self.step_bytes[network] * grid.voxels * batch_size
        return self.free_bytes is None or needed < self.free_bytes

    @property
    def steps_of_a_grid(self) -> int:
        """Steps that a grid must leave time for."""
        return STEPS_OF_A_GRID if self.residual_scaling > SCALED else STEPS_WHERE_ALIKE

    @property
    def by_cost(self) -> list[str]:
        """The networks, fastest step on the finest grid first."""
        return sorted(self.step, key=lambda network: self.step_of(self.grids[0], network, 1))

    @property
    def cheapest(self) -> str:
        """The network with the fastest step."""
        return self.by_cost[0]

    @property
    def overhead_s(self) -> float:
        return OVERHEAD_S + 2 * self.start_s

    def align_all_s(self, scans: int) -> float:
        """Seconds that bringing the atlases and so many other scans to the grid takes; the first atlas is aligned."""
        return math.ceil((scans + self.atlases - 1) / self.align_workers) * self.align_s

    def couple_all_s(self, couples: int, grid: GridOption) -> float:
        return math.ceil(couples / self.couple_workers) * self.couple.at(grid.voxels)

    def step_of(self, grid: GridOption, network: str, batch_size: int, half_resolution: float = 0.0) -> float:
        """Seconds of a step, mean over those at half of the resolution and the others."""
        cost = self.step[network]
        coarse, fine = (cost.at(voxels * batch_size) for voxels in (grid.halved_voxels, grid.voxels))
        return half_resolution * coarse + (1 - half_resolution) * fine


@dataclass(frozen=True)
class Given:
    """What is set by hand, so that nothing else is chosen; None: open.

    Args:
        steps: of the recipe or the settings; taken where there is no budget.
        couples, scans: the most that may be used.
    """

    steps: int = 2000
    network: str | None = None
    batch_size: int | None = None
    augmentation: str | None = None
    half_resolution: float | None = None
    couples: int | None = None
    scans: int | None = None


@dataclass(frozen=True)
class Choices:
    """What a run does with its time; `seconds` by what they are spent on."""

    grid: GridOption
    is_derived: bool  # the grid is the one that is derived without a plan
    network: str
    batch_size: int
    augmentation: str
    half_resolution: float
    couples: int
    scans: int
    steps: int
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


class TooShort(ValueError):
    """No choice fits into the budget."""


def choose(measured: Measured, budget_s: float | None, given: Given | None = None) -> Choices:
    """The choices for a budget; without one, those of the recipe on the derived grid.

    Raises:
        TooShort: not even the cheapest choice fits.
    """
    given = given or Given()
    if budget_s is None:
        return _as_the_recipe_says(measured, given)
    usable = budget_s * (1 - MARGIN) - measured.overhead_s - measured.took_s
    options = [_on(grid, measured, usable, given) for grid in measured.allowed() if _fits_at_all(measured, grid, given)]
    if enough := [option for option in options if option.steps >= measured.steps_of_a_grid]:
        return _coarse_first(_refined(enough[0], measured, usable, given), measured, usable, given)
    if few := [option for option in options if option.steps >= LEAST_STEPS]:
        return _coarse_first(_refined(few[-1], measured, usable, given), measured, usable, given)
    raise TooShort


def least_budget_s(measured: Measured, given: Given | None = None) -> float:
    """The smallest budget, in whole minutes, for which there is a choice."""
    for minutes in _minutes():
        try:
            choose(measured, minutes * 60.0, given)
        except TooShort:
            continue
        return minutes * 60.0
    raise TooShort


def _minutes() -> Iterable[int]:
    minutes = 1
    while minutes < 10**6:
        yield minutes
        minutes += max(1, minutes // 50)


def _fits_at_all(measured: Measured, grid: GridOption, given: Given) -> bool:
    return measured.fits(grid, given.network or measured.cheapest, given.batch_size or 1)


def _most_couples(measured: Measured, given: Given) -> int:
    scans = min(measured.scans, given.scans or measured.scans)
    return min(scans * measured.atlases, given.couples or MOST_COUPLES)


def _on(grid: GridOption, measured: Measured, usable: float, given: Given) -> Choices:
    """Scans, couples and the cheapest training on a grid; the steps may be too few, or negative."""
    scans = min(measured.scans, given.scans or measured.scans)
    couples = _most_couples(measured, given)
    while scans > LEAST_SCANS and measured.align_all_s(scans) > ALIGNING * usable:
        scans -= 1
    couples = min(couples, scans * measured.atlases)
    if couple_s := measured.couple.at(grid.voxels):
        turns = int(COUPLING * usable / couple_s)
        couples = min(couples, max(LEAST_COUPLES, turns * measured.couple_workers))
        scans = min(scans, max(LEAST_SCANS, math.ceil(couples / measured.atlases)))
    network, batch_size = given.network or measured.cheapest, given.batch_size or 1
    return _choices(grid, network, batch_size, couples, scans, measured, usable, given)


def _choices(
    grid: GridOption, network: str, batch_size: int, couples: int, scans: int, measured: Measured, usable: float,
    given: Given, half_resolution: float = 0.0,
) -> Choices:  # fmt: skip
    before = {"alignment": measured.align_all_s(scans), "couples": measured.couple_all_s(couples, grid)}
    left = usable - sum(before.values())
    step_s = measured.step_of(grid, network, batch_size, half_resolution)
    steps = int(left / step_s)
    return Choices(
        grid, grid == measured.grids[0], network, batch_size, _augmentation(measured, given), half_resolution, couples,
        scans, steps,
        {"planning": measured.took_s, **before, "training": steps * step_s, "the rest": measured.overhead_s},
    )  # fmt: skip


def _refined(cheapest: Choices, measured: Measured, usable: float, given: Given) -> Choices:
    """The same grid with a costlier network or a batch of two, where enough steps remain."""
    grid = cheapest.grid
    for network in [given.network] if given.network else measured.by_cost[::-1]:
        for batch_size, least in ((2, STEPS_OF_TWO), (1, measured.steps_of_a_grid)):
            if (network == "full" and batch_size == 1) or given.batch_size not in (None, batch_size):
                continue
            choices = _choices(grid, network, batch_size, cheapest.couples, cheapest.scans, measured, usable, given)
            if choices.steps >= least and measured.fits(grid, network, batch_size):
                return choices
    return cheapest


def _coarse_first(choices: Choices, measured: Measured, usable: float, given: Given) -> Choices:
    """The same choices with the first steps at half of the resolution, if there are too few otherwise."""
    share = given.half_resolution
    if share is None:
        share = HALF_RESOLUTION if choices.steps < STEPS_OF_A_GRID else 0.0
    return _choices(
        choices.grid,
        choices.network,
        choices.batch_size,
        choices.couples,
        choices.scans,
        measured,
        usable,
        given,
        share,
    )


def _augmentation(measured: Measured, given: Given) -> str:
    """Strong where alignment leaves structures of other proportions, mild where it leaves details."""
    return given.augmentation or ("strong" if measured.residual_scaling > SCALED else "mild")


def _as_the_recipe_says(measured: Measured, given: Given) -> Choices:
    grid, network, batch_size = measured.grids[0], given.network or "light", given.batch_size or 2
    share = given.half_resolution or 0.0
    scans, couples = min(measured.scans, given.scans or measured.scans), _most_couples(measured, given)
    seconds = {
        "planning": measured.took_s,
        "alignment": measured.align_all_s(scans),
        "couples": measured.couple_all_s(couples, grid),
        "training": given.steps * measured.step_of(grid, network, batch_size, share),
        "the rest": measured.overhead_s,
    }
    augmentation = given.augmentation or "strong"
    return Choices(grid, True, network, batch_size, augmentation, share, couples, scans, given.steps, seconds)
