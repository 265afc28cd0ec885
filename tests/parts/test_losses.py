"""Losses against loops, MONAI and numbers worked out by hand; their gradients against finite differences."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import (
    BendingEnergyLoss,
    DiceCELoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
)

from stages.parts.losses import (
    LnccTo,
    anatomy_difference_loss,
    bending_energy_loss,
    contrastive_loss,
    cosine_hint_loss,
    cross_entropy_loss,
    dice_cross_entropy_loss,
    dice_loss,
    diffusion_loss,
    inverse_consistency_loss,
    l2_hint_loss,
    least_squares_gan_loss,
    lncc,
    lncc_loss,
    lncc_of_means_loss,
    mix_loss,
    mutual_information,
    nt_xent_loss,
    pooled_dice_loss,
    rarity_weighted_cross_entropy_loss,
    robust_inverse_loss,
    robust_penalty,
    self_warped_inverse_loss,
)
from stages.parts.warps import one_hot, voxel_grid, warp

SHAPE = (9, 10, 11)


def textured(*size, seed=0):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def pair(shape=SHAPE):
    """Two images in [0, 1] that have something in common."""
    first = textured(1, 1, *shape)
    return first, (first + textured(1, 1, *shape, seed=1)) / 2


def from_centre(shape=SHAPE):
    centre = (torch.tensor(shape) - 1) / 2
    return voxel_grid(shape, torch.zeros(1)) - centre.view(1, 3, 1, 1, 1)


def scaling(factor, shape=SHAPE):
    """Displacement of x -> factor x about the centre."""
    return (factor - 1) * from_centre(shape)


def translation(*vector):
    return torch.tensor(vector, dtype=torch.float32).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE).clone()


def mean_square_from_centre(shape=SHAPE):
    return float(from_centre(shape).square().mean())


# LNCC


def lncc_by_loops(first, second, window, eps=1e-5):
    """The definition, voxel by voxel: sums over the window, zeros outside, divisor window^3."""
    half, count = window // 2, window**3
    first, second = (np.pad(image.double().numpy()[0, 0], half) for image in (first, second))
    result = np.zeros([n - 2 * half for n in first.shape])
    for d, h, w in itertools.product(*map(range, result.shape)):
        here = np.s_[d : d + window, h : h + window, w : w + window]
        a, b = first[here], second[here]
        cross = (a * b).sum() - a.sum() * b.sum() / count
        var_a, var_b = ((x * x).sum() - x.sum() ** 2 / count for x in (a, b))
        result[d, h, w] = cross**2 / (var_a * var_b + eps)
    return result


@pytest.mark.parametrize(("window", "shape"), [(3, (9, 10, 11)), (9, (9, 10, 11)), (9, (5, 6, 7))])
def test_lncc_is_the_definition_worked_out_in_a_loop(window, shape):
    first, second = pair(shape)
    expected = lncc_by_loops(first, second, window)
    np.testing.assert_allclose(lncc(first, second, window=window)[0, 0].numpy(), expected, atol=1e-4)


def test_lncc_to_a_fixed_image_is_lncc_loss_with_its_gradient():
    moving = torch.rand(1, 2, 9, 10, 11, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    fixed = torch.rand(1, 2, 9, 10, 11, generator=torch.Generator().manual_seed(1))
    plain = sum(lncc_loss(moving[:, k : k + 1], fixed[:, k : k + 1], window=5) for k in range(2)) / 2
    quick = LnccTo(fixed, (5, 5, 5))(moving)
    assert float(quick) == pytest.approx(float(plain), abs=1e-6)
    (expected,), (found,) = torch.autograd.grad(plain, moving), torch.autograd.grad(2 * quick, moving)
    torch.testing.assert_close(found, 2 * expected, atol=1e-7, rtol=1e-3)


def test_lncc_to_a_fixed_image_on_every_second_window():
    moving, fixed = (torch.rand(1, 1, 9, 10, 11, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    at = lncc(moving, fixed, window=5)[..., ::2, :]
    assert float(LnccTo(fixed, (5, 5, 5), (1, 2, 1))(moving)) == pytest.approx(1 - float(at.mean()), abs=1e-6)
    moving.requires_grad_(True)
    (found,) = torch.autograd.grad(LnccTo(fixed, (3, 5, 1), (1, 2, 1))(moving), moving)
    step = torch.zeros_like(moving)
    step[0, 0, 4, 5, 6] = 1e-2
    with torch.no_grad():
        similarity = LnccTo(fixed, (3, 5, 1), (1, 2, 1))
        slope = (similarity(moving + step) - similarity(moving - step)) / 2e-2
    assert float(found[0, 0, 4, 5, 6]) == pytest.approx(float(slope), rel=0.02, abs=1e-5)


def test_lncc_loss_is_one_plus_monais_negative_value_on_textured_images():
    first, second = pair((14, 15, 16))
    monai = LocalNormalizedCrossCorrelationLoss(kernel_size=9)(first, second)  # minus the mean
    assert float(lncc_loss(first, second)) == pytest.approx(1 + float(monai), abs=1e-4)


def test_lncc_ignores_a_gain_and_away_from_the_border_an_offset():
    image = textured(1, 1, 14, 14, 14)
    other = pair((14, 14, 14))[1]
    inside = (..., slice(4, -4), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(lncc(0.5 * image, other), lncc(image, other), atol=1e-4, rtol=0)
    changed = lncc(0.5 * image + 0.3, other)
    torch.testing.assert_close(changed[inside], lncc(image, other)[inside], atol=1e-4, rtol=0)
    assert float(lncc_loss(0.5 * image, image)) == pytest.approx(0, abs=1e-4)


def test_lncc_counts_a_negative_relation_as_a_relation():
    image = textured(1, 1, 14, 14, 14)
    inside = lncc(1 - image, image)[..., 4:-4, 4:-4, 4:-4]
    torch.testing.assert_close(inside, torch.ones_like(inside), atol=1e-4, rtol=0)


def test_lncc_is_symmetric_and_falls_with_misalignment():
    first, second = pair()
    torch.testing.assert_close(lncc(first, second), lncc(second, first))
    x = textured(1, 1, 12, 12, 12)
    assert lncc_loss(x, x) < lncc_loss(x, (x + textured(1, 1, 12, 12, 12, seed=1)) / 2) < lncc_loss(x, x.roll(1, 2))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_flat_image_has_no_relation_and_a_finite_gradient(value):
    flat = torch.full((1, 1, 12, 12, 12), value, requires_grad=True)
    values = lncc(flat, textured(1, 1, 12, 12, 12))
    assert values[..., 4:-4, 4:-4, 4:-4].detach().abs().max() < 0.01
    (gradient,) = torch.autograd.grad(values.mean(), flat)
    assert gradient.isfinite().all()


def test_two_black_images_have_lncc_zero():
    black = torch.zeros(1, 1, *SHAPE)
    assert float(lncc_loss(black, black)) == 1


def test_lncc_computes_in_float32_under_bfloat16_autocast():
    first, second = (image.bfloat16() for image in pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = lncc_loss(first, second)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, lncc_loss(first.float(), second.float()))


def test_lncc_of_means_is_the_published_codes():
    # A contrast that sums over the window see and means, beside the same 1e-5, hardly do.
    first, second = (0.1 * image for image in pair((14, 15, 16)))
    moments = (F.avg_pool3d(x, 9, 1, 4) for x in (first, second, first**2, second**2, first * second))
    mean_i, mean_j, mean_ii, mean_jj, mean_ij = moments  # zeros outside count
    cross, var_i, var_j = mean_ij - mean_i * mean_j, mean_ii - mean_i**2, mean_jj - mean_j**2
    expected = 1 - (cross**2 / (var_i * var_j + 1e-5)).mean()
    assert float(lncc_of_means_loss(first, second)) == pytest.approx(float(expected), abs=1e-4)
    assert float(lncc_loss(first, second)) + 0.2 < float(expected) < 1


# Mutual information


def test_independent_intensities_have_no_mutual_information():
    # Along D and along W: every pair of values comes equally often.
    first = torch.linspace(0, 1, 9).view(1, 1, 9, 1, 1).expand(1, 1, *SHAPE)
    second = torch.linspace(0, 1, 11).expand(1, 1, *SHAPE)
    assert float(mutual_information(first, second)) == pytest.approx(0, abs=1e-5)
    assert float(mutual_information(first, torch.full((1, 1, *SHAPE), 0.4))) == pytest.approx(0, abs=1e-5)


def test_mutual_information_of_a_relation_is_the_entropy_whatever_the_relation():
    # Four values, equally often, far enough apart that no bin is shared.
    image = torch.tensor([0.0, 0.35, 0.7, 1.0]).repeat(30).view(1, 1, 4, 5, 6)
    assert float(mutual_information(image, image)) == pytest.approx(np.log(4), rel=1e-3)
    assert float(mutual_information(image, 1 - image)) == pytest.approx(np.log(4), rel=1e-3)
    halves = (image > 0.5).float()
    assert float(mutual_information(image, halves)) == pytest.approx(np.log(2), rel=1e-3)


def test_mutual_information_is_monais_with_windows_as_wide_as_a_bin():
    first, second = pair((14, 15, 16))
    monai = GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=32, sigma_ratio=1.0)(first, second)
    assert float(mutual_information(first, second)) == pytest.approx(-float(monai), rel=1e-2)
    both = mutual_information(torch.cat([first, first]), torch.cat([second, first]))
    alone = [mutual_information(first, other) for other in (second, first)]
    assert float(both) == pytest.approx(float(sum(alone)) / 2, rel=1e-5)


def test_flat_image_has_a_finite_gradient_of_mutual_information():
    flat = torch.full((1, 1, *SHAPE), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(mutual_information(flat, textured(1, 1, *SHAPE)), flat)
    assert gradient.isfinite().all()


# Fields


def test_diffusion_of_a_ramp_is_its_squared_slope_shared_by_components_and_axes():
    field = torch.zeros(1, 3, *SHAPE)
    field[:, 0] = 0.5 * torch.arange(11.0)  # component D grows by 0.5 a voxel along W
    assert float(diffusion_loss(field)) == pytest.approx(0.25 / 9)


def test_diffusion_of_a_translation_is_zero():
    assert float(diffusion_loss(translation(3, -1, 0.5))) == 0


def test_diffusion_averages_every_axis_over_its_own_differences():
    # One voxel of 1 in a corner of 2 x 2 x 3: one difference of 1 among 6 (D), 6 (H) and 8 (W), three components.
    field = torch.zeros(1, 3, 2, 2, 3)
    field[0, 1, 0, 0, 0] = 1
    assert float(diffusion_loss(field)) == pytest.approx((1 / 6 + 1 / 6 + 1 / 8) / 3 / 3)


def test_bending_energy_is_monais():
    field = textured(2, 3, *SHAPE)
    torch.testing.assert_close(bending_energy_loss(field), BendingEnergyLoss()(field))


def test_bending_energy_counts_second_derivatives_and_mixed_ones_twice():
    place = voxel_grid(SHAPE, torch.zeros(1))
    square, mixed = torch.zeros(2, 1, 3, *SHAPE)
    square[:, 0] = place[:, 2] ** 2 / 2  # second derivative 1 along W, in one of three components
    mixed[:, 1] = place[:, 0] * place[:, 1]
    assert float(bending_energy_loss(square)) == pytest.approx(1 / 3, rel=1e-4)
    assert float(bending_energy_loss(mixed)) == pytest.approx(2 / 3, rel=1e-4)
    assert float(bending_energy_loss(scaling(1.3) + translation(1, 2, 3))) == pytest.approx(0, abs=1e-9)


def test_opposite_translations_are_inverse():
    assert float(inverse_consistency_loss(translation(1, -2, 0.5), translation(-1, 2, -0.5))) == 0


def test_equal_translations_miss_by_twice_their_length():
    forward = translation(1, 0, 0)
    assert float(inverse_consistency_loss(forward, forward)) == pytest.approx(4 / 3)  # mean over three components


def test_true_inverse_of_a_scaling_has_no_residual_and_its_negative_has():
    s = 0.8  # contracts: nothing is read outside the grid
    forward = scaling(s)
    assert float(inverse_consistency_loss(forward, scaling(1 / s))) == pytest.approx(0, abs=1e-8)
    expected = (1 - s) ** 4 * mean_square_from_centre()  # u(x) - u(x + u(x)) = -(1 - s)^2 x
    assert float(inverse_consistency_loss(forward, -forward)) == pytest.approx(expected, rel=1e-4)


def test_self_warped_inverse_prefers_the_negative_field_to_the_true_inverse():
    s = 1.25
    forward, inverse = scaling(s), scaling(1 / s)  # 0.25 x and -0.2 x
    # T(-0.2 x, -0.2 x) = -0.2 (0.8 x) = -0.16 x; T(-0.25 x, -0.25 x) = -0.25 (0.75 x) = -0.1875 x
    size = mean_square_from_centre()
    assert float(self_warped_inverse_loss(forward, inverse)) == pytest.approx(0.09**2 * size, rel=1e-4)
    assert float(self_warped_inverse_loss(forward, -forward)) == pytest.approx(0.0625**2 * size, rel=1e-4)
    assert float(self_warped_inverse_loss(translation(1, 2, 0), translation(-1, -2, 0))) == 0


# Labels


def random_one_hot(classes=3, n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return one_hot(torch.randint(classes, (n, *SHAPE), generator=generator), classes)


def row(*classes):
    """Class maps of a few voxels, one list per class: (1, C, 1, 1, voxels)."""
    return torch.tensor(classes, dtype=torch.float32)[None, :, None, None]


def test_dice_of_equal_labels_is_zero_and_an_absent_class_counts_as_met():
    target = random_one_hot()
    assert float(dice_loss(target, target)) == 0
    with_absent = torch.cat([target, torch.zeros(2, 1, *SHAPE)], 1)
    assert float(dice_loss(with_absent, with_absent)) == 0


def test_dice_of_disjoint_labels_leaves_only_the_smoothing():
    # Both classes: overlap 0, sizes 3 + 1 and 3 + 1 (one side has 3 voxels and the other 1, nowhere the same).
    prediction, target = row([1, 1, 1, 0], [0, 0, 0, 1]), row([0, 0, 0, 1], [1, 1, 1, 0])
    assert float(dice_loss(prediction, target)) == pytest.approx(1 - 1 / 5)


def test_dice_worked_out_by_hand_has_squared_denominators_and_counts_the_background():
    prediction, target = row([0.5, 0.2], [0.5, 0.8]), row([1, 0], [0, 1])
    background = (2 * 0.5 + 1) / (0.25 + 0.04 + 1 + 1)
    structure = (2 * 0.8 + 1) / (0.25 + 0.64 + 1 + 1)
    assert float(dice_loss(prediction, target)) == pytest.approx(1 - (background + structure) / 2)


def test_dice_is_a_mean_over_the_batch():
    a, b, target = random_one_hot(seed=1), random_one_hot(seed=2), random_one_hot(seed=3)
    separate = (dice_loss(a[:1], target[:1]) + dice_loss(b[:1], target[:1])) / 2
    torch.testing.assert_close(dice_loss(torch.cat([a[:1], b[:1]]), target[:1].repeat(2, 1, 1, 1, 1)), separate)


def test_dice_and_cross_entropy_worked_out_by_hand():
    # One voxel, three classes with probabilities 1/2, 1/4, 1/4; truth: class 1.
    logits = torch.tensor([0.5, 0.25, 0.25]).log().view(1, 3, 1, 1, 1)
    target = row([0], [1], [0])
    dice = (2 * 0.25 + 1) / (0.25 + 1 + 1), 1 / (0.25 + 1)
    expected = np.log(4) + 1 - sum(dice) / 2
    assert float(dice_cross_entropy_loss(logits, target)) == pytest.approx(expected, rel=1e-5)


def test_dice_and_cross_entropy_is_monais_with_smoothing_one_and_without_background():
    logits, target = 4 * textured(2, 3, *SHAPE) - 2, random_one_hot()
    monai = DiceCELoss(include_background=False, softmax=True, batch=True, smooth_nr=1, smooth_dr=1)
    torch.testing.assert_close(dice_cross_entropy_loss(logits, target), monai(logits, target))


def test_cross_entropy_is_torchs():
    logits, target = 4 * textured(2, 3, *SHAPE) - 2, random_one_hot()
    torch.testing.assert_close(cross_entropy_loss(logits, target), F.cross_entropy(logits, target.argmax(1)))


def test_confident_right_logits_cost_nothing_and_huge_ones_stay_finite():
    target = random_one_hot()
    assert float(dice_cross_entropy_loss(1e4 * (target - 0.5), target)) == pytest.approx(0, abs=1e-5)
    assert dice_cross_entropy_loss(-1e4 * (target - 0.5), target).isfinite()


@pytest.mark.parametrize("loss", [dice_loss, dice_cross_entropy_loss])
def test_label_losses_compute_in_float32_from_bfloat16(loss):
    prediction = textured(2, 3, *SHAPE).softmax(1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(prediction, random_one_hot())
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(prediction.float(), random_one_hot()))


def test_mixing_costs_a_linear_network_nothing():
    a, b = textured(2, 1, *SHAPE), textured(2, 1, *SHAPE, seed=1)
    gamma = torch.tensor([0.3, 0.8]).view(2, 1, 1, 1, 1)
    weight, bias = textured(3, 1, 3, 3, 3, seed=2), textured(3, seed=3)

    def network(x):
        return F.conv3d(x, weight, bias)

    assert float(mix_loss(network(gamma * a + (1 - gamma) * b), network(a), network(b), gamma)) < 1e-10


def test_mixing_costs_a_squaring_network_what_the_formula_says():
    a, b, gamma = torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([0.25])
    # (0.25)^2 against 0.25 * 1: difference 0.1875
    assert float(mix_loss((gamma * a + (1 - gamma) * b) ** 2, a**2, b**2, gamma)) == pytest.approx(0.1875**2)


def test_mixing_moves_all_three_outputs():
    outputs = [textured(1, 2, 2, 2, 2, seed=seed).requires_grad_() for seed in range(3)]
    mix_loss(*outputs, torch.tensor(0.3)).backward()
    assert all(output.grad.abs().sum() > 0 for output in outputs)


# Embeddings and features

SCANS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
ATLASES = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 1.0]])  # lengths do not count


def test_contrastive_loss_worked_out_by_hand():
    # Cosines with the own atlas 1, 0.8, 0; with the other scans (0, -1), (0, 0), (-1, 0); tau = 1/2.
    others = 2 * np.log(1 + np.exp(-2)) + np.log(2)
    assert float(contrastive_loss(SCANS, ATLASES)) == pytest.approx((others - 2 * 1.8) / 3)
    # Of two, the positive is not in the sum: log(exp(0)) - 2 and log(exp(0)) - 1.6.
    assert float(contrastive_loss(SCANS[:2], ATLASES[:2])) == pytest.approx(-1.8)
    assert float(contrastive_loss(SCANS[:2], ATLASES[:2], temperature=1.0)) == pytest.approx(-0.9)


def test_with_one_atlas_contrast_still_draws_scans_to_it_and_apart():
    scans = torch.tensor([[1.0, 0.2], [1.0, -0.1]], requires_grad=True)
    atlas = torch.tensor([[0.0, 1.0]]).repeat(2, 1).requires_grad_()
    of_scans, of_atlas = torch.autograd.grad(contrastive_loss(scans, atlas), (scans, atlas))
    assert of_atlas.abs().sum() > 0.1
    step = (scans - 0.1 * of_scans).detach()
    cosine = F.cosine_similarity
    assert cosine(step[0], step[1], dim=0) < cosine(scans[0], scans[1], dim=0)
    assert cosine(step, atlas).mean() > cosine(scans, atlas).mean()


def test_nt_xent_worked_out_by_hand():
    # Two orthogonal rows that equal their partners: every row has one partner of cosine 1 and two others of cosine 0.
    rows = torch.eye(2)
    assert float(nt_xent_loss(rows, 3 * rows)) == pytest.approx(np.log(np.exp(2) + 2) - 2)
    # The same atlas twice is its own negative: atlas rows see (1, 1, 0) or (1, 0, 1), scan rows (1, 1, 0) or (0, 0, 0).
    atlas = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    of_atlas = np.log(2 * np.exp(2) + 1) - 2, np.log(2 * np.exp(2) + 1) - 0
    of_scan = np.log(2 * np.exp(2) + 1) - 2, np.log(3)
    assert float(nt_xent_loss(atlas, rows)) == pytest.approx(sum((*of_atlas, *of_scan)) / 4)


def test_hints_of_equal_features_cost_nothing_and_of_opposite_ones_two_a_layer():
    layers = [textured(2, 3, 4, 4, 4), textured(2, 5, 2, 2, 2, seed=1)]
    assert float(cosine_hint_loss(layers, layers)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_hint_loss(layers, [3 * layer for layer in layers])) == pytest.approx(0, abs=1e-6)
    assert float(cosine_hint_loss(layers, [-layer for layer in layers])) == pytest.approx(4)
    assert float(l2_hint_loss(layers, layers)) == 0
    assert float(l2_hint_loss(layers, [layers[0] + 0.5, layers[1] - 2])) == pytest.approx(0.25 + 4)


def test_cosine_of_hints_is_taken_sample_by_sample():
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0]]).view(2, 2, 1, 1, 1)
    teacher = torch.tensor([[4.0, 3.0], [0.0, 9.0]]).view(2, 2, 1, 1, 1)
    assert float(cosine_hint_loss([student], [teacher])) == pytest.approx(((1 - 24 / 25) + 1) / 2)


# Gradients

LOSSES = {
    "mutual information": (
        lambda x: mutual_information(x, pair()[1]),
        0.2 + 0.6 * textured(1, 1, *SHAPE),
    ),
    "bending": (bending_energy_loss, textured(1, 3, *SHAPE)),
    "contrastive, scans": (lambda x: contrastive_loss(x, ATLASES), SCANS + 0.1),
    "contrastive, atlases": (lambda x: contrastive_loss(SCANS, x), ATLASES),
    "nt-xent": (lambda x: nt_xent_loss(x, ATLASES), SCANS + 0.1),
    "hint": (lambda x: cosine_hint_loss([x], [textured(2, 3, 4, 4, 4)]), textured(2, 3, 4, 4, 4, seed=1)),
    "lncc": (lambda x: lncc_loss(x, pair()[1]), textured(1, 1, *SHAPE)),
    "lncc of a warped image": (
        lambda u: lncc_loss(warp(pair()[0], u), pair()[1]),
        0.3 + 0.4 * textured(1, 3, *SHAPE, seed=4),
    ),
    "lncc of means": (lambda x: lncc_of_means_loss(x, pair()[1]), textured(1, 1, *SHAPE)),
    "diffusion": (diffusion_loss, textured(1, 3, *SHAPE)),
    "inverse, forward": (lambda u: inverse_consistency_loss(u, scaling(1.1)), 0.3 + 0.4 * textured(1, 3, *SHAPE)),
    "inverse, backward": (lambda u: inverse_consistency_loss(scaling(0.9), u), textured(1, 3, *SHAPE)),
    "self-warped": (lambda u: self_warped_inverse_loss(scaling(0.9), u), 0.3 + 0.4 * textured(1, 3, *SHAPE)),
    "dice": (lambda p: dice_loss(p, random_one_hot()), textured(2, 3, *SHAPE)),
    "dice and cross-entropy": (lambda x: dice_cross_entropy_loss(x, random_one_hot()), textured(2, 3, *SHAPE)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_finite_difference(name):
    loss, start = LOSSES[name]
    point = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    # Along the gradient's signs the change is large enough for float32.
    direction, step = gradient.sign(), 0.002 if name == "mutual information" else 0.01  # a bin is 0.03 wide
    change = (loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
    assert float(change) == pytest.approx(float(gradient.abs().sum()), rel=0.01)


# LT-Net

LEAST = 1e-6**0.45  # of the robust penalty: about 0.002


def test_robust_penalty_at_known_values_and_flat_at_zero():
    values = torch.tensor([0.0, 1.0, -1.0, 10.0], requires_grad=True)
    penalty = robust_penalty(values)
    assert penalty.tolist() == pytest.approx([LEAST, 1, 1, 100**0.45], rel=1e-5)
    (gradient,) = torch.autograd.grad(penalty.sum(), values)
    assert gradient.tolist() == pytest.approx([0, 0.9, -0.9, 0.9 * 10 * 100**-0.55], rel=1e-5)


def test_robust_inverse_loss_of_inverses_is_its_least_and_of_a_residual_is_the_penalty_of_each_component():
    there = translation(1, -2, 0.5)
    assert float(robust_inverse_loss(there, -there)) == pytest.approx(LEAST)
    residual = there + translation(0, 1, 1)
    expected = (1 + 1 + 1.5**0.9) / 3  # of (1, -1, 1.5)
    assert float(robust_inverse_loss(residual, torch.zeros_like(there))) == pytest.approx(expected, rel=1e-5)


def test_robust_inverse_loss_reads_the_backward_field_where_the_forward_one_points():
    factor = 0.8
    exact = robust_inverse_loss(scaling(factor), scaling(1 / factor))
    assert float(exact) < 2 * LEAST
    assert float(robust_inverse_loss(scaling(factor), -scaling(factor))) > 20 * LEAST


def test_anatomy_difference_is_that_of_the_two_ways():
    x, y, other = (torch.tensor(values).view(1, 1, 1, 1, 4) for values in ([1.0, 1, 0, 0], [0.0, 1, 1, 0], [0.0] * 4))
    assert float(anatomy_difference_loss(x, y, x)) == pytest.approx(LEAST)
    # |x - y| = 1 0 1 0, |y - other| = 0 1 1 0: they differ in two of four places, by 1.
    assert float(anatomy_difference_loss(x, y, other)) == pytest.approx((2 + 2 * LEAST) / 4, rel=1e-5)
    # Classes in which nothing happens do not water it down.
    three = (torch.cat([each, torch.zeros(1, 2, 1, 1, 4)], 1) for each in (x, y, other))
    assert float(anatomy_difference_loss(*three)) == pytest.approx((2 + 2 * LEAST) / 4 + 2 * LEAST, rel=1e-5)


def test_least_squares_gan_loss_is_zero_for_the_right_answer():
    judged = torch.tensor([1.0, 0.0])
    assert float(least_squares_gan_loss(judged[:1], 1.0)) == float(least_squares_gan_loss(judged[1:], 0.0)) == 0
    assert float(least_squares_gan_loss(judged, 1.0)) == 0.5
    assert float(least_squares_gan_loss(torch.tensor([3.0]), 1.0)) == 4


def test_rarity_weighted_cross_entropy_weighs_a_class_by_what_is_not_of_it():
    label = torch.tensor([0, 0, 0, 1]).view(1, 1, 1, 4)
    logits = torch.zeros(1, 2, 1, 1, 4)
    logits[0, 1, 0, 0, 3] = 1.0
    target = torch.nn.functional.one_hot(label, 2).movedim(-1, 1).float()
    right = math.log(1 + math.exp(-1))  # of the last voxel; ln 2 of each other one
    expected = (3 * 0.25 * math.log(2) + 0.75 * right) / 4
    assert float(rarity_weighted_cross_entropy_loss(logits, target)) == pytest.approx(expected)


def test_dice_of_all_classes_together_is_what_the_right_class_lacks():
    target = torch.nn.functional.one_hot(torch.tensor([0, 1, 1]).view(1, 1, 1, 3), 2).movedim(-1, 1).float()
    said = torch.tensor([[0.9, 0.4, 0.2], [0.1, 0.6, 0.8]]).view(1, 2, 1, 1, 3)
    assert float(pooled_dice_loss(said, target)) == pytest.approx(1 - (0.9 + 0.6 + 0.8) / 3)
    dice = 2 * (said * target).sum() / (said + target).sum()
    assert float(pooled_dice_loss(said, target)) == pytest.approx(1 - float(dice))
