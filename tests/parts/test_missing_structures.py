"""An atlas that lacks a structure which another one has says nothing of it: in votes, and in what networks learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.augmentation import AUGMENTATIONS
from stages.parts.batches.drawing import Draw
from stages.parts.batches.labelled import Labelled, labelled_scans
from stages.parts.batches.scans import Scans
from stages.parts.players.segmenting import Segment, merged
from stages.parts.voting import vote
from stages.parts.warps import one_hot

SHAPE = (8, 8, 8)
STILL = np.zeros((3, *SHAPE), np.float32)


def label_with(*boxes: tuple[int, int]) -> np.ndarray:
    """Class indices; box k of class c covers the slices 2 k and 2 k + 1."""
    label = np.zeros(SHAPE, np.uint8)
    for place, value in boxes:
        label[2 * place : 2 * place + 2] = value
    return label


def votes_of(*labels: np.ndarray) -> Tensor:
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    return vote([(image, label) for label in labels], [STILL] * len(labels), image, 3)


def test_an_atlas_without_a_structure_does_not_vote_against_it():
    probabilities = votes_of(label_with((1, 1)), label_with((1, 1), (2, 2)), label_with((1, 1)))
    assert probabilities[2, 4:6].min() == pytest.approx(1)
    assert probabilities[1, 2:4].min() == pytest.approx(1)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(SHAPE))
    assert probabilities[0, :2].min() == pytest.approx(1)


def test_atlases_that_each_lack_one_agree_on_both():
    answer = votes_of(label_with((1, 1)), label_with((2, 2))).argmax(0)
    np.testing.assert_array_equal(answer, label_with((1, 1), (2, 2)))


def test_where_nothing_is_missing_votes_are_shares():
    probabilities = votes_of(label_with((1, 1), (2, 2)), label_with((2, 1), (3, 2)), label_with((2, 1), (1, 2)))
    assert probabilities[:, 4].amax((1, 2)).tolist() == pytest.approx([0, 2 / 3, 1 / 3], abs=1e-3)


def scans_of(*labels: np.ndarray) -> Scans:
    images = torch.rand((len(labels) + 1, 1, *SHAPE), generator=torch.Generator().manual_seed(0)).half()
    maps = {place: torch.from_numpy(label.astype(np.int16)) for place, label in enumerate(labels)}
    names = [f"a{k}" for k in range(len(labels))] + ["u"]
    return Scans(names, images, maps, list(maps), [len(labels)], 3, (1.0, 1.0, 1.0))


def test_what_an_atlas_lacks_is_known_by_its_name():
    data = scans_of(label_with((1, 1)), label_with((1, 1), (2, 2)))
    assert data.missing(["a1", "a0", "u", "prior"]).tolist() == [[False] * 3, [False, False, True], *[[False] * 3] * 2]  # type: ignore[union-attr]
    assert scans_of(label_with((1, 1)), label_with((2, 1))).missing(["a0"]) is None  # no atlas has class 2


class Answers(nn.Module):
    """Says the same of every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, image: Tensor) -> Tensor:
        return self.logits.expand(len(image), -1, -1, -1, -1)


LOSSES = {
    "dice": lambda r: losses.dice_loss(r.logits.softmax(1), r.target),
    "cross-entropy": lambda r: losses.cross_entropy_loss(r.logits, r.target),
    "both": lambda r: losses.dice_cross_entropy_loss(r.logits, r.target),
    "hardest": lambda r: losses.hardest_cross_entropy_loss(r.logits, r.target),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_network_that_finds_what_the_label_lacks_makes_no_mistake(name):
    """Sure of everything, class 2 included: the loss is that of an answer without class 2 against the same label."""
    whole, lacking = (torch.from_numpy(label.astype(np.int16))[None] for label in
                      (label_with((1, 1), (2, 2)), label_with((1, 1))))  # fmt: skip
    target, missing = one_hot(lacking, 3), torch.tensor([[False, False, True]])
    sure, without = (20 * one_hot(label, 3) for label in (whole, lacking))
    image = torch.zeros((1, 1, *SHAPE))
    found = float(LOSSES[name](Segment(Answers(sure))(Labelled(["a"], image, target, missing=missing))))
    expected = float(LOSSES[name](Segment(Answers(without))(Labelled(["a"], image, target))))
    blamed = LOSSES[name](Segment(Answers(sure))(Labelled(["a"], image, target)))
    assert found == pytest.approx(expected, abs=1e-4)
    assert blamed > expected + 0.1


def test_gradients_are_finite_and_push_nothing_out():
    logits = torch.randn((1, 3, 2, 2, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    missing = torch.tensor([[False, False, True]])
    target = one_hot(torch.zeros((1, 2, 2, 2), dtype=torch.int16), 3)
    loss = losses.cross_entropy_loss(merged(logits, missing), target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert (gradient[:, 2] <= 0).all()  # more of class 2 is no loss


def test_batches_say_what_their_labels_lack():
    data = scans_of(label_with((1, 1)), label_with((1, 1), (2, 2)))
    draw = Draw(8, *AUGMENTATIONS["mild"], torch.Generator().manual_seed(0))
    batch = labelled_scans(data, draw)
    assert batch.missing is not None
    assert batch.missing[:, 2].tolist() == [name == "a0" for name in batch.scans]
    assert {*batch.scans} == {"a0", "a1"}
