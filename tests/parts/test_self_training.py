"""Self-training: screening, batches, noise, losses and averages, on answers that can be checked by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stages.artifacts.store import Draft
from stages.config import TrainSettings
from stages.device import Device
from stages.errors import LrlsError
from stages.methods.phases import Phase, Player, Ramp, WeightedSum
from stages.parts import losses
from stages.parts.augmentation import AffineAugmentation
from stages.parts.batches.drawing import Draw
from stages.parts.batches.partly_labelled import PartlyLabelledPair, any_pair, atlases_and_scans, known_labels
from stages.parts.batches.pseudo_labels import PseudoLabel, screen
from stages.parts.batches.scans import Scans
from stages.parts.networks.dropout import channels_dropped
from stages.parts.networks.obelisk import HybridObelisk
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.standardised import Standardised, standardise
from stages.parts.networks.unet import LightUNet, UNet
from stages.parts.players.joint import Anatomies, RegisterByAnswers, SegmentPair, carried_anatomy, supervised_overlap
from stages.parts.players.self_training import (
    PartlyLabelled,
    RegisterPartlyLabelled,
    Teach,
    accepted_overlap,
    carried_overlap,
    uncertainty,
    weighted_cross_entropy,
)
from stages.parts.warps import one_hot, warp_label
from stages.training.loop import Run, _Average, train
from stages.training.schedules import learning_rate

SHAPE = (6, 7, 8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(*size, seed=0):
    return torch.rand(size, generator=generator(seed))


def labels(seed):
    return torch.randint(3, SHAPE, generator=generator(seed)).short()


def scans(**changes):
    """Two atlases and three scans: one with a pseudo-label, one whose structures were refused, one without any."""
    everything = torch.ones(SHAPE, dtype=torch.bool)
    pseudo = {
        2: PseudoLabel(labels(7), textured(*SHAPE, seed=8) > 0.5, torch.tensor([True, False, True])),
        3: PseudoLabel(labels(9), everything, torch.tensor([True, False, False])),
    }
    data = Scans(
        ["a", "b", "u", "v", "w"], textured(5, 1, *SHAPE).half(), {0: labels(1), 1: labels(2)}, [0, 1], [2, 3, 4], 3,
        (1.0, 1.0, 1.0), pseudo=pseudo,
    )  # fmt: skip
    return replace(data, **changes)


# Screening


def test_screening_keeps_sure_voxels_and_classes_that_are_sure_on_average():
    # Six voxels in a row: class 0 twice (0.9, 0.6), class 1 three times (0.8, 0.8, 0.5), class 2 once (0.6).
    rows = [(0.9, 0.05, 0.05), (0.6, 0.4, 0.0), (0.1, 0.8, 0.1), (0.2, 0.8, 0.0), (0.3, 0.5, 0.2), (0.0, 0.4, 0.6)]
    found = screen(torch.tensor(rows).T.reshape(3, 1, 1, 6), 0.69)
    assert found.label.flatten().tolist() == [0, 0, 1, 1, 1, 2]
    assert found.trusted.flatten().tolist() == [True, False, True, True, False, False]
    assert found.voxels.tolist() == [2, 3, 1]
    assert found.confidence.tolist() == pytest.approx([0.75, 0.7, 0.6])
    assert found.accepted.tolist() == [True, True, False]
    assert screen(torch.tensor(rows).T.reshape(3, 1, 1, 6), 0.72).accepted.tolist() == [True, False, False]


def test_screening_to_the_letter_accepts_a_class_for_its_surest_voxel():
    rows = [(0.9, 0.05, 0.05), (0.6, 0.4, 0.0), (0.1, 0.8, 0.1), (0.2, 0.8, 0.0), (0.3, 0.5, 0.2), (0.0, 0.4, 0.6)]
    found = screen(torch.tensor(rows).T.reshape(3, 1, 1, 6), 0.72, "max")
    assert found.confidence.tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert found.accepted.tolist() == [True, True, False]
    assert found.trusted.flatten().tolist() == [True, False, True, True, False, False]


@pytest.mark.parametrize("by", ["mean", "max"])
def test_class_that_is_nowhere_is_not_accepted(by):
    found = screen(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), 0.0, by)
    assert math.isnan(found.confidence[1]) and found.accepted.tolist() == [True, False]


def test_background_alone_leaves_a_scan_unlabelled():
    data = scans()
    found, counts = known_labels(data, [0, 2, 3, 4])
    assert counts.tolist() == [[True] * 3, [True, False, True], [False] * 3, [False] * 3]
    assert torch.equal(found[0], data.labels[0]) and torch.equal(found[1], data.pseudo[2].label)
    assert not found[2:].any()
    batch = atlases_and_scans(replace(data, unlabeled=[3]), Draw(2, None, None, generator()))
    assert not batch.trusted.any()


# Batches


def test_pairs_are_of_different_scans_and_hold_atlases_as_often_as_is_asked():
    data = scans()
    for share in (0.0, 1.0):
        pairs = [any_pair(data, Draw(1, None, None, generator(seed)), with_atlas=share).scans for seed in range(60)]
        assert all(a != b for a, b in pairs)
        atlases = [bool({"a", "b"} & set(pair)) for pair in pairs]
        assert all(atlases) if share else 0 < sum(atlases) < 60
        assert {pair[0] for pair in pairs} == {pair[1] for pair in pairs} == set("abuvw")


def test_labels_of_a_pair_move_with_its_images():
    data = scans()
    shift = SimpleNamespace(displacement=lambda n, shape, *_: torch.ones(n, 3, *shape))
    pair = any_pair(data, Draw(3, shift, None, generator()))
    for name, label, counts in zip(
        pair.scans, [*pair.moving_label, *pair.fixed_label], [*pair.moving_counts, *pair.fixed_counts], strict=True
    ):
        expected, count = known_labels(data, [data.names.index(name)])
        torch.testing.assert_close(label[:-1, :-1, :-1], expected[0, 1:, 1:, 1:])
        assert torch.equal(counts, count[0])


def test_augmentation_moves_the_images_of_a_pair_alike_or_each_its_own_way():
    data = replace(scans(), images=torch.arange(8.0).expand(5, 1, *SHAPE).half())  # an image says where it was read
    space = AffineAugmentation(0.02)
    for apart in (False, True):
        pair = any_pair(data, Draw(40, space, None, generator()), apart=apart)
        off = [(image - data.images[:1]).abs()[:, :, 1:-1, 1:-1, 1:-1] for image in (pair.moving, pair.fixed)]
        moved = [(each > 1e-3).flatten(1).any(1) for each in off]
        assert torch.equal(*moved) and 10 < int(moved[0].sum()) < 30  # both are moved, or neither is
        alike = (pair.moving == pair.fixed).flatten(1).all(1)
        assert torch.equal(alike, ~moved[0]) if apart else alike.all()


def test_half_of_a_students_batch_are_atlases():
    batch = atlases_and_scans(scans(unlabeled=[2, 3]), Draw(4, None, None, generator()))
    assert len(batch.atlas) == len(batch.scan) == 2
    assert set(batch.scans[:2]) <= {"a", "b"} and set(batch.scans[2:]) <= {"u", "v"}
    assert torch.equal(batch.weights, losses.class_weights(scans().class_voxels))
    assert not batch.moved.any()
    with pytest.raises(LrlsError, match=r"^case w has no pseudo-label; make them again with `lrls generate`\.$"):
        atlases_and_scans(scans(unlabeled=[4]), Draw(4, None, None, generator()))


def test_images_are_standardised_each_on_its_own_and_flat_ones_become_0():
    image = torch.stack([5 + 3 * textured(1, *SHAPE), torch.full((1, *SHAPE), 0.4)])
    found = standardise(image)
    assert float(found[0].mean()) == pytest.approx(0, abs=1e-5)
    assert float(found[0].square().mean()) == pytest.approx(1, rel=1e-4)
    assert found[1].abs().max() < 0.1


def test_affine_augmentation_is_the_identity_plus_noise_half_of_the_time():
    shape = (9, 5, 3)
    moved = AffineAugmentation(0.075).displacement(400, shape, (1.0, 2.0, 3.0), generator())
    still = (moved.flatten(1) == 0).all(1)
    assert 0.4 < float(still.float().mean()) < 0.6
    moved = moved[~still]
    centre = moved[:, :, 4, 2, 1]  # half the grid is 4, 2, 1 voxels: noise times that
    assert centre.std(0).tolist() == pytest.approx([0.3, 0.15, 0.075], rel=0.2)
    along = moved[:, :, 8, 2, 1] - centre  # a column of the matrix
    assert along.std(0).tolist() == pytest.approx([0.3, 0.15, 0.075], rel=0.2)
    straight = moved[:, :, 6, 2, 1] - centre
    torch.testing.assert_close(straight, along / 2, atol=1e-5, rtol=1e-4)
    assert not AffineAugmentation(0.1, probability=0).displacement(3, shape, (1.0,) * 3, generator()).any()


# Losses


def test_class_weights_are_inverse_square_roots_of_mean_1_and_then_the_background_is_half():
    weights = losses.class_weights(torch.tensor([100, 25, 4]))  # 0.1, 0.2, 0.5: mean 4 / 15
    assert weights.tolist() == pytest.approx([0.5, 0.75, 1.875])
    assert losses.class_weights(torch.tensor([100, 0, 25])).tolist() == pytest.approx([0.5, 0, 4 / 3])


def test_weighted_cross_entropy_is_torchs_over_the_voxels_that_count():
    logits, label = torch.randn(2, 3, *SHAPE, generator=generator()), torch.stack([labels(1), labels(2)])
    weights = torch.tensor([0.5, 1.0, 2.0])
    expected = nn.functional.cross_entropy(logits, label.long(), weight=weights)
    torch.testing.assert_close(losses.weighted_cross_entropy_loss(logits, label, weights), expected)
    counts = torch.zeros(2, *SHAPE, dtype=torch.bool)
    counts[1, :2] = True
    expected = nn.functional.cross_entropy(logits[1:, :, :2], label[1:, :2].long(), weight=weights)
    torch.testing.assert_close(losses.weighted_cross_entropy_loss(logits, label, weights, counts), expected)
    logits.requires_grad_()
    nothing = losses.weighted_cross_entropy_loss(logits, label, weights, counts & False)
    nothing.backward()
    assert float(nothing.detach()) == 0 and not logits.grad.any()


def test_symmetric_divergence_is_the_hand_computed_one_and_moves_the_student_only():
    p, q = (0.8, 0.2), (0.5, 0.5)
    teacher, student = (torch.tensor(x).log().view(1, 2, 1, 1, 1).clone().requires_grad_() for x in (p, q))
    kl = [sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in ((p, q), (q, p))]
    loss = losses.symmetric_divergence_loss(teacher, student)
    assert float(loss.detach()) == pytest.approx(sum(kl) / 2)  # mean over two classes
    loss.backward()
    assert teacher.grad is None and student.grad[0, 0] < 0
    assert float(losses.symmetric_divergence_loss(teacher, teacher + 3).detach()) == pytest.approx(0, abs=1e-6)


def test_hardest_cross_entropy_is_the_mean_of_the_largest_quarter():
    logits = torch.zeros(1, 2, 1, 1, 8)
    logits[0, 0, 0, 0] = torch.arange(8.0)
    target = one_hot(torch.ones(1, 1, 1, 8).short(), 2)  # the more class 0 is favoured, the worse
    expected = sum(math.log(1 + math.exp(x)) for x in (6, 7)) / 2
    assert float(losses.hardest_cross_entropy_loss(logits, target)) == pytest.approx(expected)


def test_weights_weigh_the_hardest_voxels_and_do_not_choose_them():
    logits = torch.zeros(1, 2, 1, 1, 8)
    logits[0, 0, 0, 0] = torch.tensor([5.0, 4, -3, 0, 0, 0, 0, 0])
    label = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]).view(1, 1, 1, 8)
    hardest = [math.log(1 + math.exp(x)) for x in (5, 4, 3)]  # the third is of class 0
    weights = torch.tensor([100.0, 1.0])
    found = losses.hardest_cross_entropy_loss(logits, one_hot(label, 2), weights)
    assert float(found) == pytest.approx((hardest[0] + hardest[1]) / 2)  # the weighted ones would be the third, fourth
    found = losses.hardest_cross_entropy_loss(logits, one_hot(label, 2), weights, share=0.375)
    assert float(found) == pytest.approx((hardest[0] + hardest[1] + 100 * hardest[2]) / 102)


def test_dice_of_classes_that_count_leaves_the_others_out_and_a_sample_without_adds_nothing():
    truth = one_hot(torch.stack([labels(1), labels(2)]), 3)
    wrong = truth.clone()
    wrong[:, 1] = 0
    counts = torch.tensor([[True, True, True], [False, False, False]])
    assert float(losses.counted_dice_loss(wrong, truth, counts)) == pytest.approx(1 / 3 / 2, abs=1e-5)
    counts[0, 1] = False
    assert float(losses.counted_dice_loss(wrong, truth, counts)) == pytest.approx(0, abs=1e-5)
    assert float(losses.counted_dice_loss(wrong, truth, counts & False)) == 0


# Registration


class Shift(RegistrationNetwork):
    """Registers any pair by so many voxels along D."""

    def __init__(self, voxels=1.0):
        super().__init__(nn.Identity())
        self.voxels = nn.Parameter(torch.tensor(float(voxels)))
        self.seen = []

    def forward(self, moving, fixed):
        self.seen.append((moving, fixed))
        along = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1)
        return (self.voxels * along).expand(len(moving), 3, *moving.shape[2:])


PLAIN = Draw(1, None, None, generator())
INVERTED = Draw(1, None, lambda image, _: 1 - image, generator())


def pair(**changes):
    label = torch.stack([labels(1), labels(2)])
    counts = torch.tensor([[True, True, True], [True, False, True]])
    images = textured(4, 1, *SHAPE).chunk(2)
    both = PartlyLabelledPair(
        ["a", "b", "u", "v"], *images, label, warp_label(label, Shift()(*images)), counts, counts, 3, PLAIN
    )
    return replace(both, **changes)


def test_registration_learns_from_classes_that_count_in_both_images():
    R = Shift(1.0)
    met = RegisterPartlyLabelled(R)(pair())
    assert float(accepted_overlap(met).detach()) == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(met.moving, standardise(pair().moving))
    assert met.counts.tolist() == [[True, True, True], [True, False, True]]
    missed = RegisterPartlyLabelled(Shift(0.0))(pair())
    assert float(accepted_overlap(missed).detach()) > 0.3
    half = RegisterPartlyLabelled(Shift(0.0))(pair(fixed_counts=torch.tensor([[True] * 3, [False] * 3])))
    whole = RegisterPartlyLabelled(Shift(0.0))(
        replace(
            pair(fixed_counts=torch.ones(1, 3).bool()),
            **{
                name: getattr(pair(), name)[:1]
                for name in ("moving", "fixed", "moving_label", "fixed_label", "moving_counts")
            },
        )
    )
    assert float(accepted_overlap(half).detach()) == pytest.approx(float(accepted_overlap(whole).detach()) / 2)


def test_pairs_without_an_accepted_class_are_registered_by_their_images_alone():
    R = Shift(0.5)
    found = RegisterPartlyLabelled(R)(pair(fixed_counts=torch.zeros(2, 3).bool()))
    assert isinstance(found, PartlyLabelled)
    loss = accepted_overlap(found)
    loss.backward()
    assert float(loss.detach()) == 0 and float(R.voxels.grad) == 0


# The student


@pytest.mark.parametrize(
    "network",
    [
        Standardised(HybridObelisk(1, 3, task="segments")),
        Standardised(UNet(1, 3, (12, 12, 12))),
        Standardised(LightUNet(1, 3, (12, 12, 12))),
    ],
    ids=["obelisk", "brbs", "light"],
)
def test_dropout_is_there_within_its_block_only_and_drawn_from_the_generator(network):
    network.eval()
    image = textured(1, 1, 12, 12, 12)
    with torch.no_grad():
        plain = network(image)
        noisy = []
        for seed, rate in ((0, 0.5), (0, 0.5), (1, 0.5), (0, 0.0)):
            with channels_dropped(network, rate, generator(seed)):
                noisy.append(network(image))
        after = network(image)
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    assert not torch.allclose(noisy[0], plain)
    assert torch.equal(noisy[3], plain) and torch.equal(after, plain)


def test_dropout_takes_whole_channels_and_keeps_the_mean():
    network = nn.Module()
    network.down, network.up = nn.ModuleList([nn.Identity()]), nn.ModuleList([nn.Identity()])
    with channels_dropped(network, 0.25, generator()):
        out = network.down[-1](torch.ones(50, 40, 2, 2, 2))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert ((out == 0).flatten(2).all(2) | (out > 0).flatten(2).all(2)).all()
    assert float(out.mean()) == pytest.approx(1, abs=0.05)


class Watching(nn.Module):
    """Says what it sees, as logits of three classes; has dropout layers and running statistics to be disturbed."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.ModuleList([nn.Identity()]), nn.ModuleList([nn.Identity()])
        self.norm = nn.BatchNorm3d(1)
        self.scale = nn.Parameter(torch.ones(3, 1, 1, 1))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.norm(x) * self.scale


