"""Images of several channels in the parts: each channel counts by itself, and one channel is what it always was."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import SHAPE, config, generator, textured

from stages.errors import LrlsError
from stages.methods import METHODS, check_channels, settings_of
from stages.methods.recipe import Task
from stages.parts import losses
from stages.parts.augmentation import IntensityAugmentation, gaussian_blur
from stages.parts.channels import as_array, as_images, first_channel
from stages.parts.classical import no_displacement, syn_displacement
from stages.parts.instance import InstanceOptimisation
from stages.parts.voting import vote

ABLE = [name for name, method in METHODS.items() if method.channels]


def two(*size, seed=0):
    """Two images of two channels, and their channels as images of one."""
    images = [textured(2, 2, *size, seed=seed), textured(2, 2, *size, seed=seed + 1)]
    return images, [[image[:, k : k + 1] for image in images] for k in (0, 1)]


def test_local_correlation_is_that_of_each_channel():
    images, (first, second) = two(9, 10, 11)
    result = losses.lncc(*images)

    assert result.shape == (2, 2, 9, 10, 11)
    torch.testing.assert_close(result[:, :1], losses.lncc(*first))
    torch.testing.assert_close(result[:, 1:], losses.lncc(*second))
    # One channel that fits and one that does not fit at all: the mean of 1 and 0.
    flat = torch.cat([images[0][:, :1], torch.zeros(2, 1, 9, 10, 11)], 1)
    assert losses.lncc(flat, flat).mean() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("similarity", ["lncc_loss", "mutual_information", "ms_ssim"])
def test_the_similarity_of_two_channels_is_the_mean_of_each(similarity):
    images, channels = two(12, 13, 14)
    of_each = [getattr(losses, similarity)(*pair) for pair in channels]

    torch.testing.assert_close(getattr(losses, similarity)(*images), torch.stack(of_each).mean())


def test_a_blurred_channel_is_what_it_is_alone():
    image = textured(2, 3, 7, 8, 9)

    for k in range(3):
        torch.testing.assert_close(gaussian_blur(image, 1.2)[:, k : k + 1], gaussian_blur(image[:, k : k + 1], 1.2))


def test_intensities_of_channels_change_independently():
    same = textured(1, 1, 9, 10, 11).repeat(1, 2, 1, 1, 1)
    changed = IntensityAugmentation(noise=0, blur=0)(same, generator(3))

    assert float((changed[:, 0] - changed[:, 1]).abs().mean()) > 0.02


def test_intensities_of_one_channel_are_drawn_as_they_always_were():
    drawn = generator(3)
    changed = IntensityAugmentation()(torch.rand(2, 1, 9, 10, 11, generator=generator(1)), drawn)
    values = [float(value) for value in (changed.mean(), changed.std(), changed[0, 0, 4, 5, 6], changed[1, 0, 2, 3, 4])]

    # computed before images had channels
    assert values == pytest.approx([0.539762, 0.237017, 0.233957, 0.680838], abs=1e-5)
    assert float(torch.rand((), generator=drawn)) == pytest.approx(0.836728572845459)


def test_arrays_have_a_channel_axis_only_where_there_are_several():
    one, several = np.ones((3, 4, 5), np.float16), np.ones((2, 3, 4, 5), np.float16)

    assert (as_images(one).shape, as_images(several).shape) == ((1, 1, 3, 4, 5), (1, 2, 3, 4, 5))
    assert (as_array(as_images(one)).shape, as_array(as_images(several)).shape) == ((3, 4, 5), (2, 3, 4, 5))
    assert (first_channel(one).shape, first_channel(several).shape) == ((3, 4, 5), (3, 4, 5))


def test_ties_go_to_the_atlas_that_is_more_similar_in_the_mean_of_its_channels():
    scan = textured(2, 8, 8, 8).numpy()
    other = textured(2, 8, 8, 8, seed=1).numpy()
    label = np.ones((8, 8, 8), np.uint8)
    label[4:] = 2
    half, whole = np.stack([scan[0], other[1]]), scan
    still = [np.zeros((3, 8, 8, 8), np.float32)] * 2

    for atlases in ([(half, label), (whole, 3 - label)], [(whole, 3 - label), (half, label)]):
        assert vote(atlases, still, scan, 3).argmax(0).numpy().tolist() == (3 - label).tolist()


def blob(shift, shape=(16, 16, 16)):
    """A bright ball, moved by voxels along the last axis."""
    d, h, w = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    return np.exp(-(d**2 + h**2 + (w - shift) ** 2) / 18).astype(np.float32)


FLAT = np.zeros((16, 16, 16), np.float32)


@pytest.mark.parametrize("by", ["instance", "syn"])
def test_what_only_the_second_channel_shows_is_registered(by):
    moving, fixed = np.stack([FLAT, blob(0.0)]), np.stack([FLAT, blob(2.0)])
    if by == "syn":
        field = syn_displacement(moving, fixed, (1.0, 1.0, 1.0), 0, iterations=(20, 10, 0), metric="cc")
    else:
        field = InstanceOptimisation(30, 20)(as_images(moving), as_images(fixed))[0].numpy()

    at_ball = blob(2.0) > 0.6
    assert field.shape == (3, 16, 16, 16)
    assert field[2][at_ball].mean() == pytest.approx(-2, abs=0.7)  # pulls from where the ball was
    assert abs(field[0][at_ball].mean()) < 0.5


def test_no_displacement_has_no_channels():
    assert no_displacement(np.stack([FLAT, FLAT]), np.stack([FLAT, FLAT]), (1.0, 1.0, 1.0), 0).shape == (3, 16, 16, 16)


@pytest.mark.parametrize("name", ABLE)
def test_networks_take_as_many_channels_as_the_scans_have(name):
    for channels in (1, 2):
        settings = settings_of(METHODS[name], config(**{name: {"preset": "light"}}))
        recipe = METHODS[name].recipe(Task(SHAPE, 3, 2, channels=channels), settings)
        image = textured(1, channels, *SHAPE)
        if (network := recipe.answer.network) is not None:
            assert network(image).shape == (1, 3, *SHAPE)
        if isinstance(recipe.answer.registers, torch.nn.Module):
            assert recipe.answer.registers(image, image).shape == (1, 3, *SHAPE)


def test_the_page_of_scans_lists_the_methods_that_take_several_channels():
    page = (Path(__file__).parents[2] / "docs" / "scans.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^- (`best`.*?) take\n", page, re.MULTILINE | re.DOTALL)

    assert sorted(re.findall(r"`([a-z-]+)`", line)) == sorted(ABLE)


def test_other_methods_say_which_ones_take_several_channels():
    assert set(ABLE) >= {"best", "unet", "supervised", "affine", "syn", "voxelmorph", "brbs"}
    for name, method in METHODS.items():
        check_channels(method, 1)
        if name in ABLE:
            check_channels(method, 2)
            continue
        with pytest.raises(LrlsError) as error:
            check_channels(method, 2)
        assert str(error.value) == (
            f"{name} learns from one image per scan, and the scans have 2 channels (_0000, ...); choose one of: "
            f"{', '.join(ABLE)}; or keep one channel in data.images."
        )
