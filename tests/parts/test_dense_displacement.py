"""PDD-Net: the costs find a shift, smoothing is what loops say, non-local losses have known answers, switches."""

import itertools

import numpy as np
import pytest
import torch
from recipes import built, config, generator, phases, textured
from scipy.ndimage import minimum_filter, uniform_filter

from stages.errors import LrlsError
from stages.methods import pdd_net, settings_of
from stages.methods.phases import Ramp
from stages.parts.batches.drawing import Draw
from stages.parts.batches.partly_labelled import PartlyLabelledPair
from stages.parts.discrete import mind_ssc
from stages.parts.networks.dense_displacement import (
    DenseDisplacements,
    ObeliskFeatures,
    dense_costs,
    mean_field,
    min_convolution,
)
from stages.parts.players.dense_displacement import (
    DenselyRegistered,
    RegisterDensely,
    non_local_labels,
    non_local_similarity,
)
from stages.parts.warps import one_hot

SHAPE = (21, 17, 17)  # control points four voxels apart lie on voxels


def network(**options):
    torch.manual_seed(0)
    return DenseDisplacements(1, **{"spacing": 4, "count": 5, "reach": 0.25} | options)


def grid(net, shape=SHAPE):
    """The control points, (points, 3), and the displacements, (K, 3)."""
    like = torch.zeros(1)
    return torch.cartesian_prod(*net.points(shape, like)), torch.cartesian_prod(*net.steps(shape, like))


def pair(moving, fixed, labels=None, counts=True):
    labels = labels or (torch.zeros(len(moving), *moving.shape[2:], dtype=torch.int16),) * 2
    known = torch.full((len(moving), 3), counts)
    draw = Draw(len(moving), None, None, generator())
    return PartlyLabelledPair(["a", "u"], moving, fixed, *labels, known, known, 3, draw)


def surely(net, shape, index, n=1):
    """Probabilities that name one displacement everywhere."""
    chosen = torch.zeros(n, *map(len, net.points(shape, torch.zeros(1))), net.count**3)
    chosen[..., index] = 1
    return chosen


@pytest.mark.parametrize("shift", [(2, 0, -1), (-3, 1, 2), (0, 0, 0)])
def test_costs_alone_find_a_shift_of_whole_voxels(shift):
    moving = textured(1, 1, *SHAPE)
    fixed = moving.roll([-s for s in shift], (2, 3, 4))  # fixed(x) = moving(x + shift)
    points, axis = torch.tensor([5.0, 8.0, 11.0]), torch.arange(-4.0, 5.0)
    steps = torch.cartesian_prod(axis, axis, axis)
    costs = dense_costs(moving, fixed, [points] * 3, [axis] * 3, SHAPE)
    assert costs.shape == (1, 3, 3, 3, 9**3)
    found = steps[costs.argmin(-1)]
    assert bool((found == torch.tensor(shift, dtype=torch.float32)).all())
    assert float(costs.min(-1).values.max()) < 1e-10


def test_costs_of_features_on_a_third_of_the_grid_are_those_at_the_blocks_centres():
    features = textured(2, 3, 4, 5, 4)
    moving, fixed = features[:1], features[1:]
    points, steps = torch.tensor([[4.0], [7.0], [1.0]]), torch.tensor([[3.0], [-3.0], [6.0]])
    costs = dense_costs(moving, fixed, points, steps, (12, 15, 12))  # block centres at 1, 4, 7, 10, ...
    assert float(costs) == pytest.approx(float((fixed[0, :, 1, 2, 0] - moving[0, :, 2, 1, 2]).square().sum()), rel=1e-5)


def filtered(values, *filters):
    """Filters of 3^3, one after the other, on values whose border goes on."""
    wide = np.pad(values.numpy(), 4, mode="edge")
    for each in filters:
        wide = each(wide, size=3)
    return torch.from_numpy(wide[4:-4, 4:-4, 4:-4])


def test_min_convolution_is_the_least_of_the_neighbours_and_then_two_means():
    costs = textured(5, 5, 5)
    found = min_convolution(costs.reshape(1, 1, 1, 1, -1).expand(2, 2, 1, 1, -1).contiguous(), 5)
    assert found.shape == (2, 2, 1, 1, 125)
    expected = filtered(costs, minimum_filter, uniform_filter, uniform_filter)
    torch.testing.assert_close(found[1, 1, 0, 0].view(5, 5, 5), expected)