def student_batch(**changes):
    data = scans(unlabeled=[2])
    batch = atlases_and_scans(data, Draw(2, None, None, generator()))
    return replace(batch, **changes)


def teach(R, **changes):
    settings = {"carries": True, "dropout": 0.0} | changes
    return Teach(Watching(), Watching(), R, **settings)


def test_student_sees_atlas_and_scan_and_learns_the_atlas_label_where_r_carries_it():
    batch, step = student_batch(), teach(Shift(1.0))
    result = step(batch)
    (seen,), (by_teacher,) = step.student.seen, step.teacher.seen
    torch.testing.assert_close(seen, torch.cat([batch.atlas, batch.scan]))
    torch.testing.assert_close(by_teacher, batch.scan)
    torch.testing.assert_close(result.carried[:, :, :-1], one_hot(batch.label, 3)[:, :, 1:])
    assert torch.equal(result.carried[:, 0, -1], torch.ones_like(result.carried[:, 0, -1]))  # outside: background
    assert [(m.shape, f.shape) for m, f in step.registration.seen] == [(batch.atlas.shape, batch.scan.shape)]


def test_cross_entropy_leaves_out_where_the_carried_label_has_a_class_that_was_not_accepted():
    batch = student_batch(accepted=torch.tensor([[True, False, True]]), trusted=torch.ones(1, *SHAPE).bool())
    whole = teach(Shift(1.0))(batch)
    assert whole.trusted.all()
    spared = teach(Shift(1.0), spares_missing=True)(batch).trusted
    carried = torch.zeros_like(batch.label)
    carried[:, :-1] = batch.label[:, 1:]  # as R shifts it; outside: background
    assert torch.equal(spared, carried != 1) and not spared.all()
    # R carries the label for this alone, too, and there is nothing to spare where all classes were accepted.
    assert torch.equal(teach(Shift(1.0), carries=False, spares_missing=True)(batch).trusted, spared)
    known = replace(batch, accepted=torch.ones(1, 3).bool())
    assert teach(Shift(1.0), spares_missing=True)(known).trusted.all()


