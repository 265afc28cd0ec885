"""DeepRS: losses with known answers, who is warped by which degree, gradients that stop, and switches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from recipes import SHAPE, built, generator, phases, textured, writer
from torch import Tensor, nn

from stages.methods.phases import Ramp
from stages.parts import losses
from stages.parts.batches.drawing import Draw
from stages.parts.batches.pairs import LabelledPair, atlas_and_scan
from stages.parts.batches.scans import Scans
from stages.parts.batches.space_style import Always, Beta
from stages.parts.networks.discriminators import AlignmentDiscriminator
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.players.aligned import (
    Aligned,
    JudgeAlignment,
    RegisterAndAsk,
    SegmentAligned,
    Supervised,
    aligned,
    convincing,
    misaligned,
    region_constraint,
    trusted_cross_entropy,
    warped_cross_entropy,
    warped_overlap_and_cross_entropy,
)
from stages.parts.players.judging import Judged
from stages.parts.warps import one_hot

HALF = Always(0.5)


class Constant(nn.Module):
    """A body that moves every voxel by 2 along W."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.tensor([0.0, 0.0, 2.0]))

    def forward(self, pair: Tensor) -> Tensor:
        return self.vector.view(1, 3, 1, 1, 1).expand(len(pair), 3, *pair.shape[2:])