def test_mean_field_is_two_means_over_the_control_grid_for_each_displacement():
    costs = textured(1, 4, 3, 4, 2)
    found = mean_field(costs)
    for k in range(2):
        torch.testing.assert_close(found[0, ..., k], filtered(costs[0, ..., k], uniform_filter, uniform_filter))


def test_probabilities_add_up_and_their_mean_reaches_as_far_as_is_set():
    net = network()
    moving, fixed = textured(2, 2, 1, *SHAPE)
    probabilities = net.probabilities(moving, fixed)
    assert probabilities.shape == (2, 6, 5, 5, 125)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 6, 5, 5))
    ends = net.mean(surely(net, SHAPE, 124), SHAPE)[0, :, 0, 0, 0]
    assert ends.tolist() == pytest.approx([0.25 * (n - 1) / 2 for n in SHAPE])
    assert not net.mean(surely(net, SHAPE, 62), SHAPE).any()
    points, _ = grid(net)
    assert points[0].tolist() == [0, 0, 0] and points[-1].tolist() == [n - 1 for n in SHAPE]
    assert net.eval()(moving, fixed).shape == (2, 3, *SHAPE)


def test_expected_image_is_the_weighted_sum_over_the_displacements_with_its_gradient():
    net = network(count=3)
    image = textured(1, 2, *SHAPE)
    probabilities = torch.rand(1, 6, 5, 5, 27, generator=generator()).softmax(-1).requires_grad_(True)
    found = net.expected(probabilities, image)
    points, steps = grid(net)
    points = points.view(6, 5, 5, 3)
    values = torch.stack(
        [torch.stack([looked_up(image, points[d, h, w] + step) for step in steps])
         for d, h, w in ((0, 0, 0), (2, 3, 1), (5, 4, 4))]
    )  # fmt: skip
    chosen = torch.stack([probabilities[0, d, h, w] for d, h, w in ((0, 0, 0), (2, 3, 1), (5, 4, 4))])
    expected = (chosen[..., None] * values).sum(1)
    torch.testing.assert_close(
        torch.stack([found[0, :, 0, 0, 0], found[0, :, 2, 3, 1], found[0, :, 5, 4, 4]]), expected
    )
    (gradient,) = torch.autograd.grad(found[0, 1, 2, 3, 1], probabilities)
    torch.testing.assert_close(gradient[0, 2, 3, 1], values[1, :, 1])
    assert not gradient[0, 2, 3, 2].any()


def looked_up(image, place):
    """Trilinear value at one place, border repeated, (C,)."""
    total = torch.zeros(image.shape[1])
    place = [min(max(float(x), 0), n - 1) for x, n in zip(place, image.shape[2:], strict=True)]
    for corner in itertools.product((0, 1), repeat=3):
        low = [int(x) for x in place]
        weight = 1.0
        for x, base, up in zip(place, low, corner, strict=True):
            weight *= (x - base) if up else 1 - (x - base)
        where = [min(base + up, n - 1) for base, up, n in zip(low, corner, image.shape[2:], strict=True)]
        total += weight * image[0, :, where[0], where[1], where[2]]
    return total


def test_non_local_similarity_is_0_where_the_right_displacement_is_sure_and_known_elsewhere():
    net = network(count=3, reach=0.2)  # steps of 2, 1.6 and 1.8 voxels
    moving = textured(1, 1, *SHAPE)
    batch = pair(moving, moving)
    for index, at in ((13, 0.0), (4, -2.0)):  # no displacement; one of (-2, 0, 0)
        chosen = surely(net, SHAPE, index)
        registered = DenselyRegistered(net, batch, chosen, net.mean(chosen, SHAPE))
        mind, (points, _) = mind_ssc(moving), grid(net)
        apart = [
            (looked_up(mind, point + torch.tensor([at, 0, 0])) - looked_up(mind, point)).square().mean()
            for point in points
        ]
        assert float(non_local_similarity(registered)) == pytest.approx(float(torch.stack(apart).mean()), abs=1e-6)


