"""VoxelMorph's probabilistic model: KL against a dense multivariate normal, samples, and means."""

import itertools

import pytest
import torch
from recipes import SHAPE, built, generator, textured
from torch.distributions import MultivariateNormal, kl_divergence

from stages.parts.batches.drawing import Draw
from stages.parts.batches.pairs import LabelledPair
from stages.parts.losses import velocity_kl_loss
from stages.parts.networks.velocity import VelocityDistribution
from stages.parts.players.velocity import RegisterBySample
from stages.parts.warps import halved, integrate, rescale

TINY = (2, 3, 4)
LAMBDA = 3.0


def gaussian(seed, shape=TINY):
    """Mean and log-variance of a velocity, (1, 3, D, H, W) each."""
    draw = torch.Generator().manual_seed(seed)
    mean, log_variance = torch.randn(2, 1, 3, *shape, generator=draw)
    return mean, log_variance - 1


def laplacian(shape):
    """Degree minus adjacency of the six-neighbour graph, dense."""
    places = list(itertools.product(*map(range, shape)))
    distance = torch.tensor([[sum(abs(i - j) for i, j in zip(a, b, strict=True)) for b in places] for a in places])
    adjacency = (distance == 1).double()
    return torch.diag(adjacency.sum(1)) - adjacency


def dense_kl(mean, log_variance):
    """KL of the three components, each a multivariate normal; the prior is made proper by a small diagonal."""
    size = mean[0, 0].numel()
    precision = LAMBDA * laplacian(mean.shape[2:]) + 1e-7 * torch.eye(size, dtype=torch.float64)
    prior = MultivariateNormal(torch.zeros(size, dtype=torch.float64), precision_matrix=precision)
    total = 0.0
    for m, s in zip(mean[0].double().flatten(1), log_variance[0].double().flatten(1), strict=True):
        total += float(kl_divergence(MultivariateNormal(m, torch.diag(s.exp())), prior))
    return total


def test_kl_is_that_of_a_multivariate_normal_but_for_a_constant():
    found = [float(velocity_kl_loss(*gaussian(seed), prior_lambda=LAMBDA)) * 24 for seed in range(3)]
    expected = [dense_kl(*gaussian(seed)) for seed in range(3)]
    constant = expected[0] - found[0]
    assert [e - f for e, f in zip(expected, found, strict=True)] == pytest.approx([constant] * 3, abs=1e-3)
    determinant = torch.linalg.slogdet(LAMBDA * laplacian(TINY) + 1e-7 * torch.eye(24))[1]
    assert constant == pytest.approx(-1.5 * (24 + float(determinant)), abs=1e-2)  # what is left out


def test_kl_of_a_batch_is_the_mean_and_its_gradient_is_right():
    (first, a), (second, b) = gaussian(0), gaussian(1)
    both = velocity_kl_loss(torch.cat([first, second]), torch.cat([a, b]), prior_lambda=LAMBDA)
    each = [velocity_kl_loss(first, a, prior_lambda=LAMBDA), velocity_kl_loss(second, b, prior_lambda=LAMBDA)]
    assert float(both) == pytest.approx(float(sum(each)) / 2, rel=1e-5)

    first.requires_grad_(True), a.requires_grad_(True)
    of_mean, of_variance = torch.autograd.grad(velocity_kl_loss(first, a, prior_lambda=LAMBDA), (first, a))
    matrix = LAMBDA * laplacian(TINY).float()
    expected = (first.detach().flatten(2) @ matrix).view_as(first) / 24
    torch.testing.assert_close(of_mean, expected, atol=1e-5, rtol=1e-4)
    degree = matrix.diagonal().view(TINY)
    torch.testing.assert_close(of_variance, (degree * a.detach().exp() - 1) / 48, atol=1e-5, rtol=1e-4)


def test_kl_is_least_at_the_priors_own_variance_and_blind_to_translations():
    mean = torch.zeros(1, 3, *TINY)
    best = -(LAMBDA * laplacian(TINY).diagonal().view(TINY)).log().float().expand(1, 3, *TINY)
    least = velocity_kl_loss(mean, best, prior_lambda=LAMBDA)
    for other in (best + 0.1, best - 0.1):
        assert velocity_kl_loss(mean, other, prior_lambda=LAMBDA) > least
    torch.testing.assert_close(velocity_kl_loss(mean + 5, best, prior_lambda=LAMBDA), least)
    torch.testing.assert_close(
        velocity_kl_loss(mean[..., :1], best[..., :1], prior_lambda=1.0).isfinite().sum(), torch.tensor(1)
    )


class Fixed(torch.nn.Module):
    """A body that predicts a given Gaussian, whatever the images are."""

    def __init__(self, mean, log_variance):
        super().__init__()
        self.raw = torch.nn.Parameter(torch.cat([mean, log_variance + 10], 1))

    def forward(self, pairs):
        return self.raw.expand(len(pairs), -1, -1, -1, -1)


def pair():
    moving, fixed = textured(2, 1, 1, *SHAPE)
    return LabelledPair(["a", "u"], moving, fixed, torch.zeros(1, *SHAPE), 3, Draw(1, None, None, generator(4)))


def test_training_samples_the_velocity_with_the_batchs_generator_and_answers_take_its_mean():
    half = halved(SHAPE)
    mean, log_variance = gaussian(2, half)
    network = VelocityDistribution(Fixed(mean, log_variance))
    batch = pair()
    registered = RegisterBySample(network)(batch)
    noise = torch.randn(mean.shape, generator=generator(4))
    sample = mean + (log_variance / 2).exp() * noise
    torch.testing.assert_close(registered.displacement, rescale(integrate(sample), SHAPE))
    torch.testing.assert_close(network(batch.moving, batch.fixed), rescale(integrate(mean), SHAPE))
    torch.testing.assert_close(registered.mean, mean)
    registered.displacement.square().mean().backward()
    assert bool((network.body.raw.grad != 0).any((0, 2, 3, 4)).all())  # both mean and variance, by the sample


def test_swapped_roles_turn_the_mean_round_and_keep_the_variance():
    class Looks(torch.nn.Module):
        def forward(self, pairs):
            return torch.cat([pairs[:, :1] * 3 + pairs[:, 1:]] * 6, 1)

    network = VelocityDistribution(Looks(), antisymmetric=True)
    batch = pair()
    (there, sure), (back, as_sure) = (
        network.distribution(*images) for images in ((batch.moving, batch.fixed), (batch.fixed, batch.moving))
    )
    torch.testing.assert_close(there, -back)
    torch.testing.assert_close(sure, as_sure)
    assert there.abs().max() > 0.01


def test_untrained_network_hardly_moves_anything_and_is_nearly_sure():
    for kind in ("voxelmorph", "voxelmorph-1", "light"):
        network = built("voxelmorph", probabilistic=True, registration_network=kind).networks["registration"]
        batch = pair()
        mean, log_variance = network.distribution(batch.moving, batch.fixed)
        assert tuple(mean.shape[2:]) == halved(SHAPE) == tuple(log_variance.shape[2:])
        assert mean.abs().max() < 0.01 and (log_variance + 10).abs().max() < 0.01