class Seen(nn.Module):
    """Remembers what it was shown, and answers with a weight times its first channels."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight, self.outputs = nn.Parameter(torch.tensor(1.0)), outputs

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach()
        return (
            self.weight
            * x[:, :1].repeat(1, self.outputs, 1, 1, 1)
            * torch.arange(1.0, self.outputs + 1).view(1, -1, 1, 1, 1)
        )


def batch(**changes: object) -> LabelledPair:
    images = textured(2, 1, 1, *SHAPE)
    label = torch.randint(3, (1, *SHAPE), generator=generator()).short()
    pair = LabelledPair(["a", "u"], images[0], images[1], label, 3, Draw(1, None, None, generator()))
    return replace(pair, **changes)  # type: ignore[arg-type]


def moved_by_one(x: Tensor) -> Tensor:
    """An image, pulled by one voxel along W, without its last plane."""
    return x[..., 1:]


# Losses


def test_a_discriminator_pays_the_logarithm_of_its_doubt():
    unsure, sure = torch.zeros(2, 1, 2, 2, 2), torch.full((1, 1, 2, 2, 2), 20.0)
    for answer in (0.0, 1.0):
        assert float(losses.cross_entropy_gan_loss(unsure, answer)) == pytest.approx(math.log(2))
    assert float(losses.cross_entropy_gan_loss(sure, 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(losses.cross_entropy_gan_loss(sure, 0.0)) == pytest.approx(20)
    judged = textured(2, 1, *SHAPE) - 0.5
    expected = F.binary_cross_entropy_with_logits(judged, torch.ones_like(judged))
    torch.testing.assert_close(losses.cross_entropy_gan_loss(judged, 1.0), expected)


def test_a_label_counts_as_far_as_it_is_trusted():
    logits, target = torch.zeros(1, 3, 1, 1, 4), one_hot(torch.tensor([[[[0, 1, 2, 0]]]]), 3)
    trust = torch.tensor([1.0, 0.5, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    assert float(losses.trusted_cross_entropy_loss(logits, target, trust)) == pytest.approx(1.5 / 4 * math.log(3))
    torch.testing.assert_close(
        losses.trusted_cross_entropy_loss(logits, target, torch.ones_like(trust)),
        losses.cross_entropy_loss(logits, target),
    )
    logits.requires_grad_()
    losses.trusted_cross_entropy_loss(logits, target, trust).backward()
    assert not logits.grad[..., 2:].any() and logits.grad[..., :2].all()


def test_the_region_constraint_is_the_mean_square_between_answers():
    sure = one_hot(torch.zeros(1, 2, 2, 2), 2)
    for other, expected in ((sure, 0.0), (sure.flip(1), 1.0), (torch.full_like(sure, 0.5), 0.25)):
        result = Aligned(sure, sure, sure, answers=(sure, other))
        assert float(region_constraint(result)) == pytest.approx(expected)


def test_terms_are_the_losses_that_they_name():
    real, fake = torch.full((1, 1, 2, 2, 2), 2.0), torch.full((1, 1, 2, 2, 2), -1.0)
    judged = Judged(real, fake)
    assert float(aligned(judged)) == pytest.approx(math.log1p(math.exp(-2)))
    assert float(misaligned(judged)) == pytest.approx(math.log1p(math.exp(-1)))
    assert float(convincing(Aligned(real, real, real, judged=fake))) == pytest.approx(math.log1p(math.exp(1)))
    logits, target = textured(1, 3, 2, 2, 2), one_hot(torch.ones(1, 2, 2, 2), 3)
    result = Supervised(target, logits, logits, torch.full((1, 1, 2, 2, 2), 0.25))
    entropy = float(losses.cross_entropy_loss(logits, target))
    assert float(warped_cross_entropy(result)) == pytest.approx(entropy)
    assert float(trusted_cross_entropy(result)) == pytest.approx(entropy / 4)
    both = losses.dice_cross_entropy_loss(logits, target)
    assert float(warped_overlap_and_cross_entropy(result)) == pytest.approx(float(both))


# Networks


@pytest.mark.parametrize(("shape", "levels"), [((48, 40, 36), 2), ((10, 12, 13), 1)])
def test_the_discriminator_says_one_number_a_voxel(shape, levels):
    network = AlignmentDiscriminator(2, shape)
    verdicts = network(textured(2, 2, *shape))
    assert len(network.down) == levels
    assert verdicts.shape == (2, 1, *shape) and verdicts.dtype == torch.float32
    assert float(verdicts.detach().std()) > 0


def test_the_discriminator_learns_where_images_are_aligned():
    images = textured(2, 1, 12, 12, 12)
    other = images.clone()
    other[..., :6] = other.flip(2)[..., :6]  # the near half is another anatomy
    pairs, truth = torch.cat([images, other], 1), torch.ones(2, 1, 12, 12, 12)
    truth[..., :6] = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AlignmentDiscriminator(2, (12, 12, 12))
    adam = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        adam.zero_grad()
        F.binary_cross_entropy_with_logits(network(pairs), truth).backward()
        adam.step()
    confidence = network(pairs).sigmoid().detach()
    assert float(confidence[..., 8:].mean()) > 0.8 and float(confidence[..., :4].mean()) < 0.2


# Players


def test_images_and_labels_go_as_far_as_their_degree():
    R, S, pair = RegistrationNetwork(Constant()), Seen(3), batch()
    result = SegmentAligned(S, R, None, HALF)(pair)
    expected = one_hot(pair.label, 3)
    torch.testing.assert_close(result.target[..., :-1], moved_by_one(expected))
    torch.testing.assert_close(S.seen[:1, ..., :-1], moved_by_one(pair.moving), atol=1e-5, rtol=0)
    torch.testing.assert_close(S.seen[1:], pair.fixed)
    assert (result.trust == 1).all()  # nobody judges
    registered = RegisterAndAsk(R, None, None, HALF)(pair)
    torch.testing.assert_close(registered.warped[..., :-1], moved_by_one(pair.moving), atol=1e-5, rtol=0)
    assert (registered.displacement[:, 2] == 2).all()  # smoothness is that of the whole displacement


def test_trust_is_what_the_discriminator_says_of_warped_atlas_and_scan():
    R, D, pair = RegistrationNetwork(Constant()), Seen(1), batch()
    result = SegmentAligned(Seen(3), R, D, HALF)(pair)
    torch.testing.assert_close(result.trust[..., :-1], moved_by_one(pair.moving).sigmoid(), atol=1e-5, rtol=0)
    torch.testing.assert_close(D.seen[:, 1:], pair.fixed)


def test_without_scans_nobody_is_asked_about_them():
    result = SegmentAligned(Seen(3), RegistrationNetwork(Constant()), None, HALF, scans=False)(batch())
    assert result.of_fixed is None and result.trust is None


def test_an_aligned_pair_is_the_scan_with_a_share_of_the_atlas_in_it():
    R, D, pair = RegistrationNetwork(Constant()), Seen(1), batch()
    judged = JudgeAlignment(R, D, HALF, 0.25)(pair)
    reference, warped = D.seen.chunk(2)
    torch.testing.assert_close(reference[:, :1], 0.25 * pair.moving + 0.75 * pair.fixed)
    torch.testing.assert_close(warped[:, :1, ..., :-1], moved_by_one(pair.moving), atol=1e-5, rtol=0)
    assert all(torch.equal(half[:, 1:], pair.fixed) for half in (reference, warped))
    torch.testing.assert_close(judged.real, reference[:, :1])


@pytest.mark.parametrize("term", [convincing, region_constraint])
def test_what_s_and_d_say_moves_r(term):
    R = RegistrationNetwork(Constant())
    S, D = Seen(3).requires_grad_(False), Seen(1).requires_grad_(False)
    term(RegisterAndAsk(R, S, D, HALF)(batch())).backward()
    assert R.body.vector.grad.abs().max() > 0


def test_nothing_of_s_or_d_moves_r():
    R = RegistrationNetwork(Constant())
    result = SegmentAligned(Seen(3), R, Seen(1), HALF)(batch())
    assert not result.target.requires_grad and not result.trust.requires_grad
    (warped_cross_entropy(result) + trusted_cross_entropy(result)).backward()
    aligned(JudgeAlignment(R, Seen(1), HALF, 0.2)(batch())).backward()
    assert R.body.vector.grad is None


def test_a_structure_that_the_atlas_lacks_is_not_held_against_s():
    label = torch.randint(3, SHAPE, generator=generator()).short()
    data = Scans(
        ["a", "b", "u"], textured(3, 1, *SHAPE).half(), {0: label.clamp(max=1), 1: label}, [0, 1], [2], 3, (1.0,) * 3
    )
    pair = atlas_and_scan(data, Draw(8, None, None, generator()))
    assert [row[2] for row in pair.missing.tolist()] == [name == "a" for name in pair.scans[:8]]
    lacks = batch(label=torch.zeros(1, *SHAPE).short(), missing=torch.tensor([[False, False, True]]))

    def loss(structure: int) -> float:
        class Sure(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return 20 * one_hot(torch.full((len(x), *SHAPE), structure), 3)

        result = SegmentAligned(Sure(), RegistrationNetwork(Constant()), None, HALF)(lacks)
        return float(warped_cross_entropy(result) + trusted_cross_entropy(result))

    assert loss(2) == pytest.approx(0, abs=1e-6) and loss(1) > 10


# The recipe


def players(**settings: object) -> dict[str, object]:
    (phase,) = phases(built("deep-rs", **settings), "registration")
    return {player.name: player for player in phase.players}


def test_r_s_and_d_move_in_turn_and_atlases_are_generated_by_the_same_degree():
    recipe, found = built("deep-rs"), players()
    assert list(found) == ["registration", "segmentation", "discriminator"]
    weights = {name: {term: weight for term, (weight, _) in found[name].loss.terms.items()} for name in found}
    assert weights == {
        "registration": {"similarity": 1.0, "smoothness": 1.0, "adversarial": 0.05, "regions": 10.0},
        "segmentation": {"warped": 1.0, "confident": 0.5},
        "discriminator": {"aligned": 1.0, "misaligned": 1.0},
    }
    assert writer(recipe).space == found["segmentation"].forward.degree == Beta(1.0)
    assert recipe.answer.network is recipe.networks["segmentation"]


@pytest.mark.parametrize(
    ("settings", "gone", "left"),
    [
        ({"adversarial_weight": 0}, "adversarial", ["registration", "segmentation", "discriminator"]),
        ({"region_weight": 0}, "regions", ["registration", "segmentation", "discriminator"]),
        ({"confident_weight": 0}, "confident", ["registration", "segmentation", "discriminator"]),
        ({"confident_weight": 0, "adversarial_weight": 0}, "confident", ["registration", "segmentation"]),
        ({"confidence": False, "adversarial_weight": 0}, "adversarial", ["registration", "segmentation"]),
    ],
    ids=str,
)
def test_a_weight_of_0_switches_off_the_term_and_what_it_needs(settings, gone, left):
    found = players(**settings)
    assert list(found) == left
    assert gone not in {term for player in found.values() for term in player.loss.terms}
    assert ("discriminator" in built("deep-rs", **settings).networks) == ("discriminator" in left)
    R, S = found["registration"].forward, found["segmentation"].forward
    assert (R.segmentation is None) == (settings.get("region_weight") == 0)
    assert (R.discriminator is None) == (settings.get("adversarial_weight") == 0)
    assert S.scans == (settings.get("confident_weight") != 0)


def test_degrees_are_random_for_s_and_d_and_in_paper_for_r():
    def degrees(**settings: object) -> list[object]:
        return [player.forward.degree for player in players(**settings).values()]

    whole, random = Always(1.0), Beta(1.0)
    assert degrees() == [whole, random, random]
    assert degrees(preset="paper") == [random] * 3
    assert degrees(preset="paper", perturb=False) == [whole] * 3


def test_other_settings_reach_what_they_are_about():
    assert players(confidence=False)["segmentation"].forward.discriminator is None
    assert players(reference_share=0.1)["discriminator"].forward.share == 0.1
    assert players(segmentation_learning_rate=0.5)["segmentation"].learning_rate == 0.5
    assert players(segmentation_loss="dice-ce")["segmentation"].loss.terms["warped"][1] is (
        warped_overlap_and_cross_entropy
    )
    assert players(warped_weight=2)["segmentation"].loss.terms["warped"][0] == 2
    assert players(similarity_weight=2)["registration"].loss.terms["similarity"][0] == 2
    rising = players(warm_up=0.5)
    assert rising["registration"].loss.terms["adversarial"][0] == Ramp(0.0, 0.05, most=0.5)
    assert rising["registration"].loss.terms["regions"][0] == Ramp(0.0, 10.0, most=0.5)
    assert rising["segmentation"].loss.terms["confident"][0] == Ramp(0.0, 0.5, most=0.5)
    assert built("deep-rs", diffeomorphic=True).networks["registration"].diffeomorphic
    assert built("deep-rs", flat_borders=True).answer.flat_borders