def test_non_local_label_loss_counts_pairs_with_both_labels_and_weighs_classes():
    net = network(count=3, reach=0.2)
    images = textured(2, 1, *SHAPE)
    labels = torch.randint(3, (2, *SHAPE), generator=generator(1)).short()
    batch = pair(images, images, labels=(labels, labels))
    sure = surely(net, SHAPE, 13, n=2)
    right = DenselyRegistered(net, batch, sure, net.mean(sure, SHAPE))
    assert float(non_local_labels(right)) == pytest.approx(0, abs=1e-10)

    batch.moving_counts[1] = False  # the second pair has no label
    zero = torch.zeros_like(labels)
    batch.moving_label = zero
    wrong = float(non_local_labels(DenselyRegistered(net, batch, sure, net.mean(sure, SHAPE))))
    at = one_hot(labels[:1], 3)[0].flatten(1)  # control points lie on whole voxels here: every 4th one
    truth = torch.stack([labels[0][tuple(point)] for point in grid(net)[0].round().long()]).long()
    counts = at.sum(1)
    weights = counts.rsqrt() * 3 / counts.rsqrt().sum()
    weights[0] = 0.15
    missed = (truth > 0).float() * (weights[0] + weights[truth])
    assert wrong == pytest.approx(float(missed.mean()) / 3 / 2, rel=1e-4)

    batch.fixed_counts[:] = False
    assert float(non_local_labels(DenselyRegistered(net, batch, sure, net.mean(sure, SHAPE)))) == 0


def test_smoothness_is_that_of_the_control_points_in_units_of_half_of_the_grid():
    net, batch = network(), pair(*textured(2, 1, 1, *SHAPE))
    displacement = torch.zeros(1, 3, 6, 5, 5)
    displacement[:, 0] = 10 * torch.arange(6.0).view(-1, 1, 1) / 5  # voxels; half of the grid is 10
    registered = DenselyRegistered(net, batch, surely(net, SHAPE, 0), displacement)
    assert registered.smoothed(lambda field: field.diff(dim=2).square().mean()) == pytest.approx(0.2**2 / 3, rel=1e-4)


def test_features_are_on_a_third_of_the_grid_and_have_few_weights():
    features = ObeliskFeatures(1)
    assert features(textured(1, 1, *SHAPE)).shape == (1, 16, 7, 6, 6)
    convolutions = 4 * 125 + 128 * 64 + 27 * 64 * 64 + 64 * 16 + 16
    assert sum(p.numel() for p in features.parameters()) == convolutions + 2 * (4 + 64 + 64) + 2 * 32 * 3


def test_gradients_reach_features_and_weights_and_training_finds_a_shift():
    torch.manual_seed(0)
    net = network(spacing=4, count=5, reach=0.5)
    blobs = torch.nn.functional.avg_pool3d(textured(1, 1, 16, 16, 16), 5, stride=1, padding=2)
    moving = (blobs - blobs.min()) / (blobs.max() - blobs.min())
    fixed = moving.roll(-2, 2)  # moving(x + 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    values = []
    for _ in range(10):
        registered = RegisterDensely(net)(pair(moving, fixed))
        loss = non_local_similarity(registered)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.8 * values[0]
    assert float(registered.displacement[:, 0, 1:-1, 1:-1, 1:-1].detach().mean()) > 0.7


def test_switches_do_what_they_say():
    def terms(atlases=1, **settings):
        (player,) = phases(built("pdd-net", atlases=atlases, **settings), "registration")[0].players
        return player.loss.terms

    one = terms()
    assert one.keys() == {"similarity", "smoothness"} and one["similarity"] == (1.0, non_local_similarity)
    ramp = one["smoothness"][0]
    assert isinstance(ramp, Ramp) and (ramp(0, 1000), ramp(100, 1000)) == pytest.approx((2.25, 0.075))
    assert terms(atlases=2)["labels"] == (1.0, non_local_labels)
    assert "labels" not in terms(atlases=2, label_weight=0) and "smoothness" not in terms(smoothness_weight=0)
    light = built("pdd-net", preset="light").networks["registration"]
    assert (light.spacing, light.count, light.reach) == (4, 7, 0.3)
    with pytest.raises(LrlsError, match="displacements: 8 is even, and no displacement at all must be one of them"):
        settings_of(pdd_net.METHOD, config(**{"pdd-net": {"displacements": 8}}))
