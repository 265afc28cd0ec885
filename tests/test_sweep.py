"""`lrls sweep`: what is run, what is found again, what is refused, and what stands in the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Project
from PIL import Image

from stages.artifacts.store import verify
from stages.artifacts.sweep import Sweep
from stages.errors import LrlsError
from stages.parts.statistics import bootstrap_interval, crossed_interval
from stages.pictures import Curve, sweep_page
from stages.pictures.sweep import places_of
from stages.sweep import swept_values

ATLASES = ("--set", "data.atlases=[atlas_1, atlas_2]", "--set", "data.supervised=[]")


def swept(project: Project, *arguments: str) -> Sweep:
    done = project.made("sweep", *arguments)
    return Sweep.open(Path(done.out.splitlines()[-1]))


def test_runs_are_those_of_run_and_a_repeated_sweep_makes_nothing(project, no_pictures):
    project.made("run", "--method", "unet", *ATLASES, "--set", "preprocess.most_atlases=2", "--set", "seed=1")
    asked = ("preprocess.most_atlases=2,1", "--method", "unet", "--seed", "0", "--seed", "1", *ATLASES)
    made = swept(project, *asked)
    assert project.versions("unet/scores") == ["v0001", "v0002", "v0003", "v0004"]  # one of the four was there
    table = made.table
    assert table["value"].tolist() == ["1", "2"] and table["runs"].tolist() == [2, 2]
    before = project.digests()
    assert swept(project, *asked).folder == made.folder
    assert project.digests() == before
    cohorts = [project.manifest("cohort", version).identity.config["members"] for version in project.versions("cohort")]
    assert sorted(len(members["atlases"]) for members in cohorts) == [1, 2]


def test_tables_are_means_over_runs_and_scans(project, no_pictures):
    few = ("--set", "train_reg.steps=1", "--set", "train_seg.steps=1")
    made = swept(project, "inverse_weight=0,0.1", "--method", "brbs", "--seed", "0", "--seed", "1", *few)
    assert made.manifest.identity.config["values"] == [0, 0.1]
    scans, table = pd.read_csv(made.folder / "scans.csv"), made.table.set_index(["value", "output"])
    assert len(scans) == 2 * 2 * 2 * 2  # values, seeds, outputs, scans
    own = scans[(scans["value"] == 0.1) & (scans["output"] == "registration")]
    row = table.loc[("0.1", "registration")]
    assert row["dsc"] == pytest.approx(own["dsc"].mean(), abs=1e-5)
    assert row["dsc_std_runs"] == pytest.approx(own.groupby("seed")["dsc"].mean().std(ddof=0), abs=1e-5)
    assert row["dsc_low"] <= row["dsc"] <= row["dsc_high"]
    structures = pd.read_csv(made.folder / "structures.csv")
    assert set(structures["structure"]) == set(project.config.structures)
    (made.folder / "sweep.csv").write_text("method,value\n")
    with pytest.raises(LrlsError, match=r"make it again with `lrls sweep --force`"):
        _ = made.table
    with pytest.raises(LrlsError, match=r"make it again with `lrls sweep --force`"):
        verify(made.folder)


def test_a_stopped_sweep_goes_on_with_the_runs_that_are_missing(project, no_pictures, monkeypatch):
    from stages import sweep as stage

    real, seeds = stage.run, []

    def once(config, method, **options):
        if seeds:
            raise KeyboardInterrupt
        seeds.append(config.seed)
        return real(config, method, **options)

    asked = ("train_seg.steps=2,3", "--method", "unet")
    with monkeypatch.context() as broken:
        broken.setattr(stage, "run", once)
        assert project.lrls("sweep", *asked).code != 0
    assert project.versions("unet/scores") == ["v0001"] and not project.versions("sweep")
    swept(project, *asked)
    assert project.versions("unet/scores") == ["v0001", "v0002"] and project.versions("sweep") == ["v0001"]


def test_a_setting_that_changes_nothing_is_told(project, no_pictures):
    done = project.made("sweep", "generate.samples=0,2", "--method", "affine")
    assert "note: generate.samples 0 and 2 are one run of affine, which that setting does not change." in done.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["mix_weight"], "mix_weight: expected SETTING=VALUE,VALUE,..., for example mix_weight=0,0.1,1."),
        (["mix_weight=0.1"], "mix_weight: found 1 value, at least 2 are needed for a curve; list more."),
        (["mix_weight=1,1"], "mix_weight: found 1 value, at least 2 are needed for a curve; list more."),
        (["mix_weight=[1,2"], "mix_weight: the values are not readable as YAML ("),
        (["seed=0,1"], "seed is no setting to sweep; give --seed for seeds, and --set seed=... for all runs."),
        (["mix_wait=0,1"], "methods.brbs: unknown setting mix_wait; did you mean mix_weight?"),
        (["mix_weight=0,-1"], "methods.brbs: setting mix_weight: "),
        (["preprocess.most_atlases=1,2"], "preprocess.most_atlases=2: data.atlases lists 1; list more, or ask for"),
        (["preprocess.most_unlabeled=0,3"], "preprocess.most_unlabeled=3: data.unlabeled lists 2; list more, or"),
        (["data.test=[test_1],[test_2]"], "data.test: [test_1] and [test_2] are scored on other scans; name the same"),
        (["mix_weight=0,1", "--set", "data.test=[]"], "data.test lists no scan; list labelled scans there, or set"),
        (
            ["preprocess.most_unlabeled=0,2", "--method", "voxelmorph"],
            "voxelmorph learns from unlabelled scans, and preprocess.most_unlabeled leaves none; list some, or choose "
            "one of: unet, supervised, rigid, affine, bspline, syn, greedy, mabmis, brbs, os-medseg, best.",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused_in_one_line_before_anything_is_run(project, arguments, line):
    done = project.lrls("sweep", *arguments, "--method", "brbs")
    assert done.code == 1 and done.err.count("\n") == 1
    assert done.err.removeprefix("lrls: ").removeprefix("lrls.yaml: ").startswith(line)
    assert not project.versions("cohort")


def test_values_are_yaml_and_numbers_come_in_order():
    assert swept_values("a.b=0.1,0,10") == ("a.b", [0, 0.1, 10])
    assert swept_values("mmr=true,false") == ("mmr", [True, False])
    assert swept_values("data.atlases=[001],[001, 002]") == ("data.atlases", [["001"], ["001", "002"]])


# Intervals over runs and scans


def test_interval_of_one_run_is_that_of_its_scans_and_of_one_scan_that_of_its_runs():
    scans = np.random.default_rng(0).random(12)
    expected = bootstrap_interval(scans)
    assert crossed_interval(scans[None]) == pytest.approx(expected, abs=0.01)
    assert crossed_interval(scans[:, None]) == pytest.approx(expected, abs=0.01)


def test_interval_over_runs_and_scans_has_the_variance_of_both():
    # Runs differ by 1, scans by 2: the mean of two runs and two scans drawn anew is 0 to 3, each end in 1 of 16 draws.
    values = np.array([[0.0, 2.0], [1.0, 3.0]])
    assert crossed_interval(values) == pytest.approx((0.0, 3.0))
    assert crossed_interval(np.full((2, 3), 0.5)) == (0.5, 0.5)
    assert crossed_interval(np.array([[0.5, np.nan], [0.5, 0.5]])) == (0.5, 0.5)
    assert np.isnan(crossed_interval(np.full((2, 2), np.nan))).all()


# The curve


def test_numbers_stand_at_their_places_unless_they_span_orders_of_magnitude():
    assert places_of([1, 2, 3, 5]) == [1, 2, 3, 5]
    assert places_of([0, 5, 20]) == [0, 5, 20]
    assert places_of([0, 0.01, 0.1, 1]) == [0, 1, 2, 3]
    assert places_of(["dice", "dice-ce"]) == [0, 1]
    assert places_of([0]) == [0]


def test_curve_has_a_second_panel_for_few_structures(tmp_path):
    curves = {"brbs": Curve([0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [0.6, 0.7, 0.8], [[0.45, 0.55], [0.6, 0.6], [0.7]])}
    sizes = []
    for structures in ({}, {"a": Curve([0.1, 0.2, 0.3]), "b": Curve([0.2, float("nan"), 0.4])}):
        sweep_page(curves, tmp_path / "curve.png", setting="labels", values=[1, 2, 5], structures=structures)
        with Image.open(tmp_path / "curve.png") as picture:
            sizes.append(picture.size)
    assert sizes[1][0] > 1.5 * sizes[0][0] and sizes[1][1] == sizes[0][1]
