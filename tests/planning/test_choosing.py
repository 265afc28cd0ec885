"""What is chosen from made-up costs: fast and slow machines, small and huge cohorts, budgets that cannot be."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from stages.planning import choosing
from stages.planning.choosing import Cost, Given, GridOption, Measured, TooShort, choose, least_budget_s


def grids(*edges: int) -> tuple[GridOption, ...]:
    return tuple(GridOption((96 / n, 96 / n, 96 / n), (n, n, n), ceiling=0.9 + n / 2000) for n in edges)


def measured(**changes: Any) -> Measured:
    """A cohort of 30 scans on two cores of a fast machine; `couple_s` and `step_s` are seconds per voxel."""
    costs = {
        "grids": grids(96, 80, 64, 48, 40, 32),
        "align_s": 5.0,
        "couple_s": 1e-5,
        "step_s": {"light": 1e-6, "full": 4e-6},
        "step_bytes": {"light": 300.0, "full": 1000.0},
        "scans": 30,
        "align_workers": 2,
        "couple_workers": 2,
    }
    costs |= changes
    couple, step = Cost(0.0, costs.pop("couple_s")), {of: Cost(0.0, s) for of, s in costs.pop("step_s").items()}
    return Measured(couple=couple, step=step, **costs)


SLOW = {"align_s": 18.0, "couple_s": 6e-5, "step_s": {"light": 8e-6, "full": 3e-5}, "residual_scaling": 0.3}


@pytest.mark.parametrize("budget_s", [600, 1800, 3600])
@pytest.mark.parametrize("changes", [{}, SLOW, {"scans": 2000}, {"scans": 1}, SLOW | {"scans": 500, "atlases": 5}])
def test_what_is_chosen_takes_the_time_that_there_is(budget_s, changes):
    costs = measured(**changes)
    chosen = choose(costs, budget_s)
    assert 0.9 * budget_s < chosen.total_s <= budget_s
    assert chosen.steps >= choosing.LEAST_STEPS
    assert chosen.scans == costs.scans or chosen.scans >= choosing.LEAST_SCANS
    assert chosen.couples >= min(choosing.LEAST_COUPLES, costs.scans * costs.atlases)
    assert chosen.couples <= chosen.scans * costs.atlases


def test_a_fast_machine_takes_the_derived_grid_and_the_full_network():
    fast = measured(step_s={"light": 1e-8, "full": 4e-8}, couple_s=1e-7)
    chosen = choose(fast, 1800)
    assert (chosen.grid, chosen.is_derived, chosen.network, chosen.batch_size) == (fast.grids[0], True, "full", 2)
    assert (chosen.scans, chosen.couples) == (30, 30)


def test_a_slow_machine_takes_a_coarser_grid_on_which_the_light_network_gets_its_steps():
    slow = measured(**SLOW)
    chosen = choose(slow, 1800)
    assert (chosen.network, chosen.is_derived) == ("light", False)
    assert chosen.steps >= choosing.STEPS_OF_A_GRID
    finer = slow.grids[slow.grids.index(chosen.grid) - 1]
    assert choose(replace(slow, grids=(finer,)), 1800, Given(half_resolution=0.0)).steps < choosing.STEPS_OF_A_GRID


def test_scans_that_alignment_leaves_unlike_get_more_steps_on_a_coarser_grid():
    alike, unlike = (choose(measured(**SLOW | {"residual_scaling": left}), 1800) for left in (0.02, 0.3))
    assert unlike.grid.voxels < alike.grid.voxels
    assert unlike.steps >= choosing.STEPS_OF_A_GRID > alike.steps >= choosing.STEPS_WHERE_ALIKE


def test_a_small_network_takes_a_finer_grid_and_a_light_one_where_it_gets_its_steps_there():
    costs = {"small": 2e-6, "light": 8e-6, "full": 3e-5}
    slow = measured(**SLOW | {"step_s": costs, "step_bytes": dict.fromkeys(costs, 300.0)})
    chosen, without = choose(slow, 1800), choose(measured(**SLOW), 1800)
    assert (chosen.network, without.network) == ("small", "light")
    assert chosen.grid.voxels > without.grid.voxels
    coarse = choose(replace(slow, grids=(without.grid,)), 1800)
    assert coarse.network == "light"


def test_few_steps_begin_at_half_of_the_resolution_and_become_more():
    alike = measured(**SLOW | {"residual_scaling": 0.02})
    chosen = choose(alike, 1800)
    all_fine = choose(alike, 1800, Given(half_resolution=0.0))
    assert (chosen.half_resolution, all_fine.half_resolution) == (choosing.HALF_RESOLUTION, 0.0)
    assert chosen.grid == all_fine.grid and all_fine.steps < choosing.STEPS_OF_A_GRID
    assert chosen.steps > 3 * all_fine.steps
    assert chosen.total_s == pytest.approx(all_fine.total_s, rel=0.02)
    assert choose(measured(**SLOW), 1800).half_resolution == 0.0  # has enough steps


def test_thick_slices_are_halved_within_the_slice():
    assert GridOption((8.0, 1.0, 1.0), (20, 100, 80)).halved_voxels == 20 * 50 * 40
    assert GridOption((1.0, 1.0, 1.0), (20, 100, 80)).halved_voxels == 10 * 50 * 40


def test_more_time_never_takes_a_coarser_grid_or_fewer_scans():
    slow = measured(**SLOW)
    chosen = [choose(slow, 60.0 * minutes) for minutes in range(5, 240, 5)]
    assert all(b.grid.voxels >= a.grid.voxels for a, b in pairwise(chosen))
    assert chosen[-1].scans >= chosen[0].scans


def test_a_huge_cohort_is_cut_to_what_alignment_and_registration_may_take():
    chosen = choose(measured(scans=2000), 1800)
    assert chosen.scans < 2000
    assert chosen.seconds["alignment"] <= choosing.ALIGNING * 1800
    assert chosen.seconds["couples"] <= choosing.COUPLING * 1800
    assert chosen.scans == chosen.couples  # with one atlas, a scan without a couple teaches nothing


def test_couples_are_never_more_than_the_recipe_takes():
    assert choose(measured(scans=2000, align_s=0.0, couple_s=0.0), 1800).couples == choosing.MOST_COUPLES


def test_a_method_that_registers_nothing_keeps_its_scans():
    assert choose(measured(couple_s=0.0), 1800).seconds["couples"] == 0


def test_what_a_step_costs_on_any_grid_is_counted_once_a_step():
    costs = replace(measured(), step={"light": Cost(0.1, 1e-6), "full": Cost(0.5, 4e-6)}, couple=Cost(2.0, 1e-5))
    grid = costs.grids[-1]
    assert costs.step_of(grid, "light", 2) == pytest.approx(0.1 + 2e-6 * 32**3)
    assert costs.couple_all_s(5, grid) == pytest.approx(3 * (2.0 + 1e-5 * 32**3))  # two at a time
    small_is_dear = replace(costs, step={"light": Cost(0.0, 1e-6), "full": Cost(0.5, 1e-7)})
    assert small_is_dear.by_cost == ["full", "light"]  # on the finest grid, whatever the coarse ones cost


def test_an_impossible_budget_is_refused_and_the_smallest_one_is_not():
    slow = measured(**SLOW)
    with pytest.raises(TooShort):
        choose(slow, 60)
    least = least_budget_s(slow)
    assert choose(slow, least).steps >= choosing.LEAST_STEPS
    with pytest.raises(TooShort):
        choose(slow, least - 60)


def test_between_few_steps_and_enough_ones_the_coarsest_grid_is_taken():
    slow = measured(**SLOW)
    chosen = choose(slow, least_budget_s(slow))
    assert chosen.grid == slow.grids[-1]
    assert chosen.half_resolution  # as the steps at full resolution are too few


def test_grids_that_lose_a_structure_or_its_shape_are_not_taken():
    first, second, third, *_ = grids(96, 64, 48, 32)
    lossy = measured(grids=(first, replace(second, lost=("tube",)), replace(third, ceiling=0.5)), **SLOW)
    assert lossy.allowed() == [first]
    assert choose(lossy, 7200).grid == first


def test_the_derived_grid_may_be_taken_whatever_it_loses():
    (first,) = grids(64)
    assert measured(grids=(replace(first, lost=("tube",), ceiling=0.2),)).allowed()


def test_what_does_not_fit_into_memory_is_not_taken():
    fast = measured(step_s={"light": 1e-8, "full": 4e-8}, couple_s=1e-7)
    enough = fast.grids[2].voxels * 300 * choosing.MEMORY
    chosen = choose(replace(fast, free_bytes=int(enough * 1.1)), 1800)
    assert (chosen.grid, chosen.network, chosen.batch_size) == (fast.grids[2], "light", 1)
    with pytest.raises(TooShort):
        least_budget_s(replace(fast, free_bytes=1000))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"network": "light"}, {"network": "light"}),
        ({"network": "full"}, {"network": "full"}),
        ({"batch_size": 4}, {"batch_size": 4}),
        ({"augmentation": "none"}, {"augmentation": "none"}),
        ({"couples": 7}, {"couples": 7}),
        ({"half_resolution": 0.5}, {"half_resolution": 0.5}),
    ],
)
@pytest.mark.parametrize("changes", [{}, SLOW])
def test_what_is_set_by_hand_wins(given, expected, changes):
    chosen = choose(measured(**changes), 3600, Given(**given))
    assert {name: getattr(chosen, name) for name in expected} == expected


def test_a_network_that_only_the_file_names_is_planned_with():
    costs = measured(step_s={"brbs": 1e-6}, step_bytes={"brbs": 900.0})
    assert choose(costs, 3600, Given(network="brbs")).network == "brbs"


def test_crops_are_augmented_strongly():
    assert choose(measured(residual_scaling=0.2), 1800).augmentation == "strong"
    assert choose(measured(residual_scaling=0.03), 1800).augmentation == "mild"


def test_without_a_budget_the_recipe_decides_and_the_time_is_said():
    chosen = choose(measured(**SLOW), None, Given(steps=2000))
    assert (chosen.is_derived, chosen.network, chosen.batch_size, chosen.steps) == (True, "light", 2, 2000)
    assert chosen.seconds["training"] == pytest.approx(2000 * 8e-6 * 96**3 * 2)
    assert chosen.seconds["alignment"] == 15 * 18
