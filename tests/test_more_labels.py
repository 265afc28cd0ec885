"""A run after an atlas was added takes over what has not changed: alignments, grid, paths and, if asked, weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stages.artifacts.cohort import Cohort
from stages.artifacts.next_scans import NextScans
from stages.artifacts.weights_file import read_weights
from stages.data import alignments
from stages.reviewed import Overlay, Review, Said
from stages.training.starting import Past
from tests.conftest import Project, draw_no_pictures, work_here
from tests.test_review import corrected

WITH = ("--set", "data.review=review.yaml")
FAST = {"coarse_steps": 2, "fine_steps": 1, "segmentation_network": "light"}


@pytest.fixture(scope="module")
def module_patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        draw_no_pictures(patch)
        yield patch


@pytest.fixture(scope="module")
def grown(
    new_project: Callable[..., Project], scans: Path, tmp_path_factory: pytest.TempPathFactory,
    module_patch: pytest.MonkeyPatch,
) -> tuple[Project, list[str], str]:  # fmt: skip
    """`best` with one atlas, then, by a review, with two: the pairs that the second run aligned, and what it said."""
    folder = tmp_path_factory.mktemp("grown")
    preprocess = {"align": "centre", "spacing_mm": 2.0, "shape": None, "workers": 1}
    data = {"unlabeled": ["free_1", "free_2", "atlas_2"], "supervised": []}
    project = new_project(folder, data=data, preprocess=preprocess, methods={"best": FAST})
    aligned: list[str] = []
    real = alignments.align

    def counted(*arguments: Any, **options: Any) -> Any:
        aligned.append("pair")
        return real(*arguments, **options)

    module_patch.setattr(alignments, "align", counted)
    project.made("run", "--method", "best", "--until", "train-seg")
    before = list(aligned)
    assert before
    project.made("review", "--corrected", str(corrected(folder, scans, "free_1")))
    done = project.made(
        "run", "--method", "best", "--until", "train-seg", *WITH, "--set", "train_seg.start_from=latest"
    )
    return project, aligned[len(before) :], done.out


def test_no_scan_is_aligned_again_and_the_grid_stays(grown: tuple[Project, list[str], str]) -> None:
    project, aligned, _ = grown
    before, after = (Cohort.open(project.workspace / "cohort" / version) for version in ("v0001", "v0002"))
    assert aligned == [] and after.grid == before.grid
    assert after.parts == {"atlases": ["atlas_1", "free_1"], "unlabeled": ["free_2", "atlas_2"]}
    for case in after.cases:
        assert np.array_equal(before.image(case), after.image(case))


def test_paths_of_unchanged_couples_are_taken_over(grown: tuple[Project, list[str], str]) -> None:
    project, _, told = grown
    assert "2 of 4 couples are taken over from an earlier version" in told
    project.made("generate", "--method", "best", *WITH, "--force")  # registers none of them, either
    files = [project.workspace / "best" / "generated" / v / "generated.h5" for v in ("v0001", "v0002", "v0003")]
    with h5py.File(files[0]) as first, h5py.File(files[1]) as second, h5py.File(files[2]) as third:
        old, new = (
            [*zip(*(f["paths"][n].asstr()[()] for n in ("atlas", "scan")), strict=True)] for f in (first, second)
        )
        for couple in set(old) & set(new):
            for name in ("displacement", "similarity", "folding_fraction"):
                assert np.array_equal(first["paths"][name][old.index(couple)], second["paths"][name][new.index(couple)])
        for name in ("displacement", "similarity"):
            assert np.array_equal(second["paths"][name][()], third["paths"][name][()])
    assert len(set(old) & set(new)) == 2


def test_what_registers_otherwise_is_registered_again(grown: tuple[Project, list[str], str]) -> None:
    project, _, _ = grown
    done = project.made("generate", "--method", "best", *WITH, "--set", "methods.best.fine_steps=2")
    assert "taken over" not in done.out


def test_training_starts_from_the_weights_that_it_has(grown: tuple[Project, list[str], str]) -> None:
    project, _, told = grown
    latest = ("--set", "train_seg.start_from=latest")
    assert "segmentation: training starts from v0001's weights" in told
    first, second = (project.manifest("best/segmentation", v) for v in ("v0001", "v0002"))
    assert second.identity.inputs["start"] == first.digest and "start" not in first.identity.inputs
    project.made("train-seg", "--method", "best", *WITH, *latest)
    assert project.versions("best/segmentation") == ["v0001", "v0002"]  # up to date
    done = project.made("train-seg", "--method", "best", *WITH)  # from scratch: another artifact
    assert project.versions("best/segmentation") == ["v0001", "v0002", "v0003"] and "starts" not in done.out
    found = project.made("train-seg", "--method", "best", *WITH, *latest)  # the one that started from v0001, not that
    assert "v0002" in found.out
    again = project.made("train-seg", "--method", "best", *latest)  # nothing learned from fewer labels
    assert "starts" not in again.out and "v0001" in again.out
    assert project.versions("best/segmentation") == ["v0001", "v0002", "v0003"]
    warm, cold = (
        read_weights(project.workspace / "best" / "segmentation" / v / "weights.safetensors")[0]
        for v in ("v0002", "v0003")
    )
    assert any(not np.array_equal(warm[key], cold[key]) for key in warm)


def test_weights_that_saw_what_is_held_out_now_are_not_started_from(grown: tuple[Project, list[str], str]) -> None:
    project, _, _ = grown
    held = ("--set", "data.unlabeled=[free_1, free_2]", "--set", "data.dev=[atlas_2]")
    done = project.made(
        "run", "--method", "best", "--until", "train-seg", *held, "--set", "train_seg.start_from=latest"
    )
    assert "no earlier weights fit, training starts from scratch" in done.out


def test_the_next_scans_are_suggested_with_reasons(grown: tuple[Project, list[str], str]) -> None:
    project, _, _ = grown
    done = project.made("suggest-next", "--method", "best", "-n", "2")
    suggested = NextScans.open(project.workspace / "best" / "next" / "v0001")
    table, verdict = suggested.table, suggested.verdict
    assert sorted(table["case"]) == ["atlas_2", "free_1", "free_2"] and verdict["labelled"] == ["atlas_1"]
    assert verdict["chosen"] == table["case"][:2].tolist() and not verdict["calibrated"]
    assert f"Label next, or correct the answers of: {', '.join(verdict['chosen'])}." in done.out
    assert "number 1 of 3 in what its label alone brings" in table["reason"][0] and "lrls calibrate" in done.out
    project.made("suggest-next", "--method", "best", "-n", "2")
    assert project.versions("best/next") == ["v0001"]
    document = json.loads(project.made("suggest-next", "--method", "best", "-n", "2", "--json").out)
    assert document["chosen"] == verdict["chosen"] and document["asked_for"] == []
    assert [scan["case"] for scan in document["scans"]] == table["case"].tolist()
    after = project.made("suggest-next", "--method", "best", "-n", "5", *WITH)
    assert sorted(NextScans.open(project.workspace / "best" / "next" / "v0002").verdict["chosen"]) == [
        "atlas_2",
        "free_2",
    ]
    assert "2 labelled scans" in after.out


def test_weights_answer_for_all_that_they_started_from(grown: tuple[Project, list[str], str]) -> None:
    project, _, _ = grown

    def versions() -> list[str]:
        return project.versions("best/segmentation")

    latest = ("--set", "train_seg.start_from=latest")
    fewer = ("--method", "best", "--set", "data.unlabeled=[free_2, atlas_2]")
    project.made("run", *fewer, "--until", "train-seg")  # from scratch, as nothing else was asked for
    before = versions()
    warm = project.made("train-seg", *fewer, *latest)
    assert "training starts from v" in warm.out and len(versions()) == len(before) + 1
    assert versions()[-1] in project.made("train-seg", *fewer, *latest).out
    # What v0001 saw is scored now; the cohort, and so what would be found again, is the same.
    scored = project.made("train-seg", *fewer, *latest, "--set", "data.dev=[free_1]")
    assert "starts from v" not in scored.out and versions()[-1] not in scored.out
    # Once again the first command of all: there are weights of another cohort now, and still nothing is trained.
    first = project.made("train-seg", "--method", "best", *latest)
    assert "best/segmentation/v0001" in first.out and len(versions()) == len(before) + 1


def test_what_was_corrected_excluded_or_lost_stands_against_weights(grown: tuple[Project, list[str], str]) -> None:
    project, _, _ = grown
    config, cohort = project.config, Cohort.open(project.workspace / "cohort" / "v0002")
    first, second = (project.manifest("best/segmentation", v) for v in ("v0001", "v0002"))
    assert all(Past(cohort, config).may_stay(weights) for weights in (first, second))
    lost, corrected = Past(cohort, config), Past(cohort, config)
    del lost.made[first.digest]
    assert lost.may_stay(first) and not lost.may_stay(second)
    corrected.labelled["atlas_1"] = "0" * 64  # another label map, or another image
    assert not corrected.may_stay(first) and not corrected.may_stay(second)
    without = Overlay(configuration="lrls.yaml", cases={"free_2": Said(exclude=True)})
    assert not Past(cohort, config.reviewed(Review(project.folder, without))).may_stay(first)
