"""Borders that a protocol draws as planes of voxels are found in atlases and put back into answers."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stages.answering.flat_borders import flatten
from stages.artifacts.cohort import Cohort, FlatBorder, Grid
from stages.data import flat_borders
from stages.data.own_space import classes_in_own_space
from stages.parts.warps import one_hot

LPS = tuple(np.eye(3).ravel())
SHAPE = (10, 14, 12)
GRID = Grid(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), LPS)


def block(border=7, tilt=0.0):
    """Class 1 in front of `border` along H, 2 behind it, 3 on top; the border may be tilted along D."""
    d, h, w = np.indices(SHAPE)
    inside = (abs(d - 4) < 3) & (abs(h - 6.5) < 6) & (abs(w - 5.5) < 4)
    classes = np.where(inside, np.where(h < border + tilt * (d - 4), 1, 2), 0)
    return np.where((d >= 7) & inside.any(0), 3, classes).astype(np.uint8)


def record(direction=LPS, size=SHAPE[::-1], origin=(0.0, 0.0, 0.0), matrix=None):
    return {
        "size": size,
        "spacing": (1.0, 1.0, 1.0),
        "origin": origin,
        "direction": tuple(np.ravel(direction)),
        "matrix": (np.eye(4) if matrix is None else matrix).tolist(),
    }


def probabilities(classes):
    return one_hot(torch.from_numpy(classes.astype(np.int16))[None], 4)[0]


def borders_of(atlases):
    """Of class indices and directions."""
    faces = [(flat_borders.border_faces(classes), direction) for classes, direction in atlases]
    return flat_borders.find_flat_borders(faces)


def test_the_plane_between_two_blocks_is_found_with_its_normal():
    # Classes 1 and 3, and 2 and 3, meet in planes across D; 1 and 2 in one across H, which is y.
    found = {border.classes: border.normal for border in borders_of([(block(), LPS)])}
    assert found == {(1, 2): (0.0, 1.0, 0.0), (1, 3): (0.0, 0.0, 1.0), (2, 3): (0.0, 0.0, 1.0)}


def test_a_tilted_border_is_none():
    assert (1, 2) not in {border.classes for border in borders_of([(block(tilt=0.6), LPS)])}


def test_a_border_of_few_faces_is_none(monkeypatch):
    monkeypatch.setattr(flat_borders, "LEAST_FACES", 5 * 8 + 1)  # faces between 1 and 2
    assert (1, 2) not in {border.classes for border in borders_of([(block(), LPS)])}
    monkeypatch.setattr(flat_borders, "LEAST_FACES", 5 * 8)
    assert (1, 2) in {border.classes for border in borders_of([(block(), LPS)])}


def test_every_atlas_must_draw_it_so_and_along_the_same_axis_however_it_is_stored():
    flat, tilted = (block(), LPS), (block(tilt=0.6), LPS)
    stored_turned = (block().transpose(1, 0, 2), tuple(np.eye(3)[:, [0, 2, 1]].ravel()))  # the same, axes H, D, W
    elsewhere = (block().transpose(1, 0, 2), LPS)
    pairs = [[border.classes for border in borders_of([flat, second])] for second in (stored_turned, tilted, elsewhere)]
    assert [(1, 2) in each for each in pairs] == [True, False, False]


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_tilted_answer_becomes_flat_where_the_probabilities_balance(first, second):
    drawn = block(tilt=0.5)
    tilted = np.where(drawn == 1, first, np.where(drawn == 2, second, drawn)).astype(np.uint8)
    flat = flatten(tilted, probabilities(tilted), FlatBorder((1, 2), (0.0, 1.0, 0.0)), record(), GRID)
    expected = block()
    assert flat.dtype == tilted.dtype
    assert np.array_equal(flat == first, expected == 1)
    assert np.array_equal(flat == second, expected == 2)
    assert np.array_equal(flat == 3, expected == 3)


def test_the_plane_is_one_of_the_scans_own_axes():
    """A scan that lies turned by 30 degrees on the grid, its border along its own H."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[c, -s], [s, c]]
    middle = (np.array(SHAPE[::-1]) - 1) / 2
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    on_grid = block(border=7)  # across the grid's H, so across neither axis of the scan
    way = record(matrix=turn)
    answer = classes_in_own_space(probabilities(on_grid), way, GRID)
    flat = flatten(answer, probabilities(on_grid), FlatBorder((1, 2), (0.0, 1.0, 0.0)), way, GRID)
    assert [border.classes for border in borders_of([(answer, LPS)]) if border.classes == (1, 2)] == []
    assert (1, 2) in [border.classes for border in borders_of([(flat, LPS)])]
    union = (answer == 1) | (answer == 2)
    assert np.array_equal((flat == 1) | (flat == 2), union)
    assert (flat == answer)[union].mean() > 0.8


def test_other_probabilities_may_say_where_the_plane_lies():
    answer = block(border=5)
    flat = flatten(answer, probabilities(block(border=8)), FlatBorder((1, 2), (0.0, 1.0, 0.0)), record(), GRID)
    assert np.array_equal(flat, block(border=8))


def test_an_answer_without_the_two_stays_as_it_is():
    answer = np.where(block() == 3, 3, 0).astype(np.uint8)
    assert np.array_equal(
        flatten(answer, probabilities(block()), FlatBorder((1, 2), (0.0, 1.0, 0.0)), record(), GRID), answer
    )


def test_eval_scores_the_answer_with_planes_beside_the_networks_own(project, monkeypatch, no_pictures):
    on = ("--set", "methods.unet.flat_borders=true")
    done = project.made("run", "--method", "unet", *on)
    nothing_flat = pd.read_csv(done.out.splitlines()[-1] + "/scores.csv")
    assert list(nothing_flat["output"].unique()) == ["segmentation"]

    # The phantoms' structures meet nowhere.
    opened = Cohort.open
    borders = (FlatBorder((1, 2), (0.0, 1.0, 0.0)),)
    monkeypatch.setattr(Cohort, "open", lambda folder: replace(opened(folder), flat_borders=borders))
    done = project.made("eval", "--method", "unet", "--force", *on)
    found = pd.read_csv(done.out.splitlines()[-1] + "/scores.csv")
    assert list(found["output"].unique()) == ["segmentation", "network"]
    assert "one plane of voxels" in done.out
    assert project.versions("unet/segmentation") == ["v0001"]  # nothing was trained anew
    network = found[found["output"] == "network"].reset_index(drop=True)
    pd.testing.assert_series_equal(network["dsc"], nothing_flat["dsc"])
