"""`eval` with pairs, with structures that are reported together, and the time of an answer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import Project

from stages.answering.scoring import as_reported
from stages.artifacts.comparison import Comparison
from stages.artifacts.scores import Scores
from stages.artifacts.store import verify
from stages.config import load_config
from stages.data.phantoms import STRUCTURES
from stages.errors import LrlsError

PAIRS = ["--set", "eval.registration_pairs=test"]
LOBES = "eval.report_as={lobes: [left_lobe, right_lobe]}"


@pytest.fixture(scope="module")
def affine(tmp_path_factory, new_project, no_pictures_in_module) -> Project:
    """A project with scores of `affine`, which tests share."""
    project = new_project(tmp_path_factory.mktemp("affine"))
    project.made("run", "--method", "affine")
    return project


def scored(project: Project, *settings: str, method: str = "affine") -> Scores:
    done = project.made("eval", "--method", method, *settings)
    return Scores.open(Path(done.out.splitlines()[-1]))


# Pairs


def test_pairs_of_one_atlas_have_the_scores_of_its_vote(affine):
    made = scored(affine, "--set", "eval.registration_pairs=atlases")
    pairs = pd.read_csv(made.folder / "pair-structures.csv")
    votes = made.table[made.table["output"] == "registration"].set_index(["case", "structure"])
    assert set(pairs["moving"]) == {"atlas_1"} and len(pairs) == len(votes)
    for row in pairs.to_dict("records"):
        assert row["dsc"] == pytest.approx(votes.loc[(row["fixed"], row["structure"]), "dsc"], abs=1e-6)
    table = pd.read_csv(made.folder / "pairs.csv")
    assert table[["moving", "fixed"]].values.tolist() == [["atlas_1", "test_1"], ["atlas_1", "test_2"]]
    assert made.summary["pairs"]["dsc"]["mean"] == pytest.approx(table["dsc"].mean(), abs=1e-6)


def test_scored_scans_move_to_one_another_but_not_to_themselves(affine):
    made = scored(affine, *PAIRS)
    verify(made.folder)
    table = pd.read_csv(made.folder / "pairs.csv")
    assert table[["moving", "fixed"]].values.tolist() == [["test_2", "test_1"], ["test_1", "test_2"]]
    assert (table["folding_fraction"] == 0).all() and (table["dsc"] > 0.2).all()
    # Without a displacement, a pair's DSC is that of two truths on one grid: the same there and back, but for voxels.
    assert table["dsc"][0] == pytest.approx(table["dsc"][1], abs=0.05)
    one = scored(affine, *PAIRS, "--set", "eval.fixed_scans=1")
    assert pd.read_csv(one.folder / "pairs.csv")["fixed"].tolist() == ["test_1"]
    assert scored(affine, *PAIRS).folder == made.folder
    assert "2 pairs, test scans to one another: DSC 0." in affine.made("eval", "--method", "affine", *PAIRS).out


def test_scores_without_pairs_stay_what_they_were(affine):
    before = scored(affine)
    assert "registration_pairs" not in before.manifest.identity.config
    assert not (before.folder / "pairs.csv").exists() and "pairs" not in before.summary


def test_a_stopped_run_keeps_the_pairs_of_finished_scans(affine, monkeypatch):
    from stages.answering import pairs

    real, asked = pairs.displacements, []

    def once(registers, images, cases, **options):
        asked.append(cases[0])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(registers, images, cases, **options)

    monkeypatch.setattr(pairs, "displacements", once)
    assert affine.lrls("eval", "--method", "affine", *PAIRS, "--force").code != 0
    made = scored(affine, *PAIRS, "--force")
    assert asked == ["test_1", "test_2", "test_2"]
    assert len(pd.read_csv(made.folder / "pairs.csv")) == 2


def test_a_method_that_registers_nothing_has_no_pairs(project, no_pictures):
    project.made("run", "--method", "unet", *PAIRS)
    assert not (project.workspace / "unet" / "scores" / "v0001" / "pairs.csv").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["data.test=[test_1]"], "eval.registration_pairs: test pairs scans with one another, and data.test lists 1;"),
        (["eval.fixed_scans=3"], "eval.fixed_scans: found 3, but data.test lists 2; list more, or set it lower."),
    ],
)
def test_pairs_that_cannot_be_are_refused(affine, settings, line):
    done = affine.lrls("run", "--method", "affine", *PAIRS, *(f"--set={each}" for each in settings))
    assert done.code == 1 and done.err.startswith(f"lrls: {line}")


def test_a_damaged_summary_of_pairs_is_told(affine, tmp_path):
    made = scored(affine, *PAIRS)
    made = replace(made, folder=Path(shutil.copytree(made.folder, tmp_path / "v0001")))
    summary = json.loads((made.folder / "summary.json").read_text(encoding="utf-8"))
    del summary["pairs"]["dsc"]["low"]
    (made.folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    with pytest.raises(LrlsError, match=r"summary.json is damaged"):
        _ = made.summary


# Structures that are reported together


def test_structures_together_are_scored_as_one(affine):
    made = scored(affine, "--set", LOBES)
    assert affine.versions("cohort") == ["v0001"]
    table = made.table
    assert list(table["structure"].unique()) == ["core", "lobes", "tube"]
    values = [STRUCTURES["left_lobe"], STRUCTURES["right_lobe"]]
    truth, answer = (
        np.isin(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), values)
        for file in (affine.config.data.folder / "labels/test_1.nii.gz", made.folder / "labels/test_1.nii.gz")
    )
    dsc = 2 * (truth & answer).sum() / (truth.sum() + answer.sum())
    own = table[(table["case"] == "test_1") & (table["structure"] == "lobes")]
    assert own["dsc"].tolist() == pytest.approx([dsc], abs=1e-6)
    alone = scored(affine).table
    for name in ("core", "tube"):
        assert table[table["structure"] == name]["dsc"].tolist() == alone[alone["structure"] == name]["dsc"].tolist()
    assert list(made.summary["outputs"]["registration"]["structures"]) == ["core", "lobes", "tube"]


def test_compare_takes_scores_of_the_same_groups(affine):
    line = "affine has no scores on test with seed 0 and this eval.report_as; run `lrls run --method affine` first."
    done = affine.lrls("compare", "--method", "affine", "--set", "eval.report_as={both: [core, tube]}")
    assert (done.code, done.err) == (1, f"lrls: {line}\n")
    scored(affine, "--set", LOBES)
    done = affine.made("compare", "--method", "affine", "--set", LOBES)
    structures = pd.read_csv(Path(done.out.splitlines()[-1]) / "structures.csv")
    assert structures["structure"].tolist() == ["core", "lobes", "tube"]
    assert (
        len(pd.read_csv(Path(affine.made("compare", "--method", "affine").out.splitlines()[-1]) / "structures.csv"))
        == 4
    )


def test_classes_are_joined_at_the_place_of_the_first(project):
    config = load_config(project.config_file, ["eval.report_as={a: [core, right_lobe]}"])
    assert config.reported() == {"a": [1, 3], "left_lobe": [2], "tube": [4]}
    assert as_reported(np.array([0, 1, 2, 3, 4]), config).tolist() == [0, 1, 2, 1, 3]


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        (
            "{a: [core, cor]}",
            "eval.report_as.a names 'cor', which is no structure; name some of core, left_lobe, right_lobe, tube.",
        ),
        ("{a: [core], b: [core]}", "eval.report_as: core is in a and b; name it once."),
        ("{a: [core, core]}", "eval.report_as: core is in a and a; name it once."),
        ("{a: []}", "eval.report_as.a names no structure; give at least one."),
        ("{tube: [core]}", "eval.report_as.tube: a structure has that name, too; give another one."),
    ],
)
def test_groups_that_cannot_be_are_refused(project, groups, line):
    with pytest.raises(LrlsError) as refused:
        load_config(project.config_file, [f"eval.report_as={groups}"])
    assert str(refused.value) == f"lrls.yaml: {line}"


# The time of an answer


def test_seconds_a_scan_stand_in_the_scores_and_in_comparisons_but_not_in_digests(affine):
    made = scored(affine)
    assert made.manifest.scan_s is not None and 0 < made.manifest.scan_s < 60
    done = affine.made("compare", "--method", "affine")
    table = Comparison.open(Path(done.out.splitlines()[-1])).table
    known = [affine.manifest("affine/scores", version).scan_s for version in affine.versions("affine/scores")]
    assert min(abs(table["scan_s"][0] - seconds) for seconds in known) < 1e-3
    again = scored(affine, "--force")
    assert again.folder != made.folder and again.manifest.digest == made.manifest.digest
    assert " s a scan, from the grid to its own voxels, on cpu" in affine.made("eval", "--method", "affine").out
