"""Changes of appearance: contours, the masked smoothness, and where the gradient goes."""

import pytest
import torch
from torch import nn

from stages.parts.batches.pairs import LabelledPair
from stages.parts.losses import masked_smoothness_loss
from stages.parts.networks.appearance import AppearanceChange
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.players.appearance import Recolour, appearance_smoothness, contours, reconstruction
from stages.parts.warps import warp

SHAPE = (6, 7, 8)


def textured(*size, seed=0):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def box():
    """A structure of 2 x 3 x 4 voxels in background."""
    label = torch.zeros(1, *SHAPE, dtype=torch.short)
    label[0, 2:4, 2:5, 2:6] = 1
    return label


# Contours


def test_contour_is_both_sides_of_a_boundary():
    label = torch.zeros(1, 2, 2, 6)
    label[..., 3:] = 1
    assert contours(label)[0, 0, 0, 0].tolist() == [0, 0, 1, 1, 0, 0]
    assert contours(label).shape == (1, 1, 2, 2, 6)


def test_contour_of_a_box_is_its_shell_and_the_voxels_that_touch_its_faces():
    found = contours(box())[0, 0]
    d, h, w = 2, 3, 4
    inside = max(d - 2, 0) * (h - 2) * (w - 2)
    assert found[2:4, 2:5, 2:6].sum() == d * h * w - inside
    assert found.sum() == d * h * w - inside + 2 * (d * h + h * w + w * d)
    assert found[1, 1, 3] == 0  # touches an edge only


def test_boundaries_between_two_structures_count_and_one_class_has_none():
    label = torch.ones(1, 2, 2, 4)
    assert contours(label).sum() == 0
    label[..., 2:] = 2
    assert contours(label)[0, 0, 0, 0].tolist() == [0, 1, 1, 0]


# Smoothness


def test_change_that_is_constant_in_every_structure_costs_nothing():
    change = torch.where(box()[:, None] == 1, 0.7, -0.2)
    assert float(masked_smoothness_loss(change, contours(box()))) == 0
    assert float(masked_smoothness_loss(change, torch.zeros(1, 1, *SHAPE))) > 0.01


def test_change_within_a_structure_costs_its_absolute_differences():
    # One voxel of 1/2 in 3 x 4 x 5 far from any contour: two differences along each axis of 2x4x5, 3x3x5 and 3x4x4.
    change = torch.zeros(1, 1, 3, 4, 5)
    change[0, 0, 1, 1, 2] = 0.5
    none = torch.zeros_like(change)
    assert float(masked_smoothness_loss(change, none)) == pytest.approx(1 / 40 + 1 / 45 + 1 / 48)
    # The voxel on a contour: the differences whose far voxel it is are let off.
    on = none.clone()
    on[0, 0, 1, 1, 2] = 1
    assert float(masked_smoothness_loss(change, on)) == pytest.approx((1 / 40 + 1 / 45 + 1 / 48) / 2)


def test_gradient_of_the_smoothness_is_cut_at_contours():
    change = textured(1, 1, *SHAPE).requires_grad_()
    everywhere = torch.ones(1, 1, *SHAPE)
    masked_smoothness_loss(change, everywhere).backward()
    assert change.grad.abs().sum() == 0
    # Contours on both sides of w = 3 | 4: nothing pulls the two halves together.
    label = torch.zeros(1, *SHAPE)
    label[..., 4:] = 1
    levels = torch.where(label == 1, 1.0, 0.0)[:, None].requires_grad_()
    masked_smoothness_loss(levels, contours(label)).backward()
    assert levels.grad.abs().sum() == 0
    free = levels.detach().clone().requires_grad_()
    masked_smoothness_loss(free, 0 * contours(label)).backward()
    assert free.grad[..., 4].min() > 0 > free.grad[..., 3].max()


# The forward pass


class Step(nn.Module):
    """Moves everything by one voxel along W, by a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, pair):
        field = torch.zeros(len(pair), 3, *pair.shape[2:])
        field[:, 2] = 1
        return self.weight * field


class Difference(nn.Module):
    """The change that makes the first image the second, times a weight."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, pair):
        return self.weight * (pair[:, 1:] - pair[:, :1])


def recoloured(weight=1.0):
    forward, backward = RegistrationNetwork(Step()), RegistrationNetwork(Step())
    change = AppearanceChange(Difference(weight), backward)
    pair = LabelledPair([], textured(2, 1, *SHAPE), textured(2, 1, *SHAPE, seed=1), box().repeat(2, 1, 1, 1), 3)
    return Recolour(change, forward)(pair), pair, change, forward


def test_network_sees_the_atlas_and_the_scan_brought_to_it():
    result, pair, change, _ = recoloured()
    field = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1, 1).expand(2, 3, *SHAPE)
    back = warp(pair.fixed, field)
    torch.testing.assert_close(result.change, back - pair.moving)
    torch.testing.assert_close(change(pair.moving, pair.fixed), result.change)
    torch.testing.assert_close(result.warped, warp(back, field))  # A + (back - A), in the scan's space
    assert torch.equal(result.scan, pair.fixed)
    assert torch.equal(result.contours[:1], contours(box()))


def test_reconstruction_is_measured_in_the_scans_space():
    result, pair, *_ = recoloured(weight=0.0)
    expected = warp(pair.moving, torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1, 1).expand(2, 3, *SHAPE)) - pair.fixed
    assert float(reconstruction(result).detach()) == pytest.approx(float(expected.square().mean()))


def test_only_the_appearance_network_learns():
    result, _, change, forward = recoloured(weight=0.5)
    (reconstruction(result) + appearance_smoothness(result)).backward()
    assert change.network.weight.grad != 0
    assert change.backward_registration.body.weight.grad is None and forward.body.weight.grad is None
