"""A plan fills in what the file leaves open, on each level, and is found by every command that it fits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from conftest import MADE_UP, Project

from stages.artifacts.digests import digest_of
from stages.artifacts.plan import Plan
from stages.config import Config
from stages.errors import LrlsError
from stages.methods import find_method, settings_of, training_of
from stages.planning.choosing import Cost, GridOption
from stages.planning.obeying import asked, filled_in, fitting_plans, given, newest_plan, obey
from stages.planning.plans import plan_of_run

pytestmark = pytest.mark.usefixtures("no_pictures")
SETTINGS = {
    "preprocess.spacing_mm": [3.0, 2.0, 2.0],
    "preprocess.most_unlabeled": 1,
    "methods.best.most_paths": 3,
    "methods.best.segmentation_network": "full",
    "methods.unet.segmentation_network": "full",
    "methods.best.train_seg.batch_size": 1,
    "methods.unet.train_seg.augmentation": "mild",
}


def config(**changes: Any) -> Config:
    values = {
        "workspace": "runs",
        "data": {"folder": ".", "atlases": ["a"], "unlabeled": ["u1", "u2"]},
        "structures": {"x": 1},
    }
    return Config.model_validate(values | changes)


def of(config: Config, method: str) -> tuple[Any, Any]:
    found = find_method(method)
    return settings_of(found, config), training_of(found, config, "train_seg")


def test_what_is_open_is_filled_in():
    obeyed = filled_in(config(), SETTINGS)
    assert obeyed.preprocess.spacing_mm == (3.0, 2.0, 2.0)
    assert obeyed.part("unlabeled") == ["u1"]
    best, training = of(obeyed, "best")
    assert (best.most_paths, best.segmentation_network, training.batch_size) == (3, "full", 1)
    unet, training = of(obeyed, "unet")
    assert (unet.segmentation_network, training.augmentation, training.batch_size) == ("full", "mild", 2)
    supervised, _ = of(obeyed, "supervised")
    assert supervised.segmentation_network == "light"  # the plan does not name it
    assert settings_of(find_method("brbs"), obeyed) == settings_of(find_method("brbs"), config())


@pytest.mark.parametrize(
    ("by_hand", "read", "expected"),
    [
        ({"preprocess": {"spacing_mm": 1.5}}, lambda c: c.preprocess.spacing_mm, 1.5),
        ({"preprocess": {"spacing_mm": None}}, lambda c: c.preprocess.spacing_mm, None),
        ({"preprocess": {"shape": [32, 32, 32]}}, lambda c: c.preprocess.spacing_mm, None),
        ({"preprocess": {"most_unlabeled": 2}}, lambda c: c.part("unlabeled"), ["u1", "u2"]),
        ({"methods": {"best": {"most_paths": None}}}, lambda c: of(c, "best")[0].most_paths, None),
        ({"methods": {"best": {"segmentation_network": "light"}}}, lambda c: of(c, "best")[0].segmentation_network,
         "light"),
        ({"train_seg": {"batch_size": 4}}, lambda c: of(c, "best")[1].batch_size, 4),
        ({"methods": {"best": {"train_seg": {"batch_size": 4}}}}, lambda c: of(c, "best")[1].batch_size, 4),
        ({"train_seg": {"augmentation": "none"}}, lambda c: of(c, "unet")[1].augmentation, "none"),
    ],
)  # fmt: skip
def test_what_is_set_by_hand_wins_on_each_level(by_hand, read, expected):
    assert read(filled_in(config(**by_hand), SETTINGS)) == expected


def test_the_rest_of_a_section_stays():
    obeyed = filled_in(config(methods={"best": {"fuse": False, "train_seg": {"steps": 7}}}), SETTINGS)
    best, training = of(obeyed, "best")
    assert (best.fuse, best.segmentation_network, training.steps, training.batch_size) == (False, "full", 7, 1)


@pytest.mark.parametrize(
    "settings",
    [{"data.folder": "/"}, {"preprocess.spacing_mm": -1}, {"methods.best.train_seg.batch_size": "many"},
     {"methods.brbs.segmentation_network": "light"}, {"methods.best.segmentation_network": "huge"}],
)  # fmt: skip
def test_a_plan_that_says_what_no_plan_says_is_damaged(settings, open_project):
    plan = plan_of_run(open_project.config, None)
    file = plan.folder / "plan.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"settings": settings}))
    with pytest.raises(LrlsError, match=r"plan.json is damaged or truncated; make it again with `lrls plan --force`"):
        obey(open_project.config, Plan(plan.folder, plan.manifest))


def test_seeds_steps_and_held_out_scans_do_not_matter_to_a_plan():
    other = config(seed=3, eval={"part": "dev"}, train_seg={"steps": 9}, methods={"best": {"fuse": False}})
    assert asked(other) == asked(config())
    for change in ({"structures": {"y": 1}}, {"preprocess": {"crop": "none"}}, {"train_seg": {"batch_size": 1}}):
        assert asked(config(**change)) != asked(config())
    assert asked(config(data={"folder": ".", "atlases": ["a"], "unlabeled": ["u1"]})) != asked(config())


def test_what_the_file_sets_is_given_to_the_rules():
    hand = given(config(methods={"best": {"segmentation_network": "full", "most_paths": None}}), 5)
    assert (hand.steps, hand.network, hand.couples, hand.batch_size) == (5, "full", 10**9, None)
    assert given(config(), 5).network is None


# Commands


@pytest.fixture
def open_project(tmp_path, new_project, monkeypatch) -> Project:
    """A project that leaves grid, network and steps open, on a machine where a plan takes a coarser grid."""
    project = new_project(tmp_path, preprocess={"spacing_mm": None, "shape": None})
    text = (
        project.config_file.read_text(encoding="utf-8")
        .replace("  spacing_mm: null\n", "")
        .replace("  shape: null\n", "")
    )
    project.config_file.write_text(text, encoding="utf-8")
    grids = (GridOption((1.5, 1.5, 1.5), (48, 40, 48)), GridOption((3.0, 3.0, 3.0), (24, 16, 24)))
    costs = replace(
        MADE_UP, grids=grids, step={"light": Cost(0.0, 3e-6), "full": Cost(0.0, 1e-3)}, scans=2, residual_scaling=0.3
    )
    monkeypatch.setattr("stages.planning.plans.measure", lambda *_, **__: costs)
    monkeypatch.setattr("stages.training.budget.step_seconds", lambda _: 2.0)
    monkeypatch.setattr("stages.training.runs.train", lambda _: [])  # which fills the time
    return project


def test_a_run_obeys_its_plan_and_other_commands_find_what_it_made(open_project, in_this_process):
    open_project.made("run", "--budget", "2m", "--until", "train-seg")
    plan = newest_plan(open_project.config)
    assert plan.settings["preprocess.spacing_mm"] == [3.0, 3.0, 3.0]
    cohort = json.loads((open_project.workspace / "cohort/v0001/cohort.json").read_text())
    assert cohort["grid"]["spacing_mm"] == [3.0] * 3
    before = open_project.digests()
    open_project.made("run", "--budget", "2m", "--until", "train-seg")
    assert open_project.digests() == before
    for command in ("preprocess", "generate", "train-seg"):
        open_project.made(command, *(("--method", "best") if command != "preprocess" else ()))
        assert open_project.digests() == before, command
    open_project.made("eval", "--method", "best", "--set", "eval.part=dev")
    open_project.made("run", "--method", "affine", "--set", "eval.part=dev")
    assert open_project.versions("cohort") == ["v0001"]
    done = open_project.made("compare", "--method", "best", "--method", "affine", "--set", "eval.part=dev")
    assert "other settings" not in done.out + done.err
    scan = open_project.config.data.folder / "images" / "test_1.nii.gz"
    open_project.made("predict", str(scan), "--method", "best", "--out", str(open_project.folder / "out"))


def test_a_plan_that_no_run_has_obeyed_yet_hides_nothing(open_project, in_this_process):
    open_project.made("run", "--budget", "2m", "--until", "train-seg")
    plan_of_run(open_project.config.model_copy(), 36000.0)  # a finer grid, for a run that was stopped at once
    assert [plan.budget_s for plan in fitting_plans(open_project.config)] == [36000, 120]
    before = open_project.digests()
    open_project.made("train-seg", "--method", "best")
    assert open_project.digests() == before


def test_a_method_is_found_by_the_plan_that_it_was_trained_by(open_project, in_this_process):
    open_project.made("run", "--budget", "2m", "--until", "train-seg")
    open_project.made("run", "--method", "unet", "--until", "train-seg")  # another plan, another grid
    assert open_project.versions("cohort") == ["v0001", "v0002"]
    for method, cohort in (("best", "v0001"), ("unet", "v0002")):
        open_project.made("eval", "--method", method, "--set", "eval.part=dev")
        scored = open_project.manifest(f"{method}/scores").identity.inputs["cohort"]
        assert scored == open_project.manifest("cohort", cohort).digest


def test_a_rival_takes_the_plans_grid_and_batch(open_project, in_this_process):
    for method in ("best", "unet", "supervised"):
        open_project.made("run", "--method", method, "--budget", "2m", "--until", "train-seg")
    assert open_project.versions("plan") == open_project.versions("cohort") == ["v0001"]
    for method in ("best", "unet", "supervised"):
        training = open_project.manifest(f"{method}/segmentation").identity.config["train_seg"]
        assert (training["batch_size"], training["augmentation"]) == (2, "strong"), method


def test_settings_by_hand_win_in_a_run(open_project, in_this_process):
    command = ("run", "--budget", "2m", "--until", "train-seg", "--set")
    open_project.made(*command, "preprocess.spacing_mm=2.5", "--set", "train_seg.batch_size=1")
    made = open_project.manifest("best/segmentation").identity.config
    assert made["train_seg"]["batch_size"] == 1
    cohort = json.loads((open_project.workspace / "cohort/v0001/cohort.json").read_text())
    assert cohort["grid"]["spacing_mm"] == [2.5] * 3
    assert newest_plan(open_project.config) is None  # it was made for other settings


def test_a_budget_that_cannot_be_is_refused_in_one_line_before_anything_is_made(open_project):
    done = open_project.lrls("run", "--budget", "5s")
    assert done.code == 1
    line = done.err.splitlines()[-1]
    assert line.startswith("lrls: --budget: 5 s are too short here: the least is 2 alignments (0 s), 2 couples (0 s) ")
    assert " steps on 24 x 16 x 24 voxels of 3 mm (" in line
    assert line.endswith("; give it 1m or more.")
    assert open_project.digests() == {} and not (open_project.workspace / "cohort").exists()


def test_without_a_budget_the_time_is_said_and_nothing_is_filled_in(project):
    done = project.made("run", "--until", "preprocess")
    assert "the run will take about 9 s to the last weights" in done.out
    assert newest_plan(project.config).settings == {}


def test_a_published_method_without_a_budget_obeys_the_newest_plan_and_makes_none(project):
    project.made("run", "--method", "brbs", "--until", "preprocess")
    assert project.versions("plan") == []


def test_plan_prints_what_run_would_do_and_runs_nothing(open_project):
    done = open_project.made("plan", "--budget", "2m")
    assert "24 x 16 x 24 voxels of 3 mm" in done.out and "with twice the time" in done.out
    assert open_project.digests() == {} and open_project.versions("plan") == []  # nothing that later commands obey
    open_project.made("plan", "--budget", "2m", "--force")
    assert open_project.versions("plan") == ["v0001"]
    assert "expected a time" in open_project.lrls("plan", "--budget", "200steps").err


def test_costs_are_measured_once_for_all_budgets(open_project, monkeypatch):
    open_project.made("plan", "--budget", "2m")
    monkeypatch.setattr("stages.planning.plans.measure", lambda *_, **__: pytest.fail("measured again"))
    open_project.made("plan", "--budget", "1h")
    assert open_project.lrls("plan", "--budget", "1s").code == 1


def test_a_scan_that_changed_is_planned_for_anew(open_project, monkeypatch):
    plan_of_run(open_project.config, None)
    plan_of_run(open_project.config, None)
    assert open_project.versions("plan") == ["v0001"]
    monkeypatch.setattr("stages.data.facts.Looked.digests", property(lambda looked: (digest_of(looked.case),)))
    plan_of_run(open_project.config, None)
    assert open_project.versions("plan") == ["v0001", "v0002"]


def test_faults_of_scans_are_told_as_preprocess_tells_them(open_project):
    text = open_project.config_file.read_text(encoding="utf-8").replace("- free_2\n", "- free_3\n")
    open_project.config_file.write_text(text, encoding="utf-8")
    told = open_project.lrls("preprocess").err
    assert "free_3" in told
    assert open_project.lrls("run", "--budget", "2m").err == told
    assert "no plan can be made of these scans; `lrls check` says why." in open_project.lrls("plan").err


def test_a_plan_that_changed_since_it_was_made_is_not_obeyed(open_project):
    plan_of_run(open_project.config, 120)
    (open_project.workspace / "plan" / "v0001" / "plan.json").write_text("[]", encoding="utf-8")
    assert "plan.json" in open_project.lrls("preprocess").err
