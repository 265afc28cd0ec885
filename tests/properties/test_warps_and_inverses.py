"""Warps: there and back, one after the other, and on other grids."""

from __future__ import annotations

import torch
from drawn import examples, numbers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.parts.warps import (
    affine_displacement,
    compose,
    integrate,
    one_hot,
    rescale,
    resize,
    squarings_for,
    voxel_grid,
    warp,
    warp_label,
    warp_one_hot,
    warp_probabilities,
)

SHAPES = st.tuples(st.integers(14, 20), st.integers(14, 20), st.integers(14, 20))
EDGE = 5  # voxels at each face, where what lies outside counts


def smooth(shape: tuple[int, ...], largest: float, seed: int, knots: int = 4) -> Tensor:
    """A displacement or velocity, (1, 3, D, H, W): random at a few knots, at most so many voxels, 0 at the faces."""
    coarse = torch.rand(1, 3, knots, knots, knots, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    inside = torch.zeros_like(coarse)
    inside[..., 1:-1, 1:-1, 1:-1] = coarse[..., 1:-1, 1:-1, 1:-1]
    field = resize(inside, shape)
    return field * largest / field.abs().max().clamp(min=1e-6)


def blob(shape: tuple[int, ...], seed: int) -> Tensor:
    """A smooth image in [0, 1], (1, 1, D, H, W)."""
    return resize(torch.rand(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(seed)), shape)


@examples(15)
@given(shape=SHAPES, largest=numbers(0.0, 2.5, 2), seed=st.integers(0, 999))
def test_a_velocity_and_its_negative_undo_each_other(shape, largest, seed):
    velocity = smooth(shape, largest, seed)
    steps = squarings_for(velocity)
    there, back = integrate(velocity, steps=steps), integrate(-velocity, steps=steps)
    for both in (compose(there, back), compose(back, there)):
        assert both.abs().max() < 0.02 + 0.2 * largest  # a field has kinks at its knots, and is interpolated linearly
    image = blob(shape, seed + 1)
    assert (warp(warp(image, there), back) - image).abs().mean() < 0.02 * (0.1 + largest)
    assert squarings_for(velocity) == squarings_for(-velocity)


@examples(15)
@given(shape=SHAPES, largest=numbers(0.1, 2.0, 2), share=numbers(0.1, 0.9, 2), seed=st.integers(0, 999))
def test_two_parts_of_a_way_are_the_way(shape, largest, share, seed):
    velocity = smooth(shape, largest, seed)
    first, second = integrate(share * velocity), integrate((1 - share) * velocity)
    apart = (compose(first, second) - integrate(velocity)).abs().max()
    assert apart < 0.02 + 0.15 * largest


@examples(15)
@given(shape=SHAPES, amounts=st.tuples(numbers(0, 1.5, 2), numbers(0, 1.5, 2)), seed=st.integers(0, 999))
def test_one_warp_after_another_is_the_warp_of_their_composition(shape, amounts, seed):
    outer, inner = smooth(shape, amounts[0], seed), smooth(shape, amounts[1], seed + 1)
    image = blob(shape, seed + 2)
    twice, once = warp(warp(image, outer), inner), warp(image, compose(outer, inner))
    assert (twice - once).abs().max() < 0.15 and (twice - once).abs().mean() < 0.02  # interpolated twice, and once


@examples(15)
@given(shape=SHAPES, shift=st.tuples(*[st.integers(-4, 4)] * 3), seed=st.integers(0, 999), steps=st.integers(1, 8))
def test_a_constant_velocity_moves_everything_by_itself(shape, shift, seed, steps):
    constant = torch.tensor(shift).float().view(1, 3, 1, 1, 1).expand(1, 3, *shape)
    displacement = integrate(constant, steps=steps)
    torch.testing.assert_close(displacement, constant, atol=1e-4, rtol=1e-4)
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    moved = torch.roll(image, [-n for n in shift], (2, 3, 4))
    inside = (..., *[slice(EDGE, n - EDGE) for n in shape])
    torch.testing.assert_close(warp(image, displacement)[inside], moved[inside], atol=2e-3, rtol=0)


@examples(15)
@given(
    shape=SHAPES, other=SHAPES, shift=st.tuples(*[numbers(-2, 2)] * 3), factors=st.tuples(*[numbers(0.8, 1.25)] * 3),
    spacing=st.tuples(*[numbers(0.5, 3)] * 3),
)  # fmt: skip
def test_scalings_and_shifts_are_the_same_on_a_finer_or_a_coarser_grid(shape, other, shift, factors, spacing):
    scaling = affine_displacement(torch.diag(torch.tensor(factors))[None], shape, spacing)
    offset = voxel_grid(shape, scaling) - (torch.tensor(shape).view(1, 3, 1, 1, 1) - 1) / 2
    torch.testing.assert_close(scaling, offset * (torch.tensor(factors).view(1, 3, 1, 1, 1) - 1), atol=1e-4, rtol=1e-4)

    field = scaling + torch.tensor(shift).view(1, 3, 1, 1, 1)
    there = rescale(field, other)
    ratio = (torch.tensor(other) - 1) / (torch.tensor(shape) - 1)
    centre = ((torch.tensor(other) - 1) / 2).view(1, 3, 1, 1, 1)
    expected = (voxel_grid(other, field) - centre) * (torch.tensor(factors).view(1, 3, 1, 1, 1) - 1)
    expected = expected + (torch.tensor(shift) * ratio).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(there, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(rescale(there, shape), field, atol=1e-3, rtol=1e-3)


@examples(15)
@given(shape=SHAPES, largest=numbers(0, 30, 1), classes=st.integers(2, 6), seed=st.integers(0, 999))
def test_however_far_labels_are_warped_they_stay_shares_and_classes(shape, largest, classes, seed):
    label = torch.randint(0, classes, (1, *shape), generator=torch.Generator().manual_seed(seed))
    displacement = smooth(shape, largest, seed + 1)
    shares = warp_one_hot(label, displacement, classes)
    torch.testing.assert_close(shares, warp_probabilities(one_hot(label, classes), displacement), atol=1e-4, rtol=0)
    torch.testing.assert_close(shares.sum(1), torch.ones(1, *shape), atol=1e-5, rtol=0)
    assert shares.min() > -1e-4 and shares.max() < 1 + 1e-4
    nearest = warp_label(label, displacement)
    assert nearest.dtype == label.dtype and set(nearest.unique().tolist()) <= {0, *label.unique().tolist()}
