"""Displacements pull, in voxels, components (D, H, W); compositions, exponentials and affine maps by known answers."""

import math

import pytest
import torch
import torch.nn.functional as F

from stages.parts.warps import (
    affine_displacement,
    compose,
    integrate,
    one_hot,
    resize,
    voxel_grid,
    warp,
    warp_label,
    warp_one_hot,
    warp_probabilities,
)

SHAPE = (6, 7, 8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(*size, seed=0):
    return torch.rand(size, generator=generator(seed))


def constant(*vector, shape=SHAPE):
    """A translation, (1, 3, D, H, W)."""
    return torch.tensor(vector, dtype=torch.float32).view(1, 3, 1, 1, 1).expand(1, 3, *shape).clone()


def from_centre(shape=SHAPE):
    centre = (torch.tensor(shape) - 1) / 2
    return voxel_grid(shape, torch.zeros(1)) - centre.view(1, 3, 1, 1, 1)


def linear(matrix, offset=(0, 0, 0), shape=SHAPE):
    """Displacement of the map x -> matrix x + offset, coordinates from the grid's centre."""
    y = from_centre(shape)
    moved = torch.einsum("ij,njdhw->nidhw", matrix, y) + torch.tensor(offset).view(1, 3, 1, 1, 1)
    return moved - y


def smooth_velocity(amplitude, shape=(16, 17, 18)):
    """Waves that vanish on the border, so that nothing leaves the grid."""
    x = voxel_grid(shape, torch.zeros(1))
    d, h, w = (x[:, i : i + 1] * math.pi / (shape[i] - 1) for i in range(3))
    inside = d.sin() * h.sin() * w.sin()
    return amplitude * torch.cat([inside * (2 * h).cos(), inside * (2 * w).sin(), -inside * (2 * d).cos()], 1)


# Sampling


def test_warp_pulls_the_voxel_that_the_displacement_points_to():
    # u = +1 along D, so the fixed voxel at d=2 reads the moving voxel at d=3.
    moving = torch.zeros(1, 1, 6, 7, 8)
    moving[0, 0, 3, 2, 4] = 1
    displacement = torch.zeros(1, 3, 6, 7, 8)
    displacement[:, 0] = 1  # voxels

    warped = warp(moving, displacement)

    assert torch.nonzero(warped > 0.99).tolist() == [[0, 0, 2, 2, 4]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_component_k_moves_along_axis_k_and_nothing_else(axis):
    moving = textured(1, 2, *SHAPE)
    vector = [0, 0, 0]
    vector[axis] = 2

    warped = warp(moving, constant(*vector))

    n = SHAPE[axis]
    torch.testing.assert_close(warped.narrow(axis + 2, 0, n - 2), moving.narrow(axis + 2, 2, n - 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_zero_displacement_gives_the_image_back_up_to_its_border(mode, padding):
    moving = textured(2, 3, *SHAPE)
    warped = warp(moving, torch.zeros(2, 3, *SHAPE), mode=mode, padding=padding)
    torch.testing.assert_close(warped, moving, atol=1e-6, rtol=0)


def test_half_a_voxel_averages_two_neighbours():
    moving = textured(1, 1, *SHAPE)
    warped = warp(moving, constant(0, 0, 0.5))
    expected = (moving[..., :-1] + moving[..., 1:]) / 2
    torch.testing.assert_close(warped[..., :-1], expected, atol=1e-6, rtol=0)


def test_outside_the_border_is_repeated_or_zero():
    moving = torch.arange(8.0).expand(1, 1, *SHAPE)
    displacement = constant(0, 0, 3)
    assert warp(moving, displacement)[0, 0, 0, 0].tolist() == pytest.approx([3, 4, 5, 6, 7, 7, 7, 7], abs=1e-5)
    zeros = warp(moving, displacement, padding="zeros")[0, 0, 0, 0]
    assert zeros.tolist() == pytest.approx([3, 4, 5, 6, 7, 0, 0, 0], abs=1e-5)


def test_nearest_takes_whole_values_from_the_nearest_voxel():
    moving = torch.arange(8.0).expand(1, 1, *SHAPE)
    for shift, expected in ((0.4, [0, 1, 2, 3, 4, 5, 6, 7]), (0.6, [1, 2, 3, 4, 5, 6, 7, 7])):
        assert warp(moving, constant(0, 0, shift), mode="nearest")[0, 0, 0, 0].tolist() == expected


def test_the_result_lies_on_the_grid_of_the_displacement():
    moving = textured(1, 1, 8, 8, 8)
    warped = warp(moving, constant(1, 2, 3, shape=(2, 3, 4)))
    torch.testing.assert_close(warped, moving[:, :, 1:3, 2:5, 3:7], atol=1e-6, rtol=0)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_splitting_into_slabs_for_the_threads_changes_nothing(monkeypatch, threads, mode):
    moving = textured(1, 2, 6, 7, 8)
    displacement = 4 * textured(1, 3, 6, 5, 4, seed=1) - 2  # another grid than the image's
    batches = []
    grid_sample = F.grid_sample

    def counted(image, *args, **kwargs):
        batches.append(len(image))
        return grid_sample(image, *args, **kwargs)

    monkeypatch.setattr(F, "grid_sample", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    whole = warp(moving, displacement, mode=mode)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    split = warp(moving, displacement, mode=mode)

    assert batches == [1, threads]
    assert torch.equal(split, whole)


def test_float16_images_are_warped_in_float32():
    moving = textured(1, 1, *SHAPE).half()
    warped = warp(moving, constant(0, 0, 0.5))
    assert warped.dtype == torch.float32
    assert torch.equal(warped, warp(moving.float(), constant(0, 0, 0.5)))


@pytest.mark.parametrize("slabs", [1, 2])
def test_gradient_with_respect_to_the_displacement_is_the_finite_difference(monkeypatch, slabs):
    # Trilinear interpolation is linear in a coordinate as long as a point stays in its cell: differences are exact.
    monkeypatch.setattr(torch, "get_num_threads", lambda: slabs)
    moving = textured(1, 1, 4, 4, 4)
    displacement = (0.3 + 0.4 * textured(1, 3, 2, 3, 3, seed=1)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: warp(moving, u).double(), displacement, eps=1e-2, atol=1e-4)


def test_gradient_with_respect_to_the_moving_image_is_the_finite_difference():
    moving = textured(1, 1, 2, 3, 3).double().requires_grad_()
    displacement = 0.8 * textured(1, 3, 2, 3, 3, seed=1)
    assert torch.autograd.gradcheck(lambda m: warp(m, displacement).double(), moving, eps=1e-2, atol=1e-4)


# Labels


def test_one_hot_has_one_channel_per_class():
    label = torch.tensor([0, 2, 1]).view(1, 1, 1, 3)
    assert one_hot(label, 4)[0, :, 0, 0].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_warped_probabilities_sum_to_one_everywhere():
    probabilities = torch.rand((2, 4, *SHAPE), generator=generator()).softmax(1)
    displacement = 8 * textured(2, 3, *SHAPE, seed=1) - 4
    warped = warp_probabilities(probabilities, displacement)
    torch.testing.assert_close(warped.sum(1), torch.ones(2, *SHAPE))
    assert warped.min() >= -1e-6


def test_chosen_classes_are_those_of_the_full_map():
    probabilities = torch.rand((2, 4, *SHAPE), generator=generator()).softmax(1)
    displacement = 8 * textured(2, 3, *SHAPE, seed=1) - 4
    full = warp_probabilities(probabilities, displacement)
    for chosen in ([2], [0], [3, 0, 1]):
        classes = torch.tensor(chosen)
        torch.testing.assert_close(
            warp_probabilities(probabilities, displacement, classes), full[:, chosen], atol=1e-5, rtol=0
        )


def test_what_comes_from_outside_is_background():
    label = torch.ones(1, *SHAPE, dtype=torch.long)
    away, half = constant(0, 0, 20), constant(0, 0, 0.5)
    assert warp_probabilities(one_hot(label, 3), away)[0, :, 0, 0, 0].tolist() == [1, 0, 0]
    last = warp_probabilities(one_hot(label, 3), half)[0, :, 3, 3, -1]  # half inside, half outside
    assert last.tolist() == pytest.approx([0.5, 0.5, 0], abs=1e-5)


@pytest.mark.parametrize("reach", [0.0, 1.5, 30.0])
def test_warped_one_hot_labels_are_warped_probabilities(reach):
    label = torch.randint(4, (2, *SHAPE), generator=generator(1)).short()
    displacement = reach * (2 * textured(2, 3, *SHAPE, seed=2) - 1)
    expected = warp_probabilities(one_hot(label, 4), displacement)
    torch.testing.assert_close(warp_one_hot(label, displacement, 4), expected, atol=2e-5, rtol=0)


def test_warped_label_keeps_its_type_and_is_background_outside():
    label = torch.arange(8, dtype=torch.int16).expand(1, *SHAPE)
    warped = warp_label(label, constant(0, 0, 2.4))
    assert warped.dtype == torch.int16
    assert warped[0, 0, 0].tolist() == [2, 3, 4, 5, 6, 7, 0, 0]


# Fields


def turn(degrees, i, j):
    matrix = torch.eye(3)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def test_composing_two_affine_maps_multiplies_them_inner_first():
    outer, inner = 1.2 * turn(20, 0, 1), 0.5 * turn(30, 1, 2)  # inner contracts: nothing is read outside
    composed = compose(linear(outer, (0.5, 0.0, -1.0)), linear(inner, (0.3, -0.2, 0.1)))
    offset = outer @ torch.tensor([0.3, -0.2, 0.1]) + torch.tensor([0.5, 0.0, -1.0])
    torch.testing.assert_close(composed, linear(outer @ inner, offset.tolist()), atol=1e-4, rtol=0)


def test_warping_by_a_composition_is_warping_twice():
    moving = textured(1, 1, 8, 8, 8)
    first, second = constant(1, 0, 2, shape=(8, 8, 8)), constant(0, 1, -1, shape=(8, 8, 8))
    inside = (..., slice(2, 5), slice(2, 5), slice(2, 5))
    twice = warp(warp(moving, first), second)
    torch.testing.assert_close(warp(moving, compose(first, second))[inside], twice[inside], atol=1e-5, rtol=0)


def test_exponential_of_a_constant_velocity_is_a_translation():
    velocity = constant(1.5, -2.25, 0.1)
    torch.testing.assert_close(integrate(velocity), velocity, atol=1e-5, rtol=0)


def test_exponential_of_a_linear_velocity_is_a_scaling():
    # dx/dt = a x ends at exp(a) x; a < 0 stays inside the grid.
    a = -0.5
    expected = (math.exp(a) - 1) * from_centre()
    torch.testing.assert_close(integrate(a * from_centre()), expected, atol=5e-3, rtol=0)


def test_exponential_of_the_negative_velocity_is_the_inverse():
    velocity = smooth_velocity(2.0)
    forward, backward = integrate(velocity), integrate(-velocity)
    assert compose(backward, forward).abs().max() < 0.1
    assert compose(forward, backward).abs().max() < 0.1
    assert compose(-forward, forward).abs().max() > 0.5  # negation is none


def test_parts_of_the_way_compose_to_the_whole():
    velocity = smooth_velocity(2.0)
    whole = integrate(velocity)
    parts = compose(integrate(0.3 * velocity), integrate(0.7 * velocity))
    torch.testing.assert_close(parts, whole, atol=0.03, rtol=0)
    assert (0.5 * whole - integrate(0.5 * velocity)).abs().max() > 0.1  # half of the displacement is another field


def test_linear_map_keeps_the_centre_and_scales_distances_from_it():
    displacement = affine_displacement(2 * torch.eye(3)[None], (5, 5, 7), (1.0, 2.0, 3.0))
    assert displacement[0, :, 2, 2, 3].tolist() == [0, 0, 0]
    torch.testing.assert_close(displacement, from_centre((5, 5, 7)))


def test_rotation_on_anisotropic_voxels_keeps_distances_in_mm():
    shape, spacing_mm = (4, 5, 6), (3.0, 1.0, 0.5)
    rotation = turn(35, 0, 2) @ turn(20, 1, 2)
    displacement = affine_displacement(rotation[None], shape, spacing_mm)
    spacing = torch.tensor(spacing_mm).view(1, 3, 1, 1, 1)
    before, after = from_centre(shape) * spacing, (from_centre(shape) + displacement) * spacing
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))
    torch.testing.assert_close(after, torch.einsum("ij,njdhw->nidhw", rotation, before), atol=1e-5, rtol=0)


def test_quarter_turn_reaches_half_as_many_voxels_of_twice_the_size():
    # 2 mm along H (2 voxels of 1 mm) turn into 2 mm along W: 1 voxel of 2 mm.
    displacement = affine_displacement(turn(90, 1, 2)[None], (1, 5, 5), (1.0, 1.0, 2.0))
    assert displacement[0, :, 0, 4, 2].tolist() == pytest.approx([0, -2, 1], abs=1e-6)


def test_each_sample_has_its_own_matrix():
    matrices = torch.stack([torch.eye(3), 2 * torch.eye(3)])
    displacement = affine_displacement(matrices, SHAPE, (1.0, 1.0, 1.0))
    assert displacement[0].abs().max() == 0
    torch.testing.assert_close(displacement[1:], from_centre())


def test_resizing_aligns_the_corners():
    ramp = torch.arange(5.0).view(1, 1, 1, 1, 5).expand(1, 1, 3, 3, 5)
    assert resize(ramp, (3, 3, 9))[0, 0, 0, 0].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4])
