"""What registration and segmentation networks are trained on: which pairs, and the terms where the answer is known."""

import pytest
import torch
from torch import nn

from stages.parts.batches.drawing import Draw
from stages.parts.batches.labelled import Labelled
from stages.parts.batches.pairs import Pair, Triplet
from stages.parts.batches.space_style import Always, Mixed, SpaceStyleSampling
from stages.parts.losses import dice_loss, diffusion_loss, inverse_consistency_loss, lncc_loss
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.players.registering import (
    Registered,
    RegisterPair,
    RegisterTriplet,
    inverse_consistency,
    register,
    self_warped_inverse,
    semantic_consistency,
    similarity,
    smoothness,
)
from stages.parts.players.segmenting import (
    GenerateAndSegment,
    Segment,
    Segmented,
    mixing,
    mixing_of_logits,
    overlap,
    overlap_and_cross_entropy,
)
from stages.parts.warps import one_hot, voxel_grid, warp, warp_probabilities

SHAPE = (9, 10, 11)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(*size, seed=0):
    return torch.rand(size, generator=generator(seed))


def translation(*vector, n=1):
    return torch.tensor(vector, dtype=torch.float32).view(1, 3, 1, 1, 1).expand(n, 3, *SHAPE).clone()


def scaling(factor):
    centre = (torch.tensor(SHAPE) - 1) / 2
    return (factor - 1) * (voxel_grid(SHAPE, torch.zeros(1)) - centre.view(1, 3, 1, 1, 1))