def test_what_the_screening_refuses_does_not_teach_the_student():
    label, sure = labels(1), textured(*SHAPE, seed=5) > 0.3
    pseudo = PseudoLabel(label, sure, torch.tensor([True, False, True]))
    batch = atlases_and_scans(replace(scans(unlabeled=[2]), pseudo={2: pseudo}), Draw(2, None, None, generator()))
    assert torch.equal(batch.trusted[0], sure & (label != 1)) and batch.accepted.tolist() == [[True, False, True]]
    none = replace(pseudo, accepted=torch.tensor([True, False, False]))  # a certain background is no label
    batch = atlases_and_scans(replace(scans(unlabeled=[2]), pseudo={2: none}), Draw(2, None, None, generator()))
    assert not batch.trusted.any()


def test_noise_moves_a_scan_its_pseudo_label_and_what_is_trusted_towards_another_scan():
    batch = student_batch(moved=torch.tensor([True]))
    step = teach(Shift(1.0))
    result = step(batch)
    moved = step.student.seen[0][1:]
    torch.testing.assert_close(moved[:, :, :-1], batch.scan[:, :, 1:])
    torch.testing.assert_close(step.teacher.seen[0], moved)
    assert torch.equal(result.pseudo_label[:, :-1], batch.pseudo_label[:, 1:])
    assert torch.equal(result.trusted[:, :-1], batch.trusted[:, 1:]) and not result.trusted[:, -1].any()
    torch.testing.assert_close(result.carried[:, :, :-2], one_hot(batch.label, 3)[:, :, 2:])  # both ways together
    torch.testing.assert_close(step.student.seen[0][:1], batch.atlas)
    (moving, fixed) = step.registration.seen[0]
    torch.testing.assert_close(moving, torch.cat([batch.atlas, batch.scan]))
    torch.testing.assert_close(fixed, torch.cat([batch.scan, batch.other]))


