"""What labelling a scan would bring, on distances that can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from stages.pictures import next_scans_page
from stages.suggest_next import batch, coarse, gains, look_distances, ranking, shape_distances

# Three scans on a line at 0, 1 and 5; the labelled one is at -1.
PLACES = np.array([0.0, 1.0, 5.0])
OWN, NEAREST = np.abs(PLACES[:, None] - PLACES[None]), PLACES + 1


def test_the_gain_is_the_share_of_the_distance_that_a_label_removes() -> None:
    # m = 1, 2, 6. Labelled at 0: saves 1, 1, 1; at 1: saves 0, 2, 2; at 5: saves 0, 0, 6. Together 9.
    assert gains(OWN, NEAREST, np.ones(3)).tolist() == pytest.approx([3 / 9, 4 / 9, 6 / 9])
    # Where the answer of the far scan is good already, the middle one brings most.
    weights = np.array([1.0, 1.0, 0.1])
    assert gains(OWN, NEAREST, weights).tolist() == pytest.approx([2.1 / 3.6, 2.2 / 3.6, 0.6 / 3.6])


def test_a_batch_does_not_take_two_scans_that_are_alike() -> None:
    places = np.array([4.0, 4.1, 0.5, 8.0])
    own = np.abs(places[:, None] - places[None])
    assert batch(own, places.copy(), np.ones(4), 2) == [1, 3]
    assert sorted(batch(own, places.copy(), np.ones(4), 9)) == [0, 1, 2, 3]


def test_distances_of_shapes_and_looks() -> None:
    masks = torch.zeros(3, 2, 8)
    masks[0, 0, :4], masks[1, 0, 2:6] = 1, 1  # DSC of structure 1: 0.5; nobody has structure 2 but the third
    masks[2, 1, :2] = 1
    distance = shape_distances(masks)
    assert distance[0].tolist() == pytest.approx([0, 0.5, 1]) and np.array_equal(distance, distance.T)
    looks = torch.tensor([[[0.0, 1.0, 2.0]], [[1.0, 3.0, 5.0]], [[2.0, 1.0, 0.0]], [[1.0, 1.0, 1.0]]])
    assert look_distances(looks)[0].tolist() == pytest.approx([0, 0, 2, 1])
    assert coarse(torch.ones(2, 80, 64, 64)).shape[0] == 2 and coarse(torch.ones(2, 80, 64, 64)).shape[1] <= 2**15


def test_reasons_name_what_is_notable() -> None:
    shape, look = np.full((4, 4), 0.2), np.full((4, 4), 0.2)
    shape[2, 3] = shape[3, 2] = 0.9
    for distance in (shape, look):
        np.fill_diagonal(distance, 0)
    measures = [{"agreement": value, "confidence": 0.9} for value in (0.9, 0.88, 0.4)]
    table = ranking(["a", "b", "c"], ["atlas"], measures, [0.9, 0.88, 0.5], shape, look, 1)
    assert table["case"][0] == "c" and table["nearest"][0] == "atlas"
    for told in (
        "estimated DSC 0.50, number 1 from the worst",
        "network and registration agree little (DSC 0.40, median 0.88)",
        "its shape is farther from the labelled scans than that of 100% of the scans",
    ):
        assert told in table["reason"][0] and told not in table["reason"][1]
    flat = ranking(["a"], ["atlas"], [{"confidence": 0.9}], None, np.zeros((2, 2)), np.zeros((2, 2)), 3)
    assert len(flat) == 1 and flat["estimated_dsc"].isna().all()


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    image, label = np.random.default_rng(0).random((8, 10, 12)), np.zeros((8, 10, 12), np.uint8)
    label[2:5, 3:7, 4:9] = 1
    rows = [{"name": f"scan $_{k}", "image": image, "label": label} for k in range(2)]
    table = {
        "rank": [1, 2, 3], "case": ["scan $_0", "scan $_1", "c"], "gain": [0.5, 0.2, 0.0],
        "shape_distance": [0.3, 0.1, 0.2], "expected_error": [0.4, 0.2, 0.1], "look_distance": [0.1] * 3,
    }  # fmt: skip
    next_scans_page(rows, tmp_path / "next.png", table=table, structures=["one"])
    assert imread(tmp_path / "next.png").std() > 0.05