class Shift(nn.Module):
    """A body that moves along W by `scale` x (mean of the fixed image - mean of the moving one)."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, pair):
        fixed, moving = pair.mean((2, 3, 4)).unbind(1)
        step = self.scale * (fixed - moving)
        return torch.stack([0 * step, 0 * step, step], 1)[..., None, None, None].expand(-1, -1, *pair.shape[2:])


class Thresholds(nn.Module):
    """A segmentation network with one weight: logits (0, weight x (image - 1/2))."""

    def __init__(self, weight=4.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, image):
        return torch.cat([0 * image, self.weight * (image - 0.5)], 1)


def triplet(seed=0, n=1, shift=1.0):
    """Atlas, U1 and U2: textures with means about 0.5, 1.5 and 3.5 times `shift`."""
    atlas, first, second = (textured(n, 1, *SHAPE, seed=i) + shift * i * (i + 1) / 2 for i in range(3))
    label = torch.randint(2, (n, *SHAPE), generator=generator(9)).short()
    return Triplet(["a", "u1", "u2"], atlas, label, first, second, 2, Draw(n, None, None, generator(seed)))


def who(batch, image):
    (name,) = [name for name in ("atlas", "first", "second") if torch.equal(getattr(batch, name), image)]
    return name


# Pairs


def test_one_way_registers_the_moving_image_to_the_fixed_one():
    network = RegistrationNetwork(Shift())
    pair = Pair([], textured(2, 1, *SHAPE), textured(2, 1, *SHAPE, seed=1) + 1)
    registered = RegisterPair(network)(pair)
    assert torch.equal(registered.moving, pair.moving) and torch.equal(registered.fixed, pair.fixed)
    assert torch.equal(registered.displacement, network(pair.moving, pair.fixed))
    assert registered.directions == 1


def test_swapped_roles_register_the_scan_to_the_atlas():
    network = RegistrationNetwork(Shift())
    pair = Pair([], textured(2, 1, *SHAPE), textured(2, 1, *SHAPE, seed=1) + 1)
    registered = RegisterPair(network, swapped=True)(pair)
    assert torch.equal(registered.moving, pair.fixed) and torch.equal(registered.fixed, pair.moving)
    assert torch.equal(registered.displacement, network(pair.fixed, pair.moving))


def test_both_ways_doubles_the_batch_with_the_roles_swapped():
    network = RegistrationNetwork(Shift())
    moving, fixed = textured(2, 1, *SHAPE), textured(2, 1, *SHAPE, seed=1) + 1
    registered = register(network, moving, fixed, both_ways=True)
    assert torch.equal(registered.moving, torch.cat([moving, fixed]))
    assert torch.equal(registered.fixed, torch.cat([fixed, moving]))
    assert torch.equal(registered.displacement[:2], network(moving, fixed))
    assert torch.equal(registered.displacement[2:], network(fixed, moving))
    assert torch.equal(registered.backward[:2], registered.displacement[2:])
    assert torch.equal(registered.backward[2:], registered.displacement[:2])
    assert registered.directions == 2


def test_triplet_registers_each_of_the_six_ordered_pairs_equally_often():
    batch = triplet()
    step = RegisterTriplet(RegistrationNetwork(Shift()), Thresholds(), both_ways=False, atlas_label=True)
    drawn = [(who(batch, r.moving), who(batch, r.fixed)) for r in (step(batch) for _ in range(300))]
    names = ("atlas", "first", "second")
    assert set(drawn) == {(a, b) for a in names for b in names if a != b}
    assert all(25 < drawn.count(pair) < 80 for pair in set(drawn))


def of_pair(moving, fixed, *, both_ways=True, atlas_label=True, n=1, network=None, segmentation=None):
    """The registered triplet, drawn until it is the given pair."""
    segmentation = segmentation or Thresholds()
    step = RegisterTriplet(network or RegistrationNetwork(Shift(0.5)), segmentation, both_ways, atlas_label)
    for seed in range(200):
        batch = triplet(seed, n)
        registered = step(batch)
        if (who(batch, registered.moving[:n]), who(batch, registered.fixed[:n])) == (moving, fixed):
            return batch, registered
    raise AssertionError("this pair is never drawn")


@pytest.mark.parametrize("atlas_label", [True, False])
@pytest.mark.parametrize(("moving", "fixed"), [("atlas", "first"), ("second", "atlas"), ("second", "first")])
def test_class_maps_are_the_atlas_label_where_asked_and_what_s_says_elsewhere(moving, fixed, atlas_label):
    segmentation = Thresholds()
    batch, registered = of_pair(moving, fixed, atlas_label=atlas_label, n=2, segmentation=segmentation)
    for name, classes in zip((moving, fixed), registered.classes, strict=True):
        if name == "atlas" and atlas_label:
            assert torch.equal(classes, one_hot(batch.label, 2))
        else:
            torch.testing.assert_close(classes, segmentation(getattr(batch, name)).softmax(1))


# Terms of R


def registered(moving, fixed, displacement, directions=2, classes=None):
    return Registered(moving, fixed, displacement, directions, classes)


def test_perfect_registration_costs_nothing():
    image = textured(2, 1, *SHAPE)
    perfect = registered(image, image, torch.zeros(2, 3, *SHAPE), classes=2 * (one_hot(image[:1, 0] > 0.5, 2),))
    assert float(similarity(perfect)) == pytest.approx(0, abs=1e-3)
    for term in (smoothness, inverse_consistency, self_warped_inverse):
        assert float(term(perfect)) == 0
    assert float(semantic_consistency(perfect)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("term", [similarity, smoothness, inverse_consistency, semantic_consistency])
def test_terms_are_sums_over_the_two_directions(term):
    # Two directions with costs of their own: the term is the cost of the one plus that of the other.
    a, b = textured(1, 1, *SHAPE), textured(1, 1, *SHAPE, seed=1)
    there, back = scaling(0.9), 0.5 * scaling(0.8)
    classes = one_hot(a[:, 0] > 0.5, 2), one_hot(b[:, 0] > 0.3, 2)
    both = registered(torch.cat([a, b]), torch.cat([b, a]), torch.cat([there, back]), classes=classes)
    expected = {
        similarity: lncc_loss(warp(a, there), b) + lncc_loss(warp(b, back), a),
        smoothness: diffusion_loss(there) + diffusion_loss(back),
        inverse_consistency: inverse_consistency_loss(there, back) + inverse_consistency_loss(back, there),
        semantic_consistency: dice_loss(warp_probabilities(classes[0], there), classes[1])
        + dice_loss(warp_probabilities(classes[1], back), classes[0]),
    }
    torch.testing.assert_close(term(both), expected[term])


def test_one_direction_costs_one_direction():
    a, b, there = textured(1, 1, *SHAPE), textured(1, 1, *SHAPE, seed=1), scaling(0.9)
    classes = one_hot(a[:, 0] > 0.5, 2), one_hot(b[:, 0] > 0.3, 2)
    one = registered(a, b, there, 1, classes)
    torch.testing.assert_close(similarity(one), lncc_loss(warp(a, there), b))
    torch.testing.assert_close(smoothness(one), diffusion_loss(there))
    torch.testing.assert_close(semantic_consistency(one), dice_loss(warp_probabilities(classes[0], there), classes[1]))


def test_chosen_classes_cost_their_own_dice_and_all_of_them_on_average_the_whole():
    a, b = (one_hot(torch.randint(4, (1, *SHAPE), generator=generator(seed)), 4) for seed in (1, 2))
    fields = torch.cat([scaling(0.9), scaling(0.8)])
    whole = semantic_consistency(registered(None, None, fields, classes=(a, b)))
    each = []
    for chosen in range(4):
        pair = registered(None, None, fields, classes=(a, b))
        pair.chosen = torch.tensor([chosen])
        each.append(semantic_consistency(pair))
    assert len({round(float(cost), 5) for cost in each}) == 4
    torch.testing.assert_close(torch.stack(each).mean(), whole)


def test_triplet_draws_the_chosen_classes_anew_and_without_repetition():
    batch = triplet()
    batch.num_classes = 5
    step = RegisterTriplet(RegistrationNetwork(Shift()), Thresholds(), both_ways=False, atlas_label=True, num_chosen=2)
    drawn = [step(batch).chosen.tolist() for _ in range(200)]
    assert all(len(set(classes)) == 2 for classes in drawn)
    assert all(50 < sum(c in classes for classes in drawn) < 110 for c in range(5))
    step.num_chosen = 5  # no choice
    assert step(batch).chosen is None


def test_shifted_image_is_registered_by_its_shift_and_back_by_the_opposite():
    wide = textured(1, 1, 9, 10, 13)
    moving, fixed = wide[..., :11], wide[..., 2:]  # fixed(x) = moving(x + 2)
    there, back = translation(0, 0, 2), translation(0, 0, -2)
    right = registered(torch.cat([moving, fixed]), torch.cat([fixed, moving]), torch.cat([there, back]))
    wrong = registered(right.moving, right.fixed, -right.displacement)
    assert float(similarity(right)) < 0.6 < 1.2 < float(similarity(wrong))
    assert float(inverse_consistency(right)) == float(smoothness(right)) == 0


def test_inverse_consistency_of_equal_translations_is_known():
    same = registered(None, None, translation(0, 1, 0, n=2))
    assert float(inverse_consistency(same)) == pytest.approx(2 * 4 / 3)  # (1 + 1)^2 in one of 3 components, two ways
    assert float(self_warped_inverse(same)) == pytest.approx(4 / 3)  # as printed: one way


def test_self_warped_inverse_compares_forward_with_the_backward_field_warped_by_itself():
    there, back = scaling(1.25), scaling(0.8)
    pair = registered(None, None, torch.cat([there, back]))
    torch.testing.assert_close(self_warped_inverse(pair), ((there + warp(back, back)) ** 2).mean())


def test_aligned_labels_cost_nothing_and_misaligned_ones_do():
    label = torch.zeros(1, *SHAPE, dtype=torch.long)
    label[:, 3:6, 3:6, 4:7] = 1
    moved = label.roll(2, 3)  # along W: moved(x) = label(x - 2)
    classes = one_hot(label, 2), one_hot(moved, 2)
    fields = torch.cat([translation(0, 0, -2), translation(0, 0, 2)])
    assert float(semantic_consistency(registered(None, None, fields, classes=classes))) < 1e-3
    assert float(semantic_consistency(registered(None, None, 0 * fields, classes=classes))) > 0.3


def test_semantic_consistency_moves_the_registration_and_not_the_segmentation():
    network, segmentation = RegistrationNetwork(Shift(0.3)), Thresholds()
    _, pair = of_pair("atlas", "first", network=network, segmentation=segmentation)
    semantic_consistency(pair).backward()
    assert network.body.scale.grad.abs() > 0
    assert segmentation.weight.grad is None


# Terms of S


def couples(n=2):
    target = one_hot(torch.randint(2, (n, *SHAPE), generator=generator(3)), 2)
    images = [textured(n, 1, *SHAPE, seed=seed) for seed in range(3)]
    return Mixed(["x"] * n, images[0], target, images[1], images[2], torch.tensor([0.3, 0.9]).view(n, 1, 1, 1, 1))


def test_segmentation_sees_image_pair_and_mixture_in_one_pass():
    batch, network = couples(), Thresholds()
    result = Segment(network)(batch)
    between = batch.gamma * batch.first + (1 - batch.gamma) * batch.second
    for name, image in (("logits", batch.image), ("first", batch.first), ("second", batch.second), ("mixed", between)):
        torch.testing.assert_close(getattr(result, name), network(image), msg=lambda m, name=name: f"{name}: {m}")
    assert result.target is batch.target and result.gamma is batch.gamma


def test_segmentation_of_plain_couples_has_no_mixture():
    batch = couples()
    result = Segment(Thresholds())(Labelled(batch.scans, batch.image, batch.target))
    assert result.mixed is None and result.gamma is None
    assert torch.equal(result.logits, Thresholds()(batch.image))


def test_mixing_of_logits_costs_an_affine_network_nothing_and_of_probabilities_something():
    result = Segment(Thresholds().requires_grad_(False))(couples())
    assert float(mixing_of_logits(result)) < 1e-10
    assert float(mixing(result)) > 1e-4


def test_mixing_of_probabilities_has_its_value_by_hand():
    def certain(p):  # logits of probabilities (1 - p, p)
        return torch.tensor([1 - p, p]).log().view(1, 2, 1, 1, 1)

    result = Segmented(certain(0.5), certain(0.5), certain(0.9), certain(0.1), certain(0.6), torch.tensor(0.25))
    assert float(mixing(result)) == pytest.approx((0.6 - (0.25 * 0.9 + 0.75 * 0.1)) ** 2, rel=1e-4)


def test_mixing_moves_all_three_predictions():
    logits = [textured(1, 2, 2, 2, 2, seed=seed).requires_grad_() for seed in range(3)]
    first, second, mixed = logits
    mixing(Segmented(first, first, first, second, mixed, torch.tensor(0.3))).backward()
    assert all(each.grad.abs().sum() > 0 for each in logits)


def test_confident_right_segmentation_costs_nothing():
    target = couples().target
    right = Segmented(target, 50 * (target - 0.5))
    wrong = Segmented(target, -50 * (target - 0.5))
    for term in (overlap, overlap_and_cross_entropy):
        assert float(term(right)) == pytest.approx(0, abs=1e-4)
        assert float(term(wrong)) > 0.9


class Records(nn.Module):
    """A segmentation network that keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.seen = None

    def forward(self, image):
        self.seen = image
        return self.weight * torch.cat([image, -image], 1)