def test_augmentation_moves_atlas_and_scan_each_its_own_way_and_what_goes_with_them():
    along_h, along_w = torch.zeros(2, 1, 3, *SHAPE)
    along_h[:, 1], along_w[:, 2] = 1, 1
    batch, step = student_batch(around=(along_h, along_w)), teach(Shift(1.0))
    result = step(batch)
    atlas, scan = step.student.seen[0]
    torch.testing.assert_close(atlas[:, :, :-1], batch.atlas[0, :, :, 1:])
    torch.testing.assert_close(scan[..., :-1], batch.scan[0, ..., 1:])
    assert torch.equal(result.label[:, :, :-1], batch.label[:, :, 1:])
    assert torch.equal(result.pseudo_label[..., :-1], batch.pseudo_label[..., 1:])
    torch.testing.assert_close(result.carried[:, :, :-1, :, :-1], one_hot(batch.label, 3)[:, :, 1:, :, 1:])


def test_teacher_and_registration_stand_still_in_evaluation_mode_and_the_student_learns():
    step = teach(Shift(1.0), dropout=0.5)
    before = {name: value.clone() for name, value in step.teacher.state_dict().items()}
    result = step(student_batch())
    total = weighted_cross_entropy(result) + uncertainty(result) + carried_overlap(result)
    total.backward()
    assert step.student.scale.grad.abs().sum() > 0
    assert step.teacher.scale.grad is None and step.registration.voxels.grad is None
    assert all(torch.equal(before[name], value) for name, value in step.teacher.state_dict().items())
    assert not step.registration.training


