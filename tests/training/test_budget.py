"""Budgets: steps that fit into the time given."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from conftest import Project

from stages.artifacts.store import Draft
from stages.errors import LrlsError
from stages.generating.path_bank import PathBank
from stages.methods import METHODS, recipe_of, training_of
from stages.training import budget as budgets
from stages.training.budget import Budget
from stages.training.loop import step_seconds
from stages.training.runs import run_of
from stages.workflow import opened_cohort

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def half_a_second(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A step takes half a second, whatever runs, and is not really done; the runs that were measured."""
    runs: list[object] = []

    def step(run: object) -> float:
        runs.append(run)
        return 0.5

    monkeypatch.setattr(budgets, "step_seconds", step)
    monkeypatch.setattr("stages.training.runs.train", lambda _: [])
    return runs


def steps_of(project: Project, target: str, stage: str) -> list[int]:
    return [project.manifest(target, version).identity.config[stage]["steps"] for version in project.versions(target)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", Budget(seconds=90)), ("10m", Budget(seconds=600)), ("1.5h", Budget(seconds=5400)),
     ("30min", Budget(seconds=1800)), ("1h30m", Budget(seconds=5400)), ("2000steps", Budget(steps=2000))],
)  # fmt: skip
def test_times_and_steps_are_read(text, expected):
    assert Budget.parse(text) == expected


@pytest.mark.parametrize("text", ["10", "m", "0m", "10 minutes", "-5m", "h2", "0steps", ""])
def test_anything_else_is_answered_with_the_forms(text):
    with pytest.raises(LrlsError, match=r"^--budget .*: expected a time like 90s, 10m or 2h, or steps like 2000steps"):
        Budget.parse(text)


def plan_of(project: Project, method: str, version: str = "v0001") -> dict[str, float]:
    return json.loads((project.workspace / method / "steps" / version / "steps.json").read_text())


def took(project: Project, *targets: str) -> float:
    return sum(project.manifest(target).wall_time_s for target in targets)


def test_one_stage_gets_all_the_time(project, half_a_second):
    project.made("run", "--method", "unet", "--until", "train-seg", "--budget", "10m")
    plan = plan_of(project, "unet")
    assert took(project, "cohort", "plan") <= plan["spent_s"] < took(project, "cohort", "plan") + 20
    assert plan["left_s"] == pytest.approx(600 * (1 - budgets.MARGIN) - plan["spent_s"])
    measuring = took(project, "unet/steps")
    assert (plan["left_s"] - measuring) / 0.5 - 1 <= plan["steps"] <= plan["left_s"] / 0.5
    assert half_a_second[0].settings.steps == 4  # as the configuration has it: measuring is no training


def test_two_stages_share_the_time_and_the_second_gets_what_is_left(project, half_a_second, monkeypatch):
    monkeypatch.setattr(budgets, "step_seconds", lambda _: 60.0)
    project.made("run", "--method", "brbs", "--until", "train-seg", "--budget", "2h")
    first, second = plan_of(project, "brbs"), plan_of(project, "brbs", "v0002")
    assert first["generate_s"] > 0
    available = 7200 * (1 - budgets.MARGIN) - first["spent_s"] - first["generate_s"]
    assert first["left_s"] == pytest.approx(available / 2)
    assert steps_of(project, "brbs/registration", "train_reg") == [first["steps"]]
    made = ("cohort", "plan", "brbs/registration", "brbs/generated", "brbs/steps")
    assert took(project, *made) <= second["spent_s"] < took(project, *made) + 20
    assert second["left_s"] == pytest.approx(7200 * (1 - budgets.MARGIN) - second["spent_s"])
    assert steps_of(project, "brbs/segmentation", "train_seg") == [second["steps"]]


def test_the_same_command_again_keeps_the_steps_and_force_measures_anew(project, half_a_second, monkeypatch):
    monkeypatch.setattr(budgets, "step_seconds", lambda run: half_a_second.append(run) or 60.0)
    command = ("run", "--method", "unet", "--until", "train-seg", "--budget", "0.5h")
    project.made(*command)
    project.made(*command)
    assert len(half_a_second) == 1
    assert project.versions("unet/segmentation") == ["v0001"]
    project.made(*command, "--force")
    assert len(half_a_second) == 2
    assert project.versions("unet/steps") == ["v0001", "v0002"]


def test_too_short_a_budget_for_a_published_method_says_how_short(project, half_a_second, monkeypatch):
    monkeypatch.setattr(budgets, "step_seconds", lambda _: 60.0)
    done = project.lrls("run", "--method", "brbs", "--until", "train-seg", "--budget", "5m")
    assert done.code == 1
    assert "s are left for train-reg, whose steps take 60.0 s: room for " in done.err
    assert re.search(r"expected at least 20; give it \d+m or more\.\n$", done.err)
    assert project.versions("brbs/steps") == []


def test_a_method_that_the_plan_is_made_for_is_trained_even_where_the_machine_has_turned_slow(project, monkeypatch):
    monkeypatch.setattr(budgets, "step_seconds", lambda _: 60.0)
    monkeypatch.setattr("stages.training.runs.train", lambda _: [])
    project.made("run", "--method", "unet", "--until", "train-seg", "--budget", "5m")
    assert steps_of(project, "unet/segmentation", "train_seg") == [budgets.LEAST_STEPS]


