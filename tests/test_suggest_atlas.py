"""`lrls suggest-atlas`: the typical scan comes first, the odd one last, and it says when it cannot tell."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import Project

from lrls_cli.tables import print_suggestion
from stages import suggest_atlas
from stages.artifacts.cohort import Grid
from stages.artifacts.store import verify
from stages.data import phantoms
from stages.suggest_atlas import (
    COLUMNS,
    MOST_VOXELS,
    certainty,
    correlations,
    covariances,
    equals,
    grid_of,
    median,
    nearest_to_median,
    on_grid,
    ranking,
    to_average,
    to_mean_of_drawn,
)

# Scans


def coarse_grid(random):
    """An empty image in the phantoms' manner, of voxels of 2 mm and more: ANTs is quick on it."""
    fine = phantoms._draw_grid(random)
    grid = sitk.Image([n // 2 for n in fine.GetSize()], sitk.sitkUInt8)
    grid.SetSpacing([2 * mm for mm in fine.GetSpacing()])
    grid.SetDirection(fine.GetDirection())
    return grid


def write_scan(folder, case, seed, *, elastic_mm=0.0, odd=False, spread=1.0):
    """The anatomy bent by waves of this root mean square, stretched and turned at random, or something else."""
    random = np.random.default_rng([5, seed])
    grid = coarse_grid(random)
    centre = np.array(grid.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in grid.GetSize()]))
    points = phantoms._voxel_positions(grid) - centre
    bend = np.stack([phantoms.Field.draw(random, 14.0)(points) for _ in range(3)], axis=-1)
    stretch = np.eye(3) + spread * random.normal(0, 0.03, (3, 3))
    tissue = phantoms.anatomy((points + elastic_mm * bend) @ stretch.T)[0]
    if odd:
        tissue = 0.5 + 0.3 * phantoms.Field.draw(random, 9.0)(points)
    image = sitk.GetImageFromArray((1000 * (tissue + 0.03 * random.random(tissue.shape))).astype(np.float32))
    image.CopyInformation(grid)
    image.SetOrigin((np.array(image.GetOrigin()) - centre).tolist())
    (folder / "images").mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(folder / "images" / f"{case}.nii.gz"))


