"""Fusion of a network with propagated labels where it is clear who is right."""

import numpy as np
import torch

from stages.parts.voting import fits, fused, learned

SHAPE = (16, 16, 16)


def texture(seed):
    return np.random.default_rng(seed).random(SHAPE).astype(np.float32)


def probabilities(of_structure):
    share = torch.full(SHAPE, float(of_structure))
    return torch.stack([1 - share, share])


def test_an_atlas_fits_itself_and_not_another_image():
    image, still = texture(0), np.zeros((3, *SHAPE), np.float32)
    label = np.zeros(SHAPE, np.uint8)
    same, other = fits([(image, label), (texture(1), label)], [still, still], image)
    assert same.shape == SHAPE
    assert float(same.mean()) > 0.99 and float(other[5:-5, 5:-5, 5:-5].mean()) < 0.05


def test_half_of_each_where_the_atlas_fits_and_the_network_alone_where_it_does_not():
    network, votes = probabilities(0.4), probabilities(1.0)
    fit = torch.zeros(SHAPE)
    fit[:8] = 1.0
    answer = fused(network, votes, fit, torch.ones(2))
    assert torch.allclose(answer[1, :8], torch.tensor(0.7))
    assert torch.allclose(answer[1, 8:], torch.tensor(0.4))
    assert torch.allclose(answer.sum(0), torch.ones(SHAPE))


def test_a_structure_that_the_network_has_not_learned_is_left_to_registration():
    fit, trust = torch.zeros(SHAPE), torch.tensor([1.0, 0.0])
    unseen = fused(probabilities(0.0), probabilities(1.0), fit, trust)
    assert torch.equal(unseen, probabilities(1.0))
    false_alarm = fused(probabilities(1.0), probabilities(0.0), fit, trust)
    assert torch.equal(false_alarm, probabilities(0.0))


def test_what_is_learned_is_told_by_the_atlases():
    label = torch.zeros(4, 4, 4, dtype=torch.int64)
    label[0], label[1] = 1, 2
    answer = torch.where(label == 2, 0, label)
    answer[0, :2] = 0  # half of structure 1: DSC 2/3
    assert torch.allclose(learned([answer], [label], 4), torch.tensor([1.0, (2 / 3 / 0.9) ** 8, 0.0, 1.0]))
    assert torch.equal(learned([label, label], [label, label], 3), torch.ones(3))