def test_steps_are_divided_as_the_configuration_does(project):
    project.made(
        "run", "--method", "brbs", "--until", "train-seg", "--budget", "6steps",
        "--set", "train_reg.steps=10", "--set", "train_seg.steps=20",
    )  # fmt: skip
    assert steps_of(project, "brbs/registration", "train_reg") == [2]
    assert steps_of(project, "brbs/segmentation", "train_seg") == [4]


def test_measured_steps_are_real_ones_and_phases_count_by_their_share(project, tmp_path, monkeypatch):
    project.made("preprocess")
    config = project.config
    config = config.model_copy(update={"methods": config.methods | {"brbs": config.methods["brbs"] | {"warm_up": 0.5}}})
    method, cohort = METHODS["brbs"], opened_cohort(config, "train")
    recipe = recipe_of(method, cohort, config)
    device, step = budgets.choose_device(config), recipe.step("registration", 0)
    run = run_of(step, recipe, cohort, config, method, device, Draft(tmp_path))
    clock = iter(range(10_000))
    monkeypatch.setattr("stages.training.loop.time.monotonic", lambda: float(next(clock)))
    R = recipe.networks["registration"]
    before = {name: tensor.clone() for name, tensor in R.state_dict().items()}
    # Every look at this clock takes a second: a step is two looks, of either phase.
    assert step_seconds(run, patience_s=1e9) == pytest.approx(0.5 * 1 + 0.5 * 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in R.state_dict().items())
    assert training_of(method, config, "train_reg").steps == 4


def test_what_is_generated_between_two_trainings_is_measured_and_taken_off(project, half_a_second, monkeypatch):
    measured = []

    def seconds(writer, job):
        measured.append((type(writer).__name__, job.cohort.parts["unlabeled"]))
        return 100.0

    monkeypatch.setattr(PathBank, "planned_seconds", seconds)
    project.made("run", "--method", "brbs", "--until", "train-seg", "--budget", "2h")
    first, second = plan_of(project, "brbs"), plan_of(project, "brbs", "v0002")
    assert measured == [("PathBank", ["free_1", "free_2"])]  # before the first of them alone
    assert (first["generate_s"], second["generate_s"]) == (100, 0)
    available = 7200 * (1 - budgets.MARGIN) - first["spent_s"] - 100
    assert first["left_s"] == pytest.approx(available / 2)
    assert second["spent_s"] < took(project, "cohort", "plan", "brbs/registration", "brbs/generated", "brbs/steps") + 20


def test_the_time_of_generated_data_is_that_of_a_registration_times_couples_and_ways(project, tmp_path, monkeypatch):
    project.made("preprocess")
    config, cohort = project.config, opened_cohort(project.config, "train")
    clock = iter(range(10_000))
    monkeypatch.setattr("time.monotonic", lambda: 3.0 * next(clock))  # every look at it takes 3 s
    device = budgets.choose_device(config)

    def seconds(method):
        recipe = recipe_of(METHODS[method], cohort, config)
        step = recipe.step("registration", 0)
        return budgets._generate_seconds(recipe, 0, step, cohort, config, device, Draft(tmp_path))

    assert seconds("brbs") == 2 * 2 * 3.0  # two scans, there and, for style maps, back
    assert seconds("data-aug") == 2 * 3 * 3.0  # and the network for style maps
    assert seconds("os-medseg") == 2 * 3.0
    assert seconds("voxelmorph") == 0  # nothing reads its propagated labels


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """Methods whose networks got weights, once for every time."""
    networks: list[str] = []
    for name, method in METHODS.items():

        def recipe(task, settings, name=name, build=method.recipe):
            found = build(task, settings)
            if any(p.device.type != "meta" for network in found.networks.values() for p in network.parameters()):
                networks.append(name)
            return found

        monkeypatch.setitem(METHODS, name, replace(method, recipe=recipe))
    return networks


def test_networks_are_built_once_for_each_artifact_and_not_at_all_where_all_is_up_to_date(
    project, half_a_second, built
):
    command = ("run", "--method", "brbs", "--until", "train-seg", "--budget")
    project.made(*command, "2h")
    made = [name for name in project.digests() if name.startswith("brbs/")]
    assert len(made) == 5  # steps of two stages, and what `run` makes
    assert built == ["brbs"] * 5
    project.made(*command, "2h")
    assert len(built) == 5
    project.made(*command, "8steps", "--force")  # steps are not measured
    assert len(built) == 5 + 3


def test_a_method_that_trains_nothing_says_that_a_budget_has_no_effect(project):
    assert (
        "affine trains nothing: --budget sets the grid and the scans alone"
        in project.made("run", "--method", "affine", "--budget", "1m").out
    )


def test_an_empty_budget_is_no_budget_forgotten(project):
    assert project.lrls("run", "--method", "unet", "--budget", "").err.startswith("lrls: --budget : expected a time")
