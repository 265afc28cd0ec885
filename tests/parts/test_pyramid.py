"""Levels follow the voxel size."""

import torch

from stages.parts.augmentation import gaussian_blur
from stages.parts.pyramid import Level, blurred, levels_of, shrunk


def test_isotropic_grids_are_halved_along_all_axes_while_8_voxels_are_left():
    shapes = [level.shape for level in levels_of((48, 64, 40), (1.0, 1.0, 1.0), 5)]
    assert shapes == [(48, 64, 40), (24, 32, 20), (12, 16, 10), (12, 8, 10), (12, 8, 10)]


def test_thick_slices_wait_until_the_others_are_as_long():
    levels = levels_of((20, 128, 128), (8.0, 1.0, 1.0), 5)
    assert [level.shape for level in levels] == [(20, 128, 128), (20, 64, 64), (20, 32, 32), (10, 16, 16), (10, 8, 8)]
    assert levels[2].spacing[0] == 8.0 and 4 < levels[2].spacing[1] < 4.1


def test_levels_cover_the_same_extent():
    for level in levels_of((21, 64, 50), (4.0, 1.0, 1.5), 4):
        edges = [(n - 1) * mm for n, mm in zip(level.shape, level.spacing, strict=True)]
        assert torch.allclose(torch.tensor(edges), torch.tensor([80.0, 63.0, 73.5]))


def test_windows_are_as_long_in_mm_as_slices_allow():
    assert Level((20, 128, 128), (2.0, 1.0, 1.0)).window(9) == (5, 9, 9)
    assert Level((20, 128, 128), (10.0, 1.0, 1.0)).window(9) == (3, 9, 9)
    assert Level((6, 6, 128), (1.0, 1.0, 1.0)).window(9) == (5, 5, 9)
    level = Level((20, 128, 128), (10.0, 1.0, 1.0))
    assert level.strides(level.window(9)) == (1, 2, 2)


def test_blur_of_one_width_is_the_gaussian_blur_channel_by_channel():
    image = torch.rand(2, 3, 9, 10, 11)
    expected = torch.cat([gaussian_blur(image[:, k : k + 1], 1.2) for k in range(3)], 1)
    assert torch.allclose(blurred(image, [1.2] * 3), expected, atol=1e-6)


def test_axes_that_stay_are_not_smoothed():
    image = torch.rand(1, 1, 9, 16, 16)
    image[:] = image[:, :, :, :1, :1]  # changes along D alone
    assert torch.allclose(shrunk(image, (9, 8, 8))[..., 0, 0], image[..., 0, 0], atol=1e-6)
    assert shrunk(image, (9, 16, 16)) is image
