"""What labelling a scan would bring, on distances that can be checked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from stages.pictures import next_scans_page
from stages.suggest_next import batch, coarse, exceeded, gains, look_distances, ranking, shape_distances

# Three scans on a line at 0, 1 and 5; the labelled one is at -1.
PLACES = np.array([0.0, 1.0, 5.0])
OWN, TO_LABELLED = np.abs(PLACES[:, None] - PLACES[None]), (PLACES + 1)[:, None]


def test_the_gain_counts_what_a_label_brings_to_the_other_scans() -> None:
    covered = 0.5 + np.exp(-TO_LABELLED[:, 0])
    likeness = np.exp(-OWN)
    between = [math.log((c + math.exp(-1)) / c) for c in covered[:2]]  # of the scans at 0 and 1
    of_far = [math.log((covered[2] + math.exp(-d)) / covered[2]) for d in (5, 4)]
    expected = [(between[1] + of_far[0]) / 3, (between[0] + of_far[1]) / 3]
    assert gains(likeness, covered, np.ones(3))[:2].tolist() == pytest.approx(expected)
    # A scan whose answer is good already is helped for nothing, and its own answer does not count.
    weights = np.array([1.0, 1e-9, 1e-9])
    assert gains(likeness, covered, weights)[0] == pytest.approx(0, abs=1e-8)
    assert gains(likeness, covered, weights)[1] == pytest.approx(between[0])


def test_a_batch_takes_typical_scans_and_does_not_repeat_itself() -> None:
    places = np.array([4.0, 4.1, 4.2, 9.0, 9.1, 9.2, 20.0])  # two groups and an odd one
    own, to_labelled = np.abs(places[:, None] - places[None]), places[:, None] + 10
    chosen = batch(own, to_labelled, np.ones(7), 2)
    assert sorted(place // 3 for place in chosen) == [0, 1]
    assert batch(own, to_labelled, np.ones(7), 9)[-1] == 6 and len(batch(own, to_labelled, np.ones(7), 9)) == 7


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
    reason = dict(zip(table["case"], table["reason"], strict=True))
    assert sorted(table["rank"]) == [1, 2, 3] and set(table["nearest"]) == {"atlas"}
    assert reason[table["case"][0]].startswith("number 1 of 3 in what its label alone brings to the others")
    for told in (
        "estimated DSC 0.50, number 1 from the worst",
        "network and registration agree less than elsewhere (DSC 0.40, median 0.88)",
        "its shape is farther from the labelled scans than 100% of the other scans' are",
    ):
        assert told in reason["c"] and told not in reason["a"]
    flat = ranking(["a"], ["atlas"], [{"confidence": 0.9}], None, np.zeros((2, 2)), np.zeros((2, 2)), 3)
    assert flat["reason"].tolist() == ["the only unlabelled scan"] and flat["estimated_dsc"].isna().all()


def test_of_few_or_equal_scans_none_is_notable() -> None:
    assert exceeded(pd.Series([1.0, 3.0, 2.0, 3.0])).tolist() == pytest.approx([0, 2 / 3, 1 / 3, 2 / 3])
    distance = np.array([[0, 0.2, 0.3], [0.2, 0, 0.9], [0.3, 0.9, 0]])
    two = ranking(["a", "b"], ["atlas"], [{"agreement": v} for v in (0.9, 0.4)], None, distance, distance, 2)
    assert not any(word in line for line in two["reason"] for word in ("farther", "doubtful", "agree"))
    alike = 1 - np.eye(4)
    three = ranking(["a", "b", "c"], ["atlas"], [{"agreement": 0.9}] * 3, None, alike, alike, 2)
    assert not any(word in line for line in three["reason"] for word in ("farther", "doubtful", "agree"))


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