def test_running_statistics_of_the_student_are_those_of_a_pass_without_dropout():
    # BatchNorm right behind dropout of a half: its variance would come out far larger.
    def network():
        torch.manual_seed(0)
        body = nn.Module()
        body.down = nn.ModuleList([nn.Conv3d(1, 8, 1)])
        body.up = nn.ModuleList([nn.Identity()])
        body.norm, body.head = nn.BatchNorm3d(8), nn.Conv3d(8, 3, 1)
        body.forward = lambda x: body.head(body.norm(body.up[0](body.down[0](x))))
        return body

    found = {}
    for dropout in (0.0, 0.5):
        step = teach(Shift(0.0), dropout=dropout)
        step.student = network()
        for _ in range(3):
            result = step(student_batch())
        found[dropout] = step.student.norm.running_mean, step.student.norm.running_var, result.of_scan
        assert step.student.norm.momentum == 0.1
    torch.testing.assert_close(found[0.5][0], found[0.0][0])
    torch.testing.assert_close(found[0.5][1], found[0.0][1])
    assert not torch.allclose(found[0.5][2], found[0.0][2])  # the student itself does learn behind dropout
    assert int(step.student.norm.num_batches_tracked) == 6


def test_student_and_teacher_see_the_same_recoloured_images_and_registration_does_not():
    batch, step = student_batch(draw=INVERTED), teach(Shift(1.0))
    step(batch)
    torch.testing.assert_close(step.student.seen[0], 1 - torch.cat([batch.atlas, batch.scan]))
    torch.testing.assert_close(step.teacher.seen[0], 1 - batch.scan)
    assert all(torch.equal(a, b) for a, b in zip(step.registration.seen[0], (batch.atlas, batch.scan), strict=True))


