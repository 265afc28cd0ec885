"""What is measured on phantoms: costs, grids, and what a grid keeps of a label."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk

from stages.artifacts.cohort import Grid
from stages.data.checks import cases_of
from stages.data.facts import Known
from stages.data.lost import Labelled
from stages.device import choose_device
from stages.planning.choosing import Cost
from stages.planning.grids import TIMED_VOXELS, Deriving, candidates, round_trip, timed_grid
from stages.planning.measuring import CannotMeasure, line, measure

SIDE = 32


def labelled(mask: np.ndarray, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Labelled:
    """A label map (D, H, W) with its class indices."""
    label = sitk.GetImageFromArray(mask.astype(np.uint8))
    label.SetSpacing(spacing_mm[::-1])
    return Labelled("a", label, mask.astype(np.uint8), np.eye(4))


def ball_and_sheet() -> np.ndarray:
    """1: a ball of radius 8; 2: a sheet, one voxel thick."""
    d, h, w = np.mgrid[:SIDE, :SIDE, :SIDE]
    classes = ((d - 16) ** 2 + (h - 16) ** 2 + (w - 16) ** 2 < 64).astype(np.uint8)
    classes[28, 4:28, 4:28] = 2
    return classes


def grid_of(spacing_mm: tuple[float, float, float] | None, own: float = 1.0) -> Grid:
    d, h, w = spacing_mm or (own, own, own)
    shape = tuple(round(SIDE / mm) for mm in (d, h, w))
    return Grid(shape, (d, h, w), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))  # type: ignore[arg-type]


def slices_of(size_mm: tuple[int, int, int]) -> Deriving:
    """Grids of a scan of slices of 4 mm and pixels of 1 mm."""

    def derive(spacing_mm: tuple[float, float, float] | None) -> Grid:
        spacing = spacing_mm or (4.0, 1.0, 1.0)
        d, h, w = (round(size / mm) for size, mm in zip(size_mm, spacing, strict=True))
        return Grid((d, h, w), spacing, (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))

    return derive


def test_a_label_survives_its_own_grid_and_loses_on_coarser_ones():
    atlas = labelled(ball_and_sheet())
    kept = [round_trip(atlas, 1, grid_of((mm, mm, mm))) for mm in (1.0, 2.0, 4.0)]
    assert kept[0] == 1.0
    assert 1.0 > kept[1] > kept[2] > 0.6
    assert round_trip(atlas, 3, grid_of(None)) is None


def test_a_structure_thinner_than_the_grid_vanishes_from_it():
    assert round_trip(labelled(ball_and_sheet()), 2, grid_of((3.0, 3.0, 3.0))) == 0


def test_coarser_grids_follow_the_finest_axes():
    thick = labelled(ball_and_sheet(), (4.0, 1.0, 1.0))

    derive = slices_of((128, 64, 64))
    options = candidates(derive, thick, ["ball", "sheet"], may_change=True)
    assert [option.spacing_mm[0] for option in options[:6]] == [4.0] * 6  # as the slices are, until the others reach it
    assert [option.spacing_mm[1] for option in options[:4]] == [1.0, 1.26, 1.59, 2.0]
    assert [len(candidates(derive, thick, ["ball", "sheet"], may_change=False))] == [1]


def test_costs_are_measured_on_a_small_grid_with_the_same_ratios():
    derive = slices_of((128, 256, 256))
    first = candidates(derive, labelled(ball_and_sheet()), ["ball"], may_change=False)[0]
    small, smaller = (timed_grid(derive, first, voxels) for voxels in (TIMED_VOXELS, TIMED_VOXELS // 4))
    assert np.prod(small.shape) <= TIMED_VOXELS and np.prod(smaller.shape) <= TIMED_VOXELS / 4
    assert small.spacing_mm[0] / small.spacing_mm[1] == pytest.approx(4, rel=0.01)


def test_two_grids_tell_what_is_fixed_and_what_grows_with_voxels():
    def fitted(*seconds: float) -> list[float]:
        cost = line([1000, 5000], seconds)
        return [cost.fixed_s, cost.per_voxel_s]

    assert fitted(1.0, 3.0) == pytest.approx([0.5, 0.0005])
    assert fitted(0.1, 3.0) == pytest.approx([0.0, 0.0006])  # fixed seconds are not negative
    assert fitted(4.0, 3.0) == pytest.approx([0.0, 0.0006])  # the first steps were disturbed
    assert line([5000, 5000], [3.0, 3.0]) == Cost(0.0, 0.0006)


@pytest.fixture
def few_voxels(monkeypatch) -> None:
    monkeypatch.setattr("stages.planning.measuring.TIMED_VOXELS", 12_000)


def looked_at(project):
    return Known(project.config).look(cases_of(project.config, ["atlases", "unlabeled"]))


def test_phantoms_are_measured(tmp_path, new_project, in_this_process, few_voxels):
    project = new_project(tmp_path, preprocess={"align": "affine"})
    config = project.config
    measured = measure(config, looked_at(project), choose_device(config), networks=["light", "full"])
    assert [grid.shape for grid in measured.grids] == [(24, 16, 24)]  # as it is set by hand
    assert (measured.scans, measured.atlases, measured.align_workers) == (2, 1, 1)
    full, light = (measured.step_of(measured.grids[0], network, 1) for network in ("full", "light"))
    assert full > light > 0
    assert measured.step_bytes["full"] > measured.step_bytes["light"] > 0
    assert measured.couple.at(1000) > 0 and 0 < measured.align_s < measured.took_s
    kept = list((project.workspace / ".scans" / "alignments").iterdir())
    assert len(kept) == 2  # the run needs them
    assert measured.residual_scaling > 0
    again = measure(config, looked_at(project), choose_device(config), networks=["light"])
    assert again.residual_scaling == measured.residual_scaling
    assert set(asdict(again)["step"]) == {"light"}


def test_a_run_measures_for_itself(project, few_voxels, in_this_process, no_pictures, monkeypatch):
    monkeypatch.setattr("stages.planning.plans.measure", measure)
    project.made("run", "--method", "best", "--until", "preprocess")
    (plan,) = project.workspace.glob("**/plan.json")
    measured = json.loads(plan.read_text(encoding="utf-8"))["measured"]
    assert measured["took_s"] > 0 and measured["scans"] == 2


def test_a_grid_that_is_open_comes_with_coarser_ones(tmp_path, new_project, few_voxels):
    project = new_project(tmp_path, preprocess={"spacing_mm": None, "shape": None, "margin_mm": 2.0})
    config = project.config
    measured = measure(
        config.model_copy(
            update={"preprocess": config.preprocess.model_copy(update={"spacing_mm": None, "shape": None})}
        ),
        looked_at(project), choose_device(config), networks=["light"],
    )  # fmt: skip
    assert len(measured.grids) > 1
    assert measured.grids[0].ceiling > 0.95
    assert all(a.voxels > b.voxels for a, b in pairwise(measured.grids))


def test_a_faulty_scan_cannot_be_measured(tmp_path, new_project):
    project = new_project(tmp_path)
    config = project.config.model_copy(update={"structures": {"left_lobe": 3}})  # other values are faults
    with pytest.raises(CannotMeasure):
        measure(config, looked_at(project), choose_device(config), networks=["light"])
