"""PC-Reg-RT: what R sees, losses with known answers, who teaches whom, gradients that stop, and switches."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from recipes import SHAPE, built, generator, phases, textured, writer
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.batches.drawing import Draw
from stages.parts.batches.partly_labelled import PartlyLabelledPair
from stages.parts.batches.space_style import Always
from stages.parts.networks.perceiving import PerceivingRegistration
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.players.joint import Anatomies
from stages.parts.players.perceiving import (
    PerceiveBoth,
    RegisterRegions,
    overlap_and_cross_entropy,
    own_label,
    reverse_teaching,
)
from stages.parts.players.registering import similarity
from stages.parts.warps import one_hot


class Bands(nn.Module):
    """S: background below 0.4, then two structures above 0.4 and 0.7, as sure as its weight says."""

    def __init__(self, sure: float = 50.0) -> None:
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(sure))

    def forward(self, image: Tensor) -> Tensor:
        self.seen = image.detach()
        return self.sure * one_hot((image[:, 0] > 0.4).long() + (image[:, 0] > 0.7).long(), 3)


class Ahead(nn.Module):
    """A body that moves every voxel by 1 along W, and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))

    def forward(self, pair: Tensor) -> Tensor:
        self.seen = pair.detach()
        return self.vector.view(1, 3, 1, 1, 1).expand(len(pair), 3, *pair.shape[2:])


def network(sure: float = 50.0, *, hard: bool = True) -> PerceivingRegistration:
    return PerceivingRegistration(Bands(sure), RegistrationNetwork(Ahead()), hard=hard)


def batch(*, moving: bool = True, fixed: bool = False) -> PartlyLabelledPair:
    images = textured(2, 1, 1, *SHAPE)
    labels = torch.randint(3, (2, 1, *SHAPE), generator=generator()).short()
    counts = [torch.full((1, 3), known) for known in (moving, fixed)]
    return PartlyLabelledPair(["a", "u"], *images, *labels, *counts, 3, Draw(1, None, None, generator()))


# What R sees


def test_every_structure_is_an_image_of_its_own_and_the_background_none():
    image = torch.tensor([0.3, 0.5, 0.9]).view(1, 1, 1, 1, 3)
    expected = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.9]]).view(1, 2, 1, 1, 3)
    torch.testing.assert_close(network().regions(image), expected)
    two = torch.cat([image, 1 - image], 1)  # two channels a scan: those of the first structure come first
    other = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.1]]).view(1, 2, 1, 1, 3)
    torch.testing.assert_close(network().regions(two)[:, 0::2], expected)
    torch.testing.assert_close(network().regions(two)[:, 1::2], other)


def test_soft_masks_are_probabilities():
    image = torch.tensor([0.3, 0.5, 0.9]).view(1, 1, 1, 1, 3)
    likely = math.e / (math.e + 2)
    first = image[:, 0] * torch.tensor([(1 - likely) / 2, likely, (1 - likely) / 2])
    torch.testing.assert_close(network(1.0, hard=False).regions(image)[:, 0], first)


def test_both_images_are_perceived_and_only_r_learns_from_it():
    R, pair = network(), batch()
    registered = RegisterRegions(R)(pair)
    torch.testing.assert_close(registered.moving, R.regions(pair.moving))
    torch.testing.assert_close(registered.fixed, R.regions(pair.fixed))
    torch.testing.assert_close(R.correspondence.body.seen, torch.cat([registered.fixed, registered.moving], 1))
    torch.testing.assert_close(R(pair.moving, pair.fixed), registered.displacement)
    similarity(registered).backward()
    assert R.perception.sure.grad is None and R.correspondence.body.vector.grad.abs().max() > 0


def test_similarity_is_a_sum_over_the_structures():
    R, pair = built("pc-reg-rt", registration_network="light").answer.registers, batch()
    (register,) = [p for p in phases(built("pc-reg-rt"), "registration")[0].players if p.name == "registration"]
    weight, term = register.loss.terms["similarity"]
    with torch.no_grad():
        registered = RegisterRegions(R)(pair)
        moved = [losses.lncc_loss(registered.moving[:, c : c + 1], registered.fixed[:, c : c + 1]) for c in range(2)]
        registered.displacement.zero_()
        assert weight * float(term(registered)) == pytest.approx(float(sum(moved)), rel=1e-5)


# What S learns


def shown(*known: bool, same: bool = True) -> Anatomies:
    """Unsure answers for a pair, labels of classes 1 (moving) and 2 (fixed)."""
    unsure = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    labels = tuple(one_hot(torch.full((1, 2, 2, 2), c), 3) for c in (1, 2))
    return Anatomies((unsure, unsure if same else unsure.clone()), labels, tuple(torch.tensor([k]) for k in known), ())


CE = losses.cross_entropy_loss