def test_labelled_and_pseudo_labelled_voxels_are_averaged_separately():
    result = teach(Shift(0.0))(student_batch())
    parts = [
        losses.weighted_cross_entropy_loss(result.of_atlas, result.label, result.weights),
        losses.weighted_cross_entropy_loss(result.of_scan, result.pseudo_label, result.weights, result.trusted),
    ]
    torch.testing.assert_close(weighted_cross_entropy(result), sum(parts))
    refused = replace(result, trusted=result.trusted & False)
    torch.testing.assert_close(weighted_cross_entropy(refused), parts[0])


def test_what_nobody_asks_for_is_not_computed():
    step = Teach(Watching(), None, Shift(), carries=False, dropout=0.0)
    result = step(student_batch())
    assert result.teacher is None and result.carried is None and step.registration.seen == []


# DeepAtlas and RSegNet


class Says(nn.Module):
    """The same logits for every image."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.5, 1.0, 0.0]))

    def forward(self, x):
        return self.logits.view(1, 3, 1, 1, 1).expand(len(x), 3, *x.shape[2:])


def half_known():
    counts = torch.tensor([[True] * 3, [False] * 3])
    return pair(moving_counts=counts, fixed_counts=counts & False)


def test_answers_stand_in_for_labels_that_are_not_there():
    S, batch = Says(), half_known()
    registered = RegisterByAnswers(Shift(), S)(batch)
    moving, fixed = registered.classes
    answer = S.logits.softmax(0).view(3, 1, 1, 1).expand(3, *SHAPE)
    torch.testing.assert_close(moving[0], one_hot(batch.moving_label, 3)[0])
    for each in (moving[1], *fixed):
        torch.testing.assert_close(each, answer)
    assert not moving.requires_grad and not fixed.requires_grad
    assert RegisterByAnswers(Says2(), S, both_ways=True)(batch).directions == 2


class Says2(Shift):
    def both_ways(self, moving, fixed):
        return torch.cat([self(moving, fixed), -self(fixed, moving)])


def test_segmentation_learns_from_labels_and_from_labels_that_are_carried_over():
    S, batch = Says(), half_known()
    result = SegmentPair(S, Shift())(batch)
    expected = losses.dice_loss(result.logits[0][:1].softmax(1), one_hot(batch.moving_label, 3)[:1])
    torch.testing.assert_close(supervised_overlap(result), expected)
    carried = torch.zeros(1, 3, *SHAPE)
    carried[:, 0] = 1
    carried[:, :, :-1] = one_hot(batch.moving_label, 3)[:1, :, 1:]
    expected = losses.dice_loss(carried, result.logits[1][:1].softmax(1))
    torch.testing.assert_close(carried_anatomy(result), expected)
    carried_anatomy(result).backward()
    assert S.logits.grad.abs().sum() > 0


def test_segmentation_that_learns_sees_recoloured_pairs_and_registration_does_not():
    S, R, batch = Watching(), Shift(), pair(draw=INVERTED)
    SegmentPair(S, R)(batch)
    torch.testing.assert_close(S.seen[0], 1 - torch.cat([batch.moving, batch.fixed]))
    RegisterByAnswers(R, S)(batch)  # here S answers, for what R sees
    torch.testing.assert_close(S.seen[1], torch.cat([batch.moving, batch.fixed]))
    assert all(torch.equal(moving, batch.moving) and torch.equal(fixed, batch.fixed) for moving, fixed in R.seen)


def test_two_images_without_labels_and_two_with_teach_nothing_by_being_carried():
    S = Says()
    for known in (True, False):
        counts = torch.full((2, 3), known)
        result = SegmentPair(S, Shift())(pair(moving_counts=counts, fixed_counts=counts))
        loss = carried_anatomy(result)
        S.zero_grad()
        loss.backward()
        assert float(loss.detach()) == 0 and not S.logits.grad.any()
        if not known:
            assert float(supervised_overlap(result).detach()) == 0


def test_both_directions_are_averaged():
    result = SegmentPair(Says(), Says2(), both_ways=True)(half_known())
    assert isinstance(result, Anatomies) and len(result.displacements) == 2
    there, back = (
        replace(
            result,
            displacements=(result.displacements[k],),
            **{name: getattr(result, name)[:: 1 - 2 * k] for name in ("logits", "labels", "known")},
        )
        for k in (0, 1)
    )
    torch.testing.assert_close(carried_anatomy(result), (carried_anatomy(there) + carried_anatomy(back)) / 2)


# The training loop


def test_average_follows_parameters_and_copies_buffers():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    network[0].weight.data.fill_(0)
    average = _Average(network, 0.9)
    for step in range(1, 3):
        network[0].weight.data.fill_(1)
        network[1].running_mean.fill_(step)
        network[1].num_batches_tracked.fill_(step)
        average.update()
    # Decays 1/10 and 2/11, as early weights are forgotten faster: 1 - 1/10 * 2/11.
    assert float(average.state["0.weight"]) == pytest.approx(1 - 0.1 * 2 / 11)
    assert float(average.state["1.running_mean"]) == 2 and int(average.state["1.num_batches_tracked"]) == 2
    average.install()
    assert float(network[1].running_mean) == 2
    for _ in range(2000):
        average.update()
    network[0].weight.data.fill_(2)
    average.update()
    assert float(average.state["0.weight"]) == pytest.approx(0.9 * 1 + 0.1 * 2, abs=0.02)


def test_average_without_warm_up_keeps_its_decay_from_the_first_step_on():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0)
    constant, forgetful = _Average(network, 0.99, warms_up=False), _Average(network, 0.99)
    network.weight.data.fill_(1)
    for _ in range(150):
        constant.update()
        forgetful.update()
    assert 1 - float(constant.state["weight"]) == pytest.approx(0.99**150)  # 0.22 of the old teacher
    assert 1 - float(forgetful.state["weight"]) < 1e-6


def test_weight_that_falls_is_used_step_by_step():
    ramp = Ramp(10.0, 1.0, 300)
    assert [ramp(step) for step in (0, 150, 300, 1000)] == pytest.approx([10, 5.5, 1, 1])
    loss = WeightedSum(smoothness=(ramp, lambda x: x))
    assert [float(loss(torch.tensor(2.0), step)[0]) for step in (0, 400)] == [20, 2]
    assert Ramp(3.0, 1.0, 0)(5) == 1
    short = Ramp(10.0, 1.0, 300, most=0.2)  # of 100 steps it takes 20, of 3000 its 300
    assert [short(step, of=100) for step in (0, 10, 20)] == pytest.approx([10, 5.5, 1])
    assert short(150, of=3000) == pytest.approx(5.5)
    assert float(WeightedSum(smoothness=(short, lambda x: x))(torch.tensor(2.0), 20, 100)[0]) == 2


def test_weight_that_jumps_is_constant_before_and_after():
    jump = Ramp(5.0, 1.0, 100, jumps=True)
    assert [jump(step) for step in (0, 99, 100, 500)] == [5, 5, 1, 1]
    assert [Ramp(5.0, 1.0, 100, most=0.2, jumps=True)(step, of=50) for step in (9, 10)] == [5, 1]


def settings(**changes):
    return TrainSettings(
        steps=7, batch_size=1, learning_rate=0.1, schedule="constant", optimizer="adam", ema=0.0, augmentation="none",
        checkpoint_steps=3,
    ).model_copy(update=changes)  # fmt: skip


def test_player_may_move_seldom_have_an_average_of_its_own_and_decay(tmp_path):
    networks = {name: nn.Linear(1, 1, bias=False) for name in ("often", "seldom", "decaying")}
    moves = {name: 0 for name in networks}

    def forward(name):
        def count(_):
            moves[name] += 1
            return networks[name].weight.sum()

        return count

    options = {"often": {"ema": 0.5}, "seldom": {"every": 3}, "decaying": {"weight_decay": 0.5}}
    players = [
        Player(
            name, trains=networks[name], forward=forward(name), loss=WeightedSum(x=(1.0, lambda x: x)), **options[name]
        )
        for name in networks
    ]
    start = {name: float(network.weight.detach()) for name, network in networks.items()}
    phase = Phase("p", lambda *_: SimpleNamespace(scans=["a"]), players)
    device = Device(torch.device("cpu"), torch.float32)
    train(Run([phase], networks, SimpleNamespace(), settings(), device, 0, Draft(tmp_path)))
    assert moves == {"often": 7, "seldom": 3, "decaying": 7}  # steps 0, 3, 6
    assert start["seldom"] - float(networks["seldom"].weight.detach()) == pytest.approx(
        0.3, abs=1e-4
    )  # Adam: 0.1 a step
    assert 0 < start["often"] - float(networks["often"].weight.detach()) < 0.65  # the average lags behind 0.7


def test_exponential_schedule_falls_by_a_hundredth_with_each_of_300_epochs():
    run = settings(schedule="exponential", epochs=300, steps=600)
    rates = [learning_rate(1.0, step, 600, run) for step in (0, 1, 2, 599)]
    assert rates == pytest.approx([1, 1, 0.99, 0.99**299])
    few = [learning_rate(2.0, step, 3, settings(schedule="exponential", epochs=300)) for step in range(3)]
    assert few == pytest.approx([2, 2 * 0.99**100, 2 * 0.99**200])  # epochs do not depend on the number of steps


def test_exponential_schedule_goes_on_from_an_earlier_training():
    run = settings(schedule="exponential", epochs=300)
    # 30 steps that are a third of a run: 100 epochs, after 300 and after 400.
    assert [learning_rate(1.0, step, 30, run, (1, 4 / 3)) for step in (0, 3, 29)] == pytest.approx(
        [0.99**300, 0.99**310, 0.99**396]
    )
    assert learning_rate(1.0, 0, 30, run, (4 / 3, 5 / 3)) == pytest.approx(0.99**400)
    smooth = settings(schedule="exponential")
    assert learning_rate(1.0, 15, 30, smooth, (1, 2)) == pytest.approx(0.05**1.5)
    for schedule in ("constant", "one-cycle"):  # have no place in a longer one
        other = settings(schedule=schedule)
        assert learning_rate(1.0, 7, 30, other, (1, 2)) == learning_rate(1.0, 7, 30, other)


def test_learning_rate_of_a_phase_goes_on_where_earlier_trainings_ended(tmp_path):
    def moved(schedule, folder):
        network = nn.Linear(1, 1, bias=False)
        network.weight.data.fill_(0)
        player = Player(
            "p", trains=network, forward=lambda _: network.weight.sum(), loss=WeightedSum(x=(1.0, lambda x: x))
        )
        phase = Phase("p", lambda *_: SimpleNamespace(scans=["a"]), [player], share=0.5, schedule=schedule)
        run = settings(steps=4, schedule="exponential")
        device = Device(torch.device("cpu"), torch.float32)
        folder.mkdir()
        train(Run([phase], {"n": network}, SimpleNamespace(), run, device, 0, Draft(folder)))
        return -float(network.weight.detach())

    anew, on = moved((0.0, 1.0), tmp_path / "anew"), moved((1.0, 1.5), tmp_path / "on")  # Adam moves by the rate
    assert anew == pytest.approx(0.1 * (1 + 0.05**0.5), rel=1e-4)
    assert on == pytest.approx(0.1 * (0.05 + 0.05**1.25), rel=1e-4)


def test_exponential_schedule_without_epochs_falls_smoothly_to_a_twentieth():
    run = settings(schedule="exponential")
    assert run.epochs is None
    rates = [learning_rate(2.0, step, 100, run) for step in (0, 1, 50, 100)]
    assert rates == pytest.approx([2, 2 * 0.05**0.01, 2 * 0.05**0.5, 0.1])
