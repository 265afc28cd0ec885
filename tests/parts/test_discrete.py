"""The discrete start on shifts that gradient descent does not find, and its features on inverted contrast."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from stages.parts.discrete import convex_displacement, mind_ssc, start_velocity
from stages.parts.warps import integrate, rescale, warp

SHAPE = (40, 48, 44)


def blobs(places, shape=SHAPE, width=3.0):
    """Bright Gaussians, (1, 1, D, H, W) in [0, 1]."""
    image = np.zeros(shape)
    for place in places:
        image[tuple(place)] = 1
    image = gaussian_filter(image, width)
    return torch.from_numpy(image / image.max()).float()[None, None]


def texture(seed=0, shape=SHAPE, width=2.0):
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), width)
    return torch.from_numpy((noise - noise.min()) / np.ptp(noise)).float()[None, None]


def inside(field, margin=10):
    return field[..., margin:-margin, margin:-margin, margin:-margin]


def test_mind_does_not_change_with_gain_offset_and_sign():
    image = texture()
    features = mind_ssc(image)
    assert features.shape == (1, 12, *SHAPE)
    assert float(features.amin()) >= 0 and float(features.amax()) == 1
    assert torch.allclose(mind_ssc(1 - 0.5 * image), features, atol=1e-4)


def test_mind_of_a_flat_image_says_nothing():
    assert torch.equal(mind_ssc(torch.full((1, 2, 5, 6, 7), 0.3)), torch.ones(1, 24, 5, 6, 7))


def test_mind_of_two_channels_is_that_of_each():
    first, second = texture(0), texture(1)
    both = mind_ssc(torch.cat([first, second], 1))
    assert torch.allclose(both[:, :12], mind_ssc(first), atol=1e-6)
    assert torch.allclose(both[:, 12:], mind_ssc(second), atol=1e-6)


def test_equal_features_give_no_displacement():
    features = mind_ssc(texture())
    assert float(convex_displacement(features, features).abs().max()) == 0


def test_whole_shifts_are_found():
    features = mind_ssc(texture())
    shift = torch.tensor([2.0, -1.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    found = convex_displacement(features, warp(features, shift))
    assert torch.allclose(inside(found), inside(shift), atol=0.05)


def test_the_start_is_a_velocity_of_the_shift():
    moving = texture(width=4.0)
    shift = torch.tensor([0.0, 8.0, -4.0]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    velocity = start_velocity(moving, warp(moving, shift), (1.0, 1.0, 1.0))
    assert velocity.shape[2:] == (10, 12, 11)
    found = rescale(integrate(velocity), SHAPE)
    assert inside(found - shift, 14).abs().mean() < 1.0


def test_contrast_does_not_matter():
    moving = texture(width=4.0)
    shift = torch.tensor([0.0, 8.0, -4.0]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    fixed = warp(moving, shift)
    same, other = (start_velocity(moving, image, (1.0, 1.0, 1.0)) for image in (fixed, 1 - fixed))
    assert (same - other).abs().mean() < 0.05


def test_thick_slices_are_searched_in_whole_slices():
    velocity = start_velocity(texture(0, (12, 64, 64)), texture(1, (12, 64, 64)), (8.0, 1.0, 1.0))
    assert velocity.shape[2:] == (12, 16, 16)
