"""UA-MT, CPS and MASSL: losses with known answers, gradients that stop, and switches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import goes_on_after_a_fault
from recipes import SHAPE, built, config, generator, phases, textured
from torch import nn

from stages.errors import LrlsError
from stages.methods import METHODS, check_unlabeled
from stages.methods.phases import Ramp, Ramped, WeightedSum
from stages.parts import losses
from stages.parts.augmentation import AUGMENTATIONS
from stages.parts.batches.drawing import Draw
from stages.parts.batches.half_labelled import HalfLabelled, labelled_and_unlabeled
from stages.parts.batches.scans import Scans
from stages.parts.networks.mean_teacher import MeanTeacher
from stages.parts.players.segmenting import Segment
from stages.parts.players.semi_supervised import (
    Crossed,
    SegmentTwice,
    TaughtUnsurely,
    TeachWhereSure,
    certain_consistency,
    cross_pseudo,
    noisy,
)

NAMES = ("ua-mt", "cps", "massl")


def scans(*, lacks: bool = False) -> Scans:
    """Two atlases, of which the second may lack class 2, and two scans."""
    label = torch.randint(3, SHAPE, generator=generator()).short()
    second = torch.where(label == 2, 0, label) if lacks else label
    images = textured(4, 1, *SHAPE).half()
    return Scans(["a", "b", "u", "v"], images, {0: label, 1: second}, [0, 1], [2, 3], 3, (1.0, 1.0, 1.0))


def batch(n: int = 4, augmentation: str = "none", **options: bool) -> HalfLabelled:
    return labelled_and_unlabeled(scans(**options), Draw(n, *AUGMENTATIONS[augmentation], generator(1)))


def player_of(name: str, number: int = 0, **settings: object):
    return phases(built(name, **settings), "segmentation")[0].players[number]


def forced(classes: torch.Tensor, sure: float = 20.0) -> torch.Tensor:
    """Logits of (N, D, H, W) classes of three."""
    return sure * nn.functional.one_hot(classes.long(), 3).movedim(-1, 1).float()


# Batches


def test_half_of_a_batch_is_labelled_and_a_batch_of_one_has_one_of_each():
    for n, half in ((4, 2), (3, 2), (1, 1)):
        drawn = batch(n)
        assert len(drawn.image) == len(drawn.unlabeled) == half
        assert set(drawn.scans[:half]) <= {"a", "b"} and set(drawn.scans[half:]) <= {"u", "v"}


def test_labelled_scans_move_with_their_labels_and_unlabelled_ones_another_way():
    data = scans()
    data = replace(data, images=torch.cat([(data.labels[0] == 1)[None, None].half()] * 4))
    drawn = labelled_and_unlabeled(data, Draw(4, *AUGMENTATIONS["rotate-scale"], generator(1)))
    torch.testing.assert_close(drawn.image[:, 0], drawn.target[:, 1], atol=1e-3, rtol=0)
    assert not torch.allclose(drawn.image, drawn.unlabeled)


# Uncertainty


def test_entropy_of_a_uniform_answer_is_ln_c_and_of_a_sure_one_0():
    for classes in (2, 3, 28):
        uniform = torch.full((1, classes, 2, 2, 2), 1 / classes)
        torch.testing.assert_close(losses.entropy(uniform), torch.full((1, 2, 2, 2), math.log(classes)))
        sure = torch.zeros(1, classes, 2, 2, 2)
        sure[:, 1] = 1
        assert torch.equal(losses.entropy(sure), torch.zeros(1, 2, 2, 2))


def test_a_threshold_that_no_voxel_passes_teaches_nothing_and_one_that_all_pass_all():
    student = textured(1, 3, 2, 2, 2).requires_grad_()
    teacher = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 2, 2)
    entropies = torch.linspace(0.0, 0.9, 8).view(1, 2, 2, 2) * math.log(3)

    def loss(threshold: float) -> torch.Tensor:
        known = torch.zeros(1, 3, 2, 2, 2)
        return certain_consistency(
            TaughtUnsurely(known, known, student=student, teacher=teacher, entropy=entropies), threshold
        )

    nothing = loss(0.0)
    assert float(nothing.detach()) == 0
    assert not torch.autograd.grad(nothing, student)[0].any()
    squares = (student.softmax(1) - teacher).square().mean(1)
    torch.testing.assert_close(loss(1.0), squares.mean())
    torch.testing.assert_close(loss(0.5), squares[entropies < 0.5 * math.log(3)].mean())
    (gradient,) = torch.autograd.grad(loss(0.5), student)
    assert torch.equal(gradient.any(1), entropies < 0.5 * math.log(3))


def test_consistency_of_opposite_sure_answers_is_the_mean_over_classes():
    ones, twos = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    loss = losses.certain_consistency_loss(forced(ones), forced(twos).softmax(1), torch.ones(1, 2, 2, 2).bool())
    assert float(loss) == pytest.approx(2 / 3, abs=1e-5)  # two of three classes are off by 1
    assert float(losses.certain_consistency_loss(forced(ones), forced(ones).softmax(1), ones == 0)) < 1e-9


def test_gaussian_ramp_goes_from_exp_of_minus_5_to_its_end():
    weight, threshold = Ramp(0.0, 0.1, gaussian=True), Ramp(0.75, 1.0, gaussian=True)
    assert weight(0, 100) == pytest.approx(0.1 * math.exp(-5))
    assert weight(50, 100) == pytest.approx(0.1 * math.exp(-1.25))
    assert weight(100, 100) == 0.1 and weight(1000, 100) == 0.1
    assert threshold(0, 100) == pytest.approx(0.75 + 0.25 * math.exp(-5)) and threshold(100, 100) == 1
    assert Ramp(0.0, 1.0, most=0.5, gaussian=True)(50, 100) == 1
    assert Ramp(1.0, 0.0)(25, 100) == 0.75  # others stay linear


def test_a_ramped_term_sees_its_number_in_each_step():
    term = Ramped(Ramp(2.0, 4.0), lambda state, number: state * number)
    summed = WeightedSum(ramped=(0.5, term), plain=(1.0, lambda state: state))
    for step, number in ((0, 2.0), (5, 3.0), (10, 4.0)):
        total, terms = summed(torch.tensor(3.0), step, 10)
        assert float(terms["ramped"]) == 3 * number and float(total) == 1.5 * number + 3


def test_noise_is_in_deviations_of_the_image_and_is_cut_off():
    image = 0.01 * textured(1, 1, 20, 20, 20)
    noise = noisy(image, 0.1, generator()) - image
    assert float(noise.std()) == pytest.approx(0.1 * float(image.std()), rel=0.1)
    assert float(noise.abs().max()) <= 0.2 * float(image.std()) + 1e-7
    assert torch.equal(noisy(torch.ones(1, 1, 3, 3, 3), 0.1, generator()), torch.ones(1, 1, 3, 3, 3))


# The teacher


def weight_of(value: float) -> nn.Conv3d:
    layer = nn.Conv3d(1, 1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_teacher_is_the_mean_of_a_young_students_weights_and_then_forgets_a_hundredth():
    both = MeanTeacher(weight_of(0.0))
    both.follow()  # before the first step
    for value in (4.0, 8.0, 3.0):
        nn.init.constant_(both.student.weight, value)
        both.follow()
    assert float(both.teacher.weight.detach()) == pytest.approx(5)
    both.followed.fill_(1000)
    nn.init.constant_(both.student.weight, 15.0)
    both.follow()
    assert float(both.teacher.weight.detach()) == pytest.approx(5 + 0.01 * 10)


def test_teacher_gets_no_gradient_and_its_state_is_part_of_the_weights():
    recipe = built("ua-mt", segmentation_network="light")
    both, player = recipe.networks["segmentation"], phases(recipe, "segmentation")[0].players[0]
    assert isinstance(both, MeanTeacher)
    total, terms = player.loss(player.forward(batch()))
    total.backward()
    assert set(terms) == {"supervised", "consistency"}
    assert all(p.grad is None for p in both.teacher.parameters())
    assert all(p.grad is not None for p in both.student.parameters())
    assert int(both.state_dict()["followed"]) == 1


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(3)), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return x * self.scale.view(1, 3, 1, 1, 1)


def test_teacher_answers_once_and_t_times_each_with_noise_of_its_own():
    both, drawn = MeanTeacher(Counted()), batch()
    TeachWhereSure(both, passes=3, noise=0.1, dropout=0.0)(drawn)
    assert len(both.teacher.seen) == 4 and len(both.student.seen) == 1
    assert all(not torch.equal(a, b) for k, a in enumerate(both.teacher.seen) for b in both.teacher.seen[:k])
    result = TeachWhereSure(both, passes=0, noise=0.1, dropout=0.0)(drawn)
    assert len(both.teacher.seen) == 4 and result.teacher is None


def test_a_stopped_training_goes_on_with_its_teacher(project, monkeypatch, no_pictures):
    goes_on_after_a_fault(
        project, monkeypatch, method="ua-mt", stage="train-seg", kind="segmentation", term="certain_consistency_loss",
        player="student",
    )  # fmt: skip


def test_answers_choose_the_network():
    for answers in ("student", "teacher"):
        recipe = built("ua-mt", answers=answers)
        assert recipe.answer.network is getattr(recipe.networks["segmentation"], answers)


# Two networks


def test_each_network_learns_the_other_ones_classes_and_no_gradient_passes_through_them():
    zeros, ones = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    first, second = (forced(each, 2.0).requires_grad_() for each in (zeros, ones))
    one_way = losses.pseudo_label_loss(first, second)
    assert float(one_way.detach()) == pytest.approx(2 + math.log(1 + 2 * math.exp(-2)))  # log(e^2 + 2) - 0
    gradients = torch.autograd.grad(one_way, (first, second), allow_unused=True)
    assert gradients[1] is None and (gradients[0][:, 1] < 0).all() and (gradients[0][:, 0] > 0).all()
    both = cross_pseudo(Crossed(None, (first, second)))
    assert float(both.detach()) == pytest.approx(2 * float(one_way.detach()))
    (to_second,) = torch.autograd.grad(both, second)
    assert (to_second[:, 0] < 0).all() and (to_second[:, 1] > 0).all()
    sure = forced(zeros)
    assert float(losses.pseudo_label_loss(sure, sure)) < 1e-6


def test_both_networks_learn_start_apart_and_the_first_one_answers():
    recipe = built("cps")
    first, second = recipe.networks["segmentation"], recipe.networks["second"]
    assert recipe.answer.network is first
    assert not torch.equal(first.head.weight, second.head.weight)
    player = phases(recipe, "segmentation")[0].players[0]
    assert {id(p) for p in player.trains.parameters()} == {id(p) for n in (first, second) for p in n.parameters()}
    state = player.forward(batch())
    assert state.logits[0].shape == (4, 3, *SHAPE) and state.labelled[0].logits.shape == (2, 3, *SHAPE)


# Two decoders


def test_reconstruction_of_attended_parts_is_0_and_of_nothing_the_parts_energy():
    image = torch.full((1, 1, 2, 2, 2), 0.5)
    attention = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1, 1).expand(1, 2, 2, 2, 2)
    parts = attention[:, :, None] * image[:, None]
    assert float(losses.attended_reconstruction_loss(parts, image, attention)) == 0
    nothing = torch.zeros_like(parts)
    energies = [(0.75 * 0.5) ** 2, (0.25 * 0.5) ** 2]
    shared = losses.attended_reconstruction_loss(nothing, image, attention)
    assert float(shared) == pytest.approx(0.75 * energies[0] + 0.25 * energies[1])
    alike = losses.attended_reconstruction_loss(nothing, image, attention, by_share=False)
    assert float(alike) == pytest.approx(sum(energies) / 2)


def test_gradients_of_the_reconstruction_are_twice_the_weighted_errors():
    parts, image = textured(1, 2, 1, 2, 2, 2).requires_grad_(), textured(1, 1, 2, 2, 2, seed=1)
    logits = textured(1, 2, 2, 2, 2, seed=3)
    (gradient,) = torch.autograd.grad(losses.attended_reconstruction_loss(parts, image, logits.softmax(1)), parts)
    attention = logits.softmax(1)
    shares = attention.sum((0, 2, 3, 4)) / attention.sum()
    expected = 2 / 8 * shares.view(1, 2, 1, 1, 1, 1) * (parts.detach() - attention[:, :, None] * image[:, None])
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("network", ["brbs", "light"])
def test_the_reconstruction_moves_encoder_and_its_decoder_and_reaches_them_through_the_attention(network):
    recipe = built("massl", segmentation_network=network)
    S, D_R = recipe.networks["segmentation"], recipe.networks["reconstruction"]
    segment, reconstruct = phases(recipe, "segmentation")[0].players
    moved = {id(p) for p in reconstruct.trains.parameters()}
    assert moved == {id(p) for p in (*S.down.parameters(), *D_R.parameters())}
    assert {id(p) for p in segment.trains.parameters()} == {id(p) for p in S.parameters()}
    assert reconstruct.paces[0][1] == 0.1
    state = reconstruct.forward(batch())
    assert state.parts.shape == (2, 3, 1, *SHAPE) and state.attention.requires_grad
    assert float(state.parts.min()) > 0 and float(state.parts.max()) < 1


def test_without_attention_the_image_is_one_part():
    player = player_of("massl", 1, segmentation_network="light", attention=False)
    state = player.forward(batch())
    assert state.parts.shape == (2, 1, 1, *SHAPE) and bool((state.attention == 1).all())
    expected = (state.parts[:, 0] - state.image).square().mean()
    torch.testing.assert_close(player.loss(state)[0], expected)


# Switches


@pytest.mark.parametrize(
    ("name", "settings", "gone"),
    [
        ("ua-mt", {"consistency_weight": 0}, {"consistency"}),
        ("cps", {"cross_weight": 0}, {"cross_pseudo"}),
        ("cps", {"ramp_up": 0.5}, set()),
    ],
)
def test_a_weight_of_0_switches_its_term_off(name, settings, gone):
    terms = player_of(name).loss.terms
    assert terms.keys() - player_of(name, **settings).loss.terms.keys() == gone


def test_without_reconstruction_s_learns_from_labels_alone():
    recipe = built("massl", reconstructs=False)
    assert list(recipe.networks) == ["segmentation"]
    assert [player.name for player in phases(recipe, "segmentation")[0].players] == ["segmentation"]


def test_weights_and_thresholds_are_the_published_ones():
    loss = player_of("ua-mt").loss.terms
    weight, term = loss["consistency"]
    assert (weight, loss["supervised"][0]) == (Ramp(0.0, 0.1, gaussian=True), 0.5)
    assert term.ramp == Ramp(0.75, 1.0, gaussian=True)
    forward = player_of("ua-mt").forward
    assert (forward.passes, forward.noise, forward.dropout, forward.networks.decay) == (8, 0.1, 0.5, 0.99)
    assert player_of("cps").loss.terms["cross_pseudo"][0] == 1.5
    assert player_of("cps", ramp_up=0.5).loss.terms["cross_pseudo"][0] == Ramp(0.0, 1.5, most=0.5, gaussian=True)


@pytest.mark.parametrize("setting", ["passes", "noise", "dropout", "decay", "first_threshold"])
def test_every_number_of_ua_mt_changes_its_step(setting):
    other = {"passes": 2, "noise": 0.5, "dropout": 0.1, "decay": 0.5, "first_threshold": 0.1}

    def loss(**settings: float) -> float:
        recipe = built("ua-mt", segmentation_network="light", **settings)
        player = phases(recipe, "segmentation")[0].players[0]
        both = recipe.networks["segmentation"]
        nn.init.normal_(both.student.head.weight, std=2.0, generator=generator(5))
        both.followed.fill_(500)  # a teacher that has something to follow
        with torch.no_grad():
            _, terms = player.loss(player.forward(batch()))
        return float(terms["consistency"])

    assert loss(**{setting: other[setting]}) != loss()


# Labels that lack a structure, and cohorts that lack scans


@pytest.mark.parametrize("name", NAMES)
def test_what_a_label_lacks_is_no_mistake(name):
    """An atlas lacks class 2: a network that is sure of it there has the loss of one that is sure of background."""
    drawn = batch(lacks=True)
    drawn = replace(drawn, image=drawn.image[:1], target=forced(torch.zeros(1, *SHAPE)).softmax(1).round(),
                    missing=torch.tensor([[False, False, True]]))  # fmt: skip

    class Says(nn.Module):
        def __init__(self, said: int) -> None:
            super().__init__()
            self.said, self.weight = said, nn.Parameter(torch.zeros(()))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return forced(torch.full((len(image), *SHAPE), self.said)) + self.weight

    def supervised(said: int) -> float:
        player = player_of(name, segmentation_network="light")
        forward = {
            "ua-mt": lambda: TeachWhereSure(MeanTeacher(Says(said)), 1, 0.1, 0.0),
            "cps": lambda: SegmentTwice(Says(said), Says(said)),
            "massl": lambda: Segment(Says(said)),
        }[name]()
        with torch.no_grad():
            _, terms = player.loss(forward(drawn))
        return float(terms.get("supervised", terms.get("overlap")))

    assert supervised(2) == pytest.approx(supervised(0), abs=1e-4)
    assert supervised(1) > supervised(0) + 0.5


@pytest.mark.parametrize("name", NAMES)
def test_without_unlabelled_scans_it_is_refused_by_name(name):
    with pytest.raises(LrlsError, match=rf"^{name} learns from unlabelled scans, and data\.unlabeled lists none"):
        check_unlabeled(METHODS[name], config())


# JRSS's networks alone


def test_mono_is_each_network_of_jrss_alone():
    recipe = built("jrss", preset="mono")
    assert [step.makes for step in recipe.steps(0)] == ["registration", "segmentation"] and recipe.last_round == 0
    (register,), (segment,) = (phases(recipe, role)[0].players for role in ("registration", "segmentation"))
    assert set(register.loss.terms) == {"similarity", "smoothness", "overlap"}
    assert set(segment.loss.terms) == {"overlap"}
    unsupervised = built("jrss", preset="mono", overlap_weight=0)
    assert "overlap" not in phases(unsupervised, "registration")[0].players[0].loss.terms