def helper(network, batch, *, space, style, mixes=None, any_pair=False):
    segmentation = Records()
    sampling = SpaceStyleSampling(Always(space), Always(style), mixes, any_pair)
    return GenerateAndSegment(network, sampling, segmentation)(batch), segmentation.seen


def test_helper_is_shown_couples_made_from_the_current_registration():
    network, batch = RegistrationNetwork(Shift(0.5)), triplet(n=2)
    result, seen = helper(network, batch, space=0.5, style=0.25)
    style = warp(batch.first, network(batch.first, batch.atlas)) - batch.atlas  # psi: U1 brought to A, minus A
    way = 0.5 * network(batch.atlas, batch.second)  # alpha phi: A to U2
    torch.testing.assert_close(seen, warp(batch.atlas + 0.25 * style, way))
    torch.testing.assert_close(result.target, warp_probabilities(one_hot(batch.label, 2), way))


def test_helper_mixes_the_transformed_atlas_with_the_second_scan_or_any_two_images():
    network, batch = RegistrationNetwork(Shift(0.5)), triplet(n=2)
    others = textured(4, *batch.atlas.shape[1:], seed=9)
    style = warp(batch.first, network(batch.first, batch.atlas)) - batch.atlas
    there = warp(batch.atlas + style, network(batch.atlas, batch.second))
    for any_pair, first, second in ((False, there, batch.second), (True, *others.chunk(2))):
        batch.others = others if any_pair else None
        _, seen = helper(network, batch, space=0.5, style=0.25, mixes=Always(0.5), any_pair=any_pair)
        _, shown_first, shown_second, between = seen.chunk(4)
        torch.testing.assert_close(shown_first, first)
        torch.testing.assert_close(shown_second, second)
        torch.testing.assert_close(between, (first + second) / 2)


def test_helper_does_not_move_the_registration():
    network = RegistrationNetwork(Shift(0.5))
    result, _ = helper(network, triplet(n=2), space=0.5, style=0.5, mixes=Always(0.5))
    (overlap(result) + mixing(result)).backward()
    assert network.body.scale.grad is None