def test_an_unsure_answer_costs_ln_3_where_there_is_a_label_to_learn():
    for known, own, reverse in [
        ((True, False), 1, 1), ((False, True), 1, 1), ((True, True), 1, 0), ((False, False), 0, 0),
    ]:  # fmt: skip
        result = shown(*known)
        assert float(own_label(result, CE).detach()) == pytest.approx(own * math.log(3))
        assert float(reverse_teaching(result, CE).detach()) == pytest.approx(reverse * math.log(3))


def test_an_image_without_label_learns_the_other_ones_label():
    for known, taught, label in [((True, False), 1, 1), ((False, True), 0, 2)]:
        result = shown(*known, same=False)
        leaves = [logits.detach().requires_grad_() for logits in result.logits]
        result.logits = tuple(leaves)
        reverse_teaching(result, CE).backward()
        own = leaves[1 - taught].grad
        assert own is None or not own.any()
        assert (leaves[taught].grad.argmin(1) == label).all()  # that class's logit is to grow


def test_without_labels_there_is_a_gradient_of_0():
    result = shown(False, False)
    (own_label(result, CE) + reverse_teaching(result, CE)).backward()
    assert result.logits[0].grad is not None and not result.logits[0].grad.any()


def test_dice_beside_cross_entropy_is_that_of_each_sample():
    target = one_hot(torch.ones(2, 2, 2, 2), 3)
    assert float(overlap_and_cross_entropy(50 * target, target)) == pytest.approx(0, abs=1e-6)
    logits = textured(2, 3, 2, 2, 2)
    expected = losses.dice_loss(logits.softmax(1), target) + CE(logits, target)
    torch.testing.assert_close(overlap_and_cross_entropy(logits, target), expected)


def test_in_reverse_teaching_the_moving_image_is_aligned_with_its_label():
    S, pair = Bands(), batch()
    still, moved = PerceiveBoth(S)(pair), PerceiveBoth(S, network())(pair)
    torch.testing.assert_close(still.labels[0], one_hot(pair.moving_label, 3))
    torch.testing.assert_close(moved.labels[0][..., :-1], still.labels[0][..., 1:])
    torch.testing.assert_close(S.seen[:1, ..., :-1], pair.moving[..., 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(S.seen[1:], pair.fixed)
    assert [bool(known) for known in moved.known] == [True, False]
    assert not moved.labels[0].requires_grad  # R stands still


# The recipe


def test_s_learns_from_labels_and_then_r_teaches_it():
    first, second = phases(built("pc-reg-rt"), "registration")
    assert [(p.name, p.share) for p in (first, second)] == [("decoupled", 0.5), ("reverse-teaching", 0.5)]
    assert [[player.name for player in phase.players] for phase in (first, second)] == [
        ["segmentation", "registration"], ["registration", "segmentation"],
    ]  # fmt: skip
    taught = second.players[1].loss.terms
    assert {name: weight for name, (weight, _) in taught.items()} == {"anchors": 1.0, "reverse": 0.5}
    assert list(first.players[0].loss.terms) == ["anchors"]
    assert first.players[0].forward.registration is None
    light = phases(built("pc-reg-rt", preset="light"), "registration")
    assert [phase.name for phase in light] == ["perception-alone", "decoupled", "reverse-teaching"]
    assert sum(phase.share for phase in light) == pytest.approx(1)


def test_what_r_perceives_with_is_the_network_that_answers():
    recipe = built("pc-reg-rt")
    assert recipe.answer.registers is recipe.networks["registration"]
    assert recipe.answer.registers.perception is recipe.networks["segmentation"] is recipe.answer.network
    assert writer(recipe).space == Always(1.0)


def test_a_scan_in_which_nothing_is_perceived_is_registered_all_the_same():
    R = built("pc-reg-rt").answer.registers
    nn.init.constant_(R.perception.head.bias, 0)
    with torch.no_grad():
        R.perception.head.bias[0] = 1e4
        assert not R.regions(textured(1, 1, *SHAPE)).any()
        assert R(*textured(2, 1, 1, *SHAPE)).isfinite().all()


def test_settings_reach_what_they_are_about():
    def compare(loss: partial) -> object:
        return loss.keywords["compare"]

    names = [phase.name for phase in phases(built("pc-reg-rt", reverse_share=0), "registration")]
    assert names == ["decoupled"]
    off = phases(built("pc-reg-rt", reverse_weight=0), "registration")[1].players[1].loss.terms
    assert list(off) == ["anchors"]
    assert not built("pc-reg-rt", masks="soft").answer.registers.hard
    assert built("pc-reg-rt", diffeomorphic=True).answer.registers.correspondence.diffeomorphic
    S = phases(built("pc-reg-rt", segmentation_loss="dice-ce", segmentation_learning_rate=0.5), "registration")
    assert S[0].players[0].learning_rate == 0.5
    assert compare(S[0].players[0].loss.terms["anchors"][1]) is overlap_and_cross_entropy
    assert compare(phases(built("pc-reg-rt"), "registration")[0].players[0].loss.terms["anchors"][1]) is CE
    assert built("pc-reg-rt", flat_borders=True).answer.flat_borders
