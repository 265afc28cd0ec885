"""Measures, estimates and flags of answers without a label."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.answering.answers import Answer, Answering, Atlas, GridScan
from stages.answering.quality import (
    MEASURES,
    Calibration,
    Damage,
    assess,
    correlation,
    estimated_dsc,
    fit,
    intensity_shift,
    measure,
)
from stages.artifacts.cohort import Grid
from stages.calibrate import _annotation, _damaged, made_couples
from stages.config import Config
from stages.device import Device
from stages.generating.path_bank import PathBank
from stages.methods.recipe import Answer as AnswerBy
from stages.parts.batches.space_style import Beta
from stages.parts.warps import one_hot

SHAPE = (16, 18, 20)
GRID = Grid(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """An image of two boxes, one bright and one very bright, and their label."""
    label = np.zeros(SHAPE, np.int16)
    label[4:9, 5:12, 4:10], label[9:13, 5:12, 10:16] = 1, 2
    return (0.1 + 0.4 * label).astype(np.float32), label


class Threshold(torch.nn.Module):
    """Answers by intensity: what lies above 0.3 and 0.7."""

    def forward(self, image):
        classes = (image[:, 0] > 0.3).long() + (image[:, 0] > 0.7).long()
        return 20 * one_hot(classes, 3)


class Position(torch.nn.Module):
    """Answers by place, whatever the image shows."""

    def forward(self, image):
        return 20 * one_hot(torch.from_numpy(phantom()[1])[None], 3)


def answering(network=None, **changes) -> Answering:
    image, label = phantom()
    config = Config.model_validate({"workspace": ".", "data": {"folder": "."}, "structures": {"a": 1, "b": 2}})
    found = Answering(
        AnswerBy(network or Threshold()), GRID, 3, (Atlas("a", image, label),), (), False, config,
        Device(torch.device("cpu"), torch.float32),
    )  # fmt: skip
    return replace(found, **changes)


def answer(network=None, votes=None, fields=()) -> Answer:
    label = one_hot(torch.from_numpy(phantom()[1])[None], 3)[0]
    network = label if network is None else network
    return Answer("x", network, votes, list(fields), network, network)


def scan(image=None, **record) -> GridScan:
    values = phantom()[0] if image is None else image
    return GridScan("x", values.astype(np.float16), {"fell_back": False, "correlation": 0.9, **record})


CALIBRATION = Calibration(
    weights={"stability": 0.5, "similarity": 0.5}, level=0.9, level_of_couples=0.95,
    medians=dict.fromkeys(MEASURES, 1.0) | {"similarity": 0.8},
    deviations=dict.fromkeys(MEASURES, 1.0) | {"similarity": 0.1}, volumes=[210.0, 168.0],
    deciles=[(float(v), 0.05) for v in np.quantile(phantom()[0], np.arange(1, 10) / 10)], most_shift=5.0,
    most_folding=0.01, error=0.0, couples=0, scans=0,
)  # fmt: skip


def test_measures_of_a_sound_answer_are_high():
    found = measure(answering(), scan(), answer(), phantom()[0], [210, 168])
    assert found["stability"] > 0.8
    assert found["confidence"] == pytest.approx(1)
    assert found["similarity"] == pytest.approx(1, abs=1e-3)
    assert found["volume"] == pytest.approx(1)
    assert "agreement" not in found


def test_an_answer_that_does_not_follow_the_image_is_unstable():
    follows = measure(answering(), scan(), answer(), phantom()[0], None)["stability"]
    ignores = measure(answering(Position()), scan(), answer(), phantom()[0], None)["stability"]
    assert ignores < follows - 0.1


def test_agreement_is_dice_of_network_and_registration_and_a_missing_structure_counts_as_0():
    label = torch.from_numpy(phantom()[1])[None]
    zero = np.zeros((3, *SHAPE), np.float32)
    same = answer(votes=one_hot(label, 3)[0], fields=[zero])
    lost = answer(votes=one_hot(torch.where(label == 2, 0, label), 3)[0], fields=[zero])
    both = answer(
        network=one_hot(torch.where(label == 2, 0, label), 3)[0],
        votes=one_hot(torch.where(label == 2, 0, label), 3)[0], fields=[zero],
    )  # fmt: skip
    found = [measure(answering(), scan(), each, phantom()[0], None)["agreement"] for each in (same, lost, both)]
    assert found == pytest.approx([1.0, 0.5, 0.5])


def test_inverted_contrast_is_the_opposite_of_similar():
    image = phantom()[0]
    assert correlation(image, 1 - image) == pytest.approx(-1)
    assert correlation(image, 0.3 * image + 0.2) == pytest.approx(1)
    assert correlation(image, np.ones_like(image)) == 0


def test_half_a_structure_halves_its_volume():
    label = phantom()[1].copy()
    label[4:9, 5:12, 7:10] = 0
    half = one_hot(torch.from_numpy(label)[None], 3)[0]
    found = measure(answering(), scan(), answer(network=half), phantom()[0], [210, 168])["volume"]
    assert found == pytest.approx(0.5**0.5, rel=0.01)


def fitted(scans=({"stability": 0.9, "similarity": 0.4, "volume": 1.0},), **changes):
    """Of 40 couples, the first ten sound ones with DSC 0.98; DSC falls by 0.6 of what stability falls by."""
    random = np.random.default_rng(0)
    x = random.uniform(0.3, 0.9, (40, 2))
    x[:10] = (0.95, 0.9)
    dice = 0.98 - 0.6 * (0.95 - 2 * 0.01 - x[:, 0]).clip(0)
    couples = [{"stability": a, "similarity": b, "volume": 1 - a} for a, b in x]  # volume speaks against
    undamaged = [True] * 10 + [False] * 30
    return fit(couples, dice.tolist(), undamaged, list(scans), [phantom()[0]], [0.02], [1.0, 1.0], **changes)


def test_the_estimate_is_learned_and_no_measure_that_falls_can_raise_it():
    found = fitted()
    assert all(weight >= 0 for weight in found.weights.values())
    assert found.weights["stability"] > 0.4 and found.weights["volume"] < 0.05
    assert found.error < 0.03
    assert found.medians == {"stability": 0.9, "similarity": 0.4, "volume": 1.0}
    assert found.most_folding == pytest.approx(0.06)
    sound = {"stability": 0.9, "similarity": 0.4, "volume": 1.0}
    for name in sound:
        worse = {**sound, name: -1.0}
        assert 0 <= estimated_dsc(worse, found) <= estimated_dsc(sound, found) <= 1
    assert intensity_shift(phantom()[0], found.deciles) == pytest.approx(0)


def test_scans_that_are_harder_than_couples_have_as_many_times_the_errors():
    found = fitted()
    assert found.level == pytest.approx(1 - (1 - found.level_of_couples) * (1 - 0.9) / (1 - 0.95))
    assert estimated_dsc({"stability": 0.9, "similarity": 0.4, "volume": 1.0}, found) == pytest.approx(found.level)
    easier = fitted([{"stability": 0.99, "similarity": 0.4, "volume": 1.0}])
    assert easier.level == pytest.approx(easier.level_of_couples)  # never better than what was made
    alone = fitted([])
    assert alone.level == pytest.approx(alone.level_of_couples) and alone.medians["stability"] == 0.95


def test_what_annotations_differ_by_is_an_error_of_another_source():
    without, found = fitted(), fitted(annotation=0.12)
    assert 1 - found.level == pytest.approx(np.hypot(1 - without.level, 0.12))
    assert found.level_of_couples == without.level_of_couples


def test_annotations_differ_by_a_voxel_of_the_atlas_not_of_the_grid():
    label = phantom()[1]
    shares = []
    for spacing in (1.0, 0.5, 8.0):
        record = {"spacing": [spacing] * 3, "origin": [0.0] * 3, "direction": np.eye(3).ravel(), "matrix": np.eye(4)}
        cohort = SimpleNamespace(
            parts={"atlases": ["a"]}, grid=GRID, image=lambda _: phantom()[0], label=lambda _: label,
            transform=lambda _, record=record: record,
        )  # fmt: skip
        shares.append(_annotation(cohort, 3))
    # Moved by a voxel, a box with an edge of n loses 1 / n.
    boxes = [1 / n for edges in ((5, 7, 6), (4, 7, 6)) for n in edges]
    assert shares == pytest.approx([np.mean(boxes), np.mean(boxes) / 2, np.mean(boxes)])


def test_couples_show_what_a_scan_shows_beyond_the_warped_atlas():
    image, label = phantom()
    model = SimpleNamespace(config=SimpleNamespace(seed=0), grid=GRID)
    residual = torch.zeros(1, 1, *SHAPE)
    residual[..., 0, 0] = 0.5
    (plain, *_), labels, about = _damaged([(image, label)] * 3, [], model)
    (shown, *_), same, _ = _damaged([(image, label)] * 3, [residual], model)
    changed = np.abs(shown.image.astype(float) - plain.image.astype(float)) > 0.05
    assert changed[:, 0, 0].all() and not changed[:, 2:, 2:].any()
    assert [row["damage"] == "none" for row in about] == [True, False, False]
    assert all(torch.equal(a, b) for a, b in zip(labels, same, strict=True))  # labels are those of the couples


def test_usual_scans_are_told_apart_by_rank_and_what_is_unusual_costs_more():
    found = fitted()
    at = [estimated_dsc({"stability": 0.9, "similarity": s, "volume": 1.0}, found) for s in (0.41, 0.4, 0.39, 0.2)]
    step = 0.1 * (1 - found.level)  # a deviation is 0.01 here, and no other measure tells usual scans apart
    assert at[0] - at[1] == pytest.approx(step) and at[1] - at[2] == pytest.approx(step)
    cost = found.weights["similarity"] * (0.4 - 2 * 0.01 - 0.2)
    assert at[1] - at[3] == pytest.approx(6 * step + cost)
    fallen = estimated_dsc({"stability": 0.5, "similarity": 0.4, "volume": 1.0}, found)
    assert at[1] - fallen == pytest.approx(found.weights["stability"] * (0.9 - 2 * 0.01 - 0.5))


SOUND, LOST = {"a": 0.21, "b": 0.168}, {"a": 0.21, "b": 0.0}  # ml


def test_nothing_is_flagged_of_a_sound_scan_and_every_fault_is():
    image = phantom()[0]
    assert assess(answering(), scan(), answer(), image, SOUND, CALIBRATION).flags == ()
    folded = np.zeros((3, *SHAPE), np.float32)
    folded[0, 5:9] = -4.0 * np.arange(4)[:, None, None]
    bad = assess(
        answering(), scan(1 - image, fell_back=True), answer(votes=answer().network, fields=[folded]), image, LOST,
        CALIBRATION,
    )  # fmt: skip
    assert bad.flags == (
        "alignment refused", "folding", "intensities out of range", "missing b", "low similarity",
        "estimated DSC under 0.6",
    )  # fmt: skip
    assert bad.estimated_dsc < 0.6
    none = assess(answering(), scan(fell_back=True), answer(), image, {"a": 0.0, "b": 0.1}, None)
    assert (none.estimated_dsc, none.intensity_shift) == (None, None)
    assert none.flags == ("alignment refused", "missing a")


@pytest.mark.parametrize("kind", Damage.KINDS)
def test_damage_grows_with_severity_and_the_label_moves_with_the_anatomy(kind):
    image, label = (torch.from_numpy(each) for each in phantom())
    before = (image[None, None], label[None])
    changes = []
    for severity in (0.0, 0.3, 1.0):
        after, moved = Damage(kind, severity)(*before, (1.0, 1.0, 1.0), torch.Generator().manual_seed(3))
        again, _ = Damage(kind, severity)(*before, (1.0, 1.0, 1.0), torch.Generator().manual_seed(3))
        assert torch.equal(after, again)
        changes.append(float((after - before[0]).abs().mean()))
        if kind in ("moved", "bent"):
            agrees = ((after[0, 0] > 0.3) == (moved[0] > 0)).float().mean()
            assert agrees > 0.94
            assert torch.equal(moved, before[1]) == (severity == 0)
        else:
            assert torch.equal(moved, before[1])
    assert changes[0] == pytest.approx(0, abs=1e-6)
    assert changes[0] < changes[1] < changes[2]


def test_couples_to_learn_from_go_all_the_way_to_the_scans_shapes(monkeypatch):
    drawn = []
    monkeypatch.setattr(PathBank, "couples", lambda writer, *rest: drawn.append((writer, *rest)) or iter(()))
    writer = PathBank(space=Beta(0.3), style=None)
    assert list(writer.true_couples("generated", "cohort", 3, 7)) == []
    ((asked, *rest),) = drawn
    assert rest == ["generated", "cohort", 3, 7]
    assert asked.space(2, torch.Generator()).tolist() == [[[[[1.0]]]]] * 2
    assert writer.space == Beta(0.3)


def test_couples_to_learn_from_are_true_ones_and_where_there_are_none_moved_atlases(monkeypatch):
    config = Config.model_validate(
        {
            "workspace": ".",
            "data": {"folder": ".", "atlases": ["a"], "unlabeled": ["u"]},
            "structures": {"a": 1, "b": 2},
        }
    )
    image, label = phantom()
    cohort = SimpleNamespace(
        parts={"atlases": ["a"], "unlabeled": ["u"]},
        grid=GRID,
        image=lambda _: image.astype(np.float16),
        label=lambda _: label,
    )
    made = SimpleNamespace(cohort=cohort, generated=SimpleNamespace(), round=0)
    asked = []

    def true_couples(writer, *rest):
        asked.append(rest)
        return iter([SimpleNamespace(image=image + k, label=label) for k in range(4)])

    with monkeypatch.context() as patch:
        patch.setattr(PathBank, "true_couples", true_couples)
        found = made_couples(made, config, "best", 3)
    assert asked == [(made.generated, cohort, 3, config.seed)]
    assert [float((each - image).mean()) for each, _ in found] == pytest.approx([0, 1, 2])
    # A label that was propagated is no truth: atlases are moved instead, image and label alike.
    moved = made_couples(made, config, "voxelmorph", 3)
    assert len(moved) == 3
    for each, classes in moved:
        assert not np.array_equal(classes, label)
        assert ((each > 0.3) == (classes > 0)).mean() > 0.94
