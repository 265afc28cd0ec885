"""Random changes of space and intensity: what each setting does, and that nothing else is random."""

import math
from typing import get_args

import pytest
import torch

from stages.config import Augmentation
from stages.parts.augmentation import (
    AUGMENTATIONS,
    IntensityAugmentation,
    SpatialAugmentation,
    brighten,
    gaussian_blur,
    rotation_matrix,
    uniform,
)
from stages.parts.warps import voxel_grid, warp

SHAPE = (7, 8, 9)
SPACING_MM = (2.0, 1.0, 0.5)
NO_SPACE = {"degrees": 0.0, "scale": (1.0, 1.0)}
NO_INTENSITY = {"gamma": (1.0, 1.0), "contrast": (1.0, 1.0), "brightness": 0.0, "bias": 0.0, "noise": 0.0, "blur": 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(*size, seed=0):
    return torch.rand(size, generator=generator(seed))


def field(seed=0, count=2, shape=SHAPE, spacing_mm=SPACING_MM, **settings):
    return SpatialAugmentation(**settings).displacement(count, shape, spacing_mm, generator(seed))


def from_centre(shape=SHAPE):
    centre = (torch.tensor(shape) - 1) / 2
    return voxel_grid(shape, torch.zeros(1)) - centre.view(1, 3, 1, 1, 1)


# Space


def test_settings_that_change_nothing_give_zero_displacement():
    displacement = field(**NO_SPACE)
    assert displacement.shape == (2, 3, *SHAPE)
    assert displacement.abs().max() < 1e-5


@pytest.mark.parametrize("augment", [{"degrees": 20.0}, {"elastic": 3.0}, {"degrees": 20.0, "elastic": 3.0}])
def test_probability_zero_gives_zero_displacement(augment):
    assert field(**augment, probability=0.0).abs().max() < 1e-5


def test_probability_is_the_share_of_samples_that_move():
    moved = field(count=400, shape=(2, 2, 2), probability=0.3).flatten(1).abs().amax(1) > 1e-3
    assert 0.2 < float(moved.float().mean()) < 0.4


@pytest.mark.parametrize("name", ["rotate-scale", "strong"])
def test_the_same_generator_state_gives_the_same_displacement_and_another_one_another(name):
    space = AUGMENTATIONS[name][0]
    first, second, third = (space.displacement(2, SHAPE, SPACING_MM, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert (first - third).abs().max() > 0.1
    assert (first[0] - first[1]).abs().max() > 0.1  # each sample its own


@pytest.mark.parametrize(
    ("axis", "expected"),
    # A quarter turn about an axis: the next axis goes to the one after it.
    [
        (0, [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
        (1, [[0, 0, -1], [0, 1, 0], [1, 0, 0]]),
        (2, [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    ],
)
def test_quarter_turns_about_each_axis(axis, expected):
    angles = torch.zeros(1, 3)
    angles[0, axis] = math.pi / 2
    torch.testing.assert_close(rotation_matrix(angles)[0], torch.tensor(expected).float(), atol=1e-6, rtol=0)


def test_rotations_are_applied_in_the_order_of_the_axes():
    angles = torch.tensor([[math.pi / 2, math.pi / 2, 0.0]])
    both = rotation_matrix(angles)[0]
    one_by_one = (
        rotation_matrix(angles * torch.tensor([0, 1, 0]))[0] @ rotation_matrix(angles * torch.tensor([1, 0, 0]))[0]
    )
    torch.testing.assert_close(both, one_by_one)


def test_rotation_keeps_distances_in_mm_and_stays_within_its_angle():
    displacement = field(count=50, degrees=20.0, scale=(1.0, 1.0))
    spacing = torch.tensor(SPACING_MM).view(1, 3, 1, 1, 1)
    before = from_centre() * spacing
    after = before + displacement * spacing
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1).expand(50, *SHAPE), atol=1e-4, rtol=0)
    cosine = (after * before).sum(1) / before.square().sum(1).clamp(min=1e-6)
    angle = cosine[:, 0, 0, 0].clamp(-1, 1).acos().rad2deg()
    assert 5 < angle.max() < 3 * 20


def test_scale_two_shows_the_middle_twice_as_large():
    displacement = field(count=1, degrees=0.0, scale=(2.0, 2.0))
    torch.testing.assert_close(displacement, -0.5 * from_centre(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("anisotropic", [False, True])
def test_scales_are_drawn_per_axis_only_where_asked(anisotropic):
    displacement = field(count=1, degrees=0.0, scale=(0.5, 2.0), anisotropic=anisotropic)
    corner = displacement[0, :, -1, -1, -1] / from_centre()[0, :, -1, -1, -1]
    assert (float(corner.max() - corner.min()) > 0.01) == anisotropic
    assert corner.min() >= 1 / 2.0 - 1 and corner.max() <= 1 / 0.5 - 1


def test_elastic_deformation_is_as_long_along_all_axes_smooth_and_bounded_by_its_amplitude():
    shape = (17, 17, 17)
    displacement = field(count=40, shape=shape, spacing_mm=(4.0, 1.0, 1.0), elastic=2.0, **NO_SPACE)
    std = displacement.std((0, 2, 3, 4))
    assert 3.2 < float(std[1] / std[0]) < 4.8  # the same mm on voxels of 4 mm and 1 mm
    assert 0.4 < float(std[1]) < 2.0
    for axis in (2, 3, 4):
        assert displacement.diff(dim=axis).std() < 0.5 * displacement.std()


# Intensity


def test_intensity_settings_that_change_nothing_give_the_image_back():
    image = textured(2, 1, *SHAPE)
    torch.testing.assert_close(IntensityAugmentation(**NO_INTENSITY)(image, generator()), image)


@pytest.mark.parametrize("name", NO_INTENSITY)
def test_every_intensity_setting_changes_the_image(name):
    settings = NO_INTENSITY | {name: getattr(IntensityAugmentation(), name)}
    image = 0.2 + 0.5 * textured(24, 1, *SHAPE)
    changed = IntensityAugmentation(**settings)(image, generator())
    assert (changed - image).abs().max() > 0.01


def test_gamma_contrast_and_brightness_do_what_their_formulas_say():
    image = textured(1, 1, *SHAPE)
    changed = IntensityAugmentation(**NO_INTENSITY | {"gamma": (2.0, 2.0)})(image, generator())
    torch.testing.assert_close(changed, image**2)
    changed = IntensityAugmentation(**NO_INTENSITY | {"contrast": (0.5, 0.5)})(image, generator())
    torch.testing.assert_close(changed, 0.5 * (image + image.mean()))
    changed = IntensityAugmentation(**NO_INTENSITY | {"brightness": 0.1})(0.2 + 0.5 * image, generator())
    difference = changed - (0.2 + 0.5 * image)
    assert 0 < float(difference.abs().max()) <= 0.1
    assert float(difference.std()) < 1e-6


@pytest.mark.parametrize("fill", [0.0, 1.0, None])
def test_strongest_intensity_change_stays_in_range_and_finite(fill):
    image = textured(16, 1, *SHAPE) if fill is None else torch.full((16, 1, *SHAPE), fill)
    changed = IntensityAugmentation(bias=1.0, noise=0.5, blur=3.0)(image, generator())
    assert changed.isfinite().all()
    assert changed.min() >= 0 and changed.max() <= 1.5


def test_the_same_generator_state_gives_the_same_image():
    image = textured(2, 1, *SHAPE)
    first, second, third = (IntensityAugmentation()(image, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_about_half_of_the_images_stay_sharp():
    image = torch.zeros(60, 1, 5, 5, 5)
    image[:, :, 2, 2, 2] = 1
    changed = IntensityAugmentation(**NO_INTENSITY | {"blur": 3.0})(image, generator())
    sharp = (changed[:, 0, 2, 2, 2] > 0.99).float().mean()
    assert 0.35 < float(sharp) < 0.7


# Blur


def test_blur_keeps_a_constant_up_to_the_border():
    image = torch.full((1, 1, *SHAPE), 0.7)
    torch.testing.assert_close(gaussian_blur(image, 1.5), image)


def test_blur_spreads_a_voxel_like_a_gaussian_and_keeps_its_mass():
    image = torch.zeros(1, 1, 21, 21, 21)
    image[..., 10, 10, 10] = 1
    blurred = gaussian_blur(image, 1.5)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    ratio = math.exp(-0.5 * (2 / 1.5) ** 2)
    for index in ((8, 10, 10), (10, 12, 10), (10, 10, 8)):
        assert float(blurred[0, 0][index] / blurred[0, 0, 10, 10, 10]) == pytest.approx(ratio, rel=1e-4)


def test_little_or_negative_blur_returns_the_image():
    image = textured(1, 1, *SHAPE)
    assert gaussian_blur(image, 0.3) is image
    assert gaussian_blur(image, -1.0) is image


# Draws


def test_uniform_stays_within_its_bounds():
    values = uniform((1000,), -2.0, 3.0, generator())
    assert values.min() >= -2 and values.max() <= 3
    assert float(values.mean()) == pytest.approx(0.5, abs=0.2)


def test_rotate_scale_turns_20_degrees_and_scales_by_a_quarter():
    space, intensity = AUGMENTATIONS["rotate-scale"]
    assert (space.degrees, space.scale, space.elastic, intensity) == (20, (0.75, 1.25), 0, None)
    assert AUGMENTATIONS["none"] == (None, None)


def test_every_augmentation_that_the_configuration_names_is_there():
    assert set(get_args(Augmentation)) == set(AUGMENTATIONS)


def test_augmentation_moves_content_as_its_displacement_says():
    # Enlarging by 2 about the centre: the marked voxel one step from it appears two steps from it.
    image = torch.zeros(1, 1, 7, 7, 7)
    image[..., 3, 3, 4] = 1
    displacement = field(count=1, shape=(7, 7, 7), spacing_mm=(1.0, 1.0, 1.0), degrees=0.0, scale=(2.0, 2.0))
    assert warp(image, displacement)[0, 0, 3, 3, 5] == pytest.approx(1, abs=1e-5)


def test_brightness_is_a_factor_and_contrast_one_about_the_mean_and_both_stay_in_range():
    image = torch.tensor([0.1, 0.3, 0.8]).view(1, 1, 1, 1, 3).repeat(3, 1, 1, 1, 1)
    brightness, contrast = (torch.tensor(x).view(3, 1, 1, 1, 1) for x in ([0.5, 1.0, 1.3], [1.0, 0.5, 1.3]))
    found = brighten(image, brightness, contrast).flatten(1)
    assert found[0].tolist() == pytest.approx([0.05, 0.15, 0.4])
    assert found[1].tolist() == pytest.approx([0.25, 0.35, 0.6])
    mean = (0.13 + 0.39 + 1) / 3  # 1.04 is cut to 1, then again
    assert found[2].tolist() == pytest.approx([mean + 1.3 * (0.13 - mean), mean + 1.3 * (0.39 - mean), 1], rel=1e-5)