DEFORMED = [f"bent_{number}" for number in range(5)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, new_project) -> Project:
    """Five bent scans, one straight one and one of something else; no atlas, no label map."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, case in enumerate(DEFORMED):
        write_scan(folder, case, number, elastic_mm=2.0)
    write_scan(folder, "typical", 7)
    write_scan(folder, "odd", 8, odd=True)
    return unlabeled_project(new_project, folder, [*DEFORMED, "odd", "typical"])


def unlabeled_project(new_project, folder, cases, **changes) -> Project:
    data = {"folder": str(folder), "atlases": [], "unlabeled": cases, "supervised": [], "dev": [], "test": []}
    return new_project(folder / "project", data=data, **{"preprocess": {"align": "affine"}} | changes)


def serial(function, arguments, **_):
    return (function(*each) for each in arguments)


@pytest.fixture
def in_here(monkeypatch):
    """Cases are worked on in this process."""
    monkeypatch.setattr(suggest_atlas, "in_processes", serial)


def test_the_undeformed_scan_comes_first_and_the_odd_one_last_without_any_atlas(mixed, in_here):
    done = mixed.made("suggest-atlas")

    folder = mixed.workspace / "suggestion" / "v0001"
    verify(folder)
    table = pd.read_csv(folder / "suggestion.csv")
    assert tuple(table.columns) == COLUMNS
    assert list(table["rank"]) == list(range(1, 8))
    assert (table["case"].iloc[0], table["case"].iloc[-1]) == ("typical", "odd")
    assert table["probability_first"][0] > 0.7
    assert table["to_average"].idxmax() == 0
    assert (table["score"].diff()[1:] <= 0).all()
    assert (table["score_low"] <= table["score"]).all() and (table["score"] <= table["score_high"]).all()
    assert table["behind_first"][0] == 0 and table["behind_first_low"].iloc[-1] > 0
    assert (folder / "suggestion.png").read_bytes().startswith(b"\x89PNG")
    lines = done.out.splitlines()
    assert lines[-1] == str(folder)
    assert "Label case typical first" in done.out

    again = mixed.made("suggest-atlas", "--set", "data.unlabeled=[typical, odd, " + ", ".join(DEFORMED) + "]")
    assert again.out == done.out  # the order of the list says nothing
    assert mixed.versions("suggestion") == ["v0001"]
    assert mixed.manifest("suggestion").identity.inputs.keys() == {f"scan/{c}" for c in (*DEFORMED, "odd", "typical")}


def test_the_table_is_the_same_whatever_the_number_of_processes(tmp_path, new_project, no_pictures, monkeypatch):
    cases = ["a", "b", "c"]
    for number, case in enumerate(cases):
        write_scan(tmp_path, case, number, elastic_mm=1.0)
    project = unlabeled_project(new_project, tmp_path, cases, preprocess={"align": "centre", "workers": 2})
    project.made("suggest-atlas")
    monkeypatch.setattr(suggest_atlas, "in_processes", serial)
    project.made("suggest-atlas", "--force")
    digests = project.digests()
    assert digests["suggestion/v0001"] == digests["suggestion/v0002"]


def test_it_says_so_when_no_scan_stands_out(tmp_path, new_project, in_here, no_pictures):
    cases = [f"alike_{number}" for number in range(6)]
    for number, case in enumerate(cases):
        write_scan(tmp_path, case, number, spread=0.0)
    project = unlabeled_project(new_project, tmp_path, cases, preprocess={"align": "centre"})

    done = project.made("suggest-atlas", "--top", "3")

    assert "as good by these scans" in done.out
    table = pd.read_csv(project.workspace / "suggestion" / "v0001" / "suggestion.csv")
    assert table["behind_first_low"][1] <= 0 < table["behind_first"].iloc[-1]
    assert sum(case in done.out.split("Label case")[0] for case in cases) == 4  # three and the last


def test_a_killed_run_goes_on_behind_the_alignments_that_it_has(
    tmp_path, new_project, in_here, no_pictures, monkeypatch
):
    cases = ["a", "b", "c"]
    for number, case in enumerate(cases):
        write_scan(tmp_path, case, number, elastic_mm=1.0)
    project = unlabeled_project(new_project, tmp_path, cases, preprocess={"align": "centre"})
    aligned = []
    align = suggest_atlas.align

    def counted(*arguments, **settings):
        if len(aligned) == 4:
            raise KeyboardInterrupt
        aligned.append(1)
        return align(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(suggest_atlas, "align", counted)
        with pytest.raises(KeyboardInterrupt):
            suggest_atlas.suggest_atlas(project.config)
    assert project.versions("suggestion") == []
    rest = []
    monkeypatch.setattr(suggest_atlas, "align", lambda *a, **k: rest.append(1) or align(*a, **k))
    project.made("suggest-atlas")
    assert (len(aligned), len(rest)) == (4, 2)  # two rounds of three
    project.made("suggest-atlas", "--force")
    digests = project.digests()
    assert digests["suggestion/v0001"] == digests["suggestion/v0002"]


def test_refused_alignments_are_told(tmp_path, new_project, in_here, no_pictures, monkeypatch):
    cases = ["a", "b", "c"]
    for number, case in enumerate(cases):
        write_scan(tmp_path, case, number, elastic_mm=1.0)
    project = unlabeled_project(new_project, tmp_path, cases, preprocess={"align": "centre"})
    align_case = suggest_atlas._align_case
    monkeypatch.setattr(
        suggest_atlas,
        "_align_case",
        lambda case, *rest: (case, align_case(case, *rest)[1] | {"fell_back": case == "b"}),
    )
    done = project.made("suggest-atlas")
    assert "warning: case b: its alignment was refused" in done.out
    table = pd.read_csv(project.workspace / "suggestion" / "v0001" / "suggestion.csv", index_col="case")
    assert table["alignment_refused"].to_dict() == {"a": 0, "b": 1, "c": 0}


def test_too_few_scans_and_faulty_ones_are_refused(mixed):
    done = mixed.lrls("suggest-atlas", "--set", "data.unlabeled=[typical, odd]")
    assert (done.code, done.err.strip()) == (
        1,
        "lrls: data.unlabeled lists 2 scans, at least 3 are needed to tell which one is typical; list more.",
    )
    done = mixed.lrls("suggest-atlas", "--set", "data.unlabeled=[typical, odd, bent_1, lost]")
    assert done.code == 1 and done.err.startswith("lrls: case lost: no image file; add")


def test_other_commands_without_an_atlas_point_here(mixed):
    done = mixed.lrls("preprocess")
    assert done.code == 1
    assert "data.atlases lists no case, at least 1 is needed; label a typical scan (`lrls suggest-atlas`" in done.err


# Similarity


def textured(*size, seed=0):
    return np.random.default_rng(seed).random(size, dtype=np.float32)


def test_correlation_is_pearsons_over_what_both_scans_see():
    volumes = textured(3, 5, 6, 7)
    volumes[0, :1] = np.nan
    volumes[1, :, :, -1] = np.nan
    found = correlations(volumes)
    assert found == pytest.approx(found.T)
    for i in range(3):
        for j in range(3):
            both = np.isfinite(volumes[i]) & np.isfinite(volumes[j])
            expected = np.corrcoef(volumes[i][both], volumes[j][both])[0, 1]
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


def test_correlation_ignores_gain_and_offset_and_long_volumes_are_summed_in_parts():
    volumes = textured(2, 30, 30, 30)
    scaled = np.stack([volumes[0], 0.1 * volumes[0] + 0.5, volumes[1]])
    assert correlations(scaled)[0, 1] == pytest.approx(1)
    assert correlations(scaled)[0, 2] == pytest.approx(np.corrcoef(volumes[0].ravel(), volumes[1].ravel())[0, 1])


def test_scans_that_hardly_overlap_or_are_flat_are_unlike():
    volumes = np.stack([textured(4, 4, 10)] * 3)
    volumes[0, :, :, 2:] = np.nan  # a fifth is left
    volumes[1] = 0.3
    assert correlations(volumes)[0].tolist() == [1, 0, 0]
    assert correlations(volumes)[1, 2] == 0


def test_the_average_that_a_scan_is_compared_with_leaves_it_out():
    volumes = textured(4, 5, 6, 7)
    volumes[2, :, 0] = np.nan
    for i, found in enumerate(to_average(volumes)):
        mean = np.nanmean(np.delete(volumes, i, axis=0), axis=0)
        both = np.isfinite(volumes[i])
        assert found == pytest.approx(np.corrcoef(volumes[i][both], mean[both])[0, 1], abs=1e-5)


def test_median_counts_the_scans_that_see_a_voxel_and_is_0_where_most_do_not():
    volumes = np.array([1, 2, 9, 4], np.float32).reshape(4, 1, 1, 1).repeat(3, axis=3)
    volumes[3, ..., 1] = np.nan
    volumes[1:, ..., 2] = np.nan
    assert median(volumes)[0, 0].tolist() == [3, 2, 0]


def test_the_provisional_reference_is_the_scan_that_is_most_like_the_median():
    base = textured(6, 6, 6)
    volumes = np.stack([base + amount * textured(6, 6, 6, seed=i) for i, amount in enumerate((0.5, 0.6, 0.1, 0.7), 1)])
    assert nearest_to_median(volumes) == 2


# Certainty


def similarity(scores):
    """Similarities of scans that are as typical as their score says: s_ij = s_i + s_j."""
    return np.add.outer(scores, scores)


def test_score_is_the_mean_over_the_other_scans():
    table = certainty(np.array([[9, 0.1, 0.2], [0.1, 9, 0.6], [0.2, 0.6, 9]]), seed=0)
    assert table["score"].tolist() == pytest.approx([0.15, 0.35, 0.4])
    assert table["rank"].tolist() == [3, 2, 1]
    assert table["behind_first"].tolist() == pytest.approx([0.25, 0.05, 0])


def test_a_scan_that_is_closer_to_every_other_one_is_surely_first():
    scores = np.linspace(0.2, 0.4, 20)
    table = certainty(similarity(scores), seed=0)
    assert table["rank"].iloc[-1] == 1 and table["probability_first"].iloc[-1] > 0.85
    assert table["rank"].iloc[0] == 20 and table["rank_low"].iloc[0] > 15
    assert table["probability_first"].sum() == pytest.approx(1)


def test_interval_is_that_of_a_mean_over_the_other_scans():
    # Scan 0 resembles half of 100 others by 0.6 and half by 0.4: standard error 0.1 / 10.
    n = 101
    values = np.full((n, n), 0.1)
    values[0, 1:51] = values[1:51, 0] = 0.6
    values[0, 51:] = values[51:, 0] = 0.4
    row = certainty(values, seed=0).iloc[0]
    assert row["score"] == pytest.approx(0.5)
    assert row["score_high"] - row["score_low"] == pytest.approx(2 * 1.96 * 0.01, rel=0.1)


def test_scans_that_resemble_different_halves_of_the_others_cannot_be_told_apart():
    n = 42
    values = np.full((n, n), 0.3)
    halves = np.where(np.arange(n) % 2, 0.7, 0.5)
    values[0], values[1] = halves, halves[::-1] - 0.001
    values[:, 0], values[:, 1] = values[0], values[1]
    values[0, 1] = values[1, 0] = 0.6
    table = certainty(values, seed=0).assign(case=[f"s{i}" for i in range(n)]).sort_values("rank", ignore_index=True)
    assert list(table["case"][:2]) == ["s0", "s1"]
    assert equals(table) == ["s1"]
    assert 0.4 < table["probability_first"][0] < 0.65
    assert table["rank_high"][0] == 2 and table["rank_low"][1] == 1


def test_a_clear_answer_is_told_as_one(capsys):
    table = certainty(similarity(np.array([0.9, 0.1, 0.1, 0.2, 0.2, 0.1])), seed=0).assign(case=list("abcdef"))
    table = table.assign(to_average=0.5, alignment_refused=0).sort_values("rank", ignore_index=True)
    verdict = {"best": "a", "equals": equals(table), "refused": []}
    print_suggestion(SimpleNamespace(table=table, verdict=verdict), top=3)
    out = capsys.readouterr().out
    assert "Label case a first: it is more typical than every other scan." in out
    assert sum(f"│ {case} " in out for case in "abcdef") == 4


# Grid


def test_grid_covers_the_image_with_few_isotropic_voxels():
    image = sitk.Image([100, 200, 150], sitk.sitkFloat32)
    image.SetSpacing((2.0, 1.0, 1.5))
    image.SetOrigin((5.0, -7.0, 3.0))
    grid = grid_of(image)
    assert len(set(grid.spacing_mm)) == 1 and 0.9 * MOST_VOXELS < np.prod(grid.shape) <= MOST_VOXELS
    extent = np.array(grid.shape) * grid.spacing_mm[0]
    assert np.abs(extent - (225, 200, 200)).max() < grid.spacing_mm[0]
    middles = [
        each.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in each.GetSize()])
        for each in (image, grid.as_image())
    ]
    assert middles[0] == pytest.approx(middles[1])
    assert grid_of(sitk.Image([20, 20, 20], sitk.sitkFloat32)).spacing_mm == (1.0, 1.0, 1.0)  # never finer


def test_what_a_scan_does_not_reach_is_unknown():
    scan = sitk.GetImageFromArray(textured(4, 4, 4))
    grid = Grid((4, 4, 4), (1.0, 1.0, 1.0), (2.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    voxels = on_grid(scan, np.eye(4), grid)
    assert np.isfinite(voxels[..., :2]).all() and np.isnan(voxels[..., 2:]).all()
    assert voxels[..., :2] == pytest.approx(sitk.GetArrayFromImage(scan)[..., 2:])


@pytest.mark.parametrize("factor", [1 / 20, 1000])
def test_scans_of_another_size_are_brought_to_the_same_place(factor):
    places = []
    for size in (1.0, factor):
        scans = []
        for shift in (0.0, 3.0):
            z, y, x = np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij")
            blobs = np.exp(-((x - 10 - shift) ** 2 + (y - 12) ** 2 + (z - 9) ** 2) / 20)
            blobs += 0.6 * np.exp(-((x - 15 - shift) ** 2 + (y - 8) ** 2 + (z - 15) ** 2) / 12)
            image = sitk.GetImageFromArray(blobs.clip(0, 1).astype(np.float32))
            image.SetSpacing([1.05 * size] * 3)
            scans.append(image)
        grid = suggest_atlas.grid_of(scans[0])
        _, record = suggest_atlas._align_case("p1", *scans, "rigid", "same", 0)
        place = np.array(record["matrix"])[:3, 3] / size
        places.append((grid.shape, place))
    assert places[0][0] == places[1][0]
    np.testing.assert_allclose(places[1][1], places[0][1], atol=0.05)
    assert places[0][1][0] == pytest.approx(3.15, abs=0.3)


# By the average


def test_score_by_average_is_the_correlation_with_the_mean_of_the_others():
    volumes = np.random.default_rng(2).random((5, 4, 6, 5)).astype(np.float32)
    volumes[3] = 0.7 * volumes[:3].mean(0) + 0.3 * volumes[3]
    table = ranking([f"s{i}" for i in range(5)], volumes, [], seed=0, by="average")
    assert table["case"][0] == "s3"
    assert table["score"].tolist() == pytest.approx(table["to_average"].tolist(), abs=1e-5)
    assert (table["score_low"] <= table["score"]).all() and (table["score"] <= table["score_high"] + 1e-9).all()


def test_draws_by_average_are_those_of_the_mean_of_the_drawn_scans():
    volumes = np.random.default_rng(3).random((4, 3, 3, 3)).astype(np.float32)
    counts = np.array([[2, 0, 1, 1], [0, 4, 0, 0]])
    scores = to_mean_of_drawn(covariances(volumes), counts)
    mean = (volumes[2] + volumes[3]) / 2  # without scan 0 itself
    assert scores[0, 0] == pytest.approx(np.corrcoef(volumes[0].ravel(), mean.ravel())[0, 1], abs=1e-6)
    assert scores[1, 0] == pytest.approx(np.corrcoef(volumes[0].ravel(), volumes[1].ravel())[0, 1], abs=1e-6)
    assert np.isnan(scores[1, 1])


def test_by_average_is_another_suggestion_and_says_so(tmp_path, new_project, in_here, no_pictures):
    cases = ["a", "b", "c"]
    for number, case in enumerate(cases):
        write_scan(tmp_path, case, number, elastic_mm=1.0)
    project = unlabeled_project(new_project, tmp_path, cases, preprocess={"align": "centre"})
    assert "NCC to others" in project.made("suggest-atlas").out
    done = project.made("suggest-atlas", "--by", "average")
    assert "NCC to mean" in done.out and project.versions("suggestion") == ["v0001", "v0002"]
    assert project.manifest("suggestion", "v0002").identity.config["by"] == "average"
    assert "by" not in project.manifest("suggestion").identity.config
    assert project.made("suggest-atlas", "--by", "average").out == done.out
