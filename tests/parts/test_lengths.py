"""Lengths follow the scans: what is told in mm, what is told in voxels, and spacings in messages."""

import pytest
import torch

from stages.parts.augmentation import AUGMENTATIONS
from stages.parts.lengths import as_setting, unit_mm, with_fewer_voxels


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.4, 0.4, 5.0), (2.0, 2.0, 2.0), (8.0, 1.5, 1.5)])
def test_scans_of_people_keep_their_mm(spacing):
    assert unit_mm(spacing) == 1


@pytest.mark.parametrize("factor", [1e-3, 0.1, 0.05, 10, 20, 1000])
def test_scans_of_another_size_are_measured_by_that_size(factor):
    assert unit_mm((1.05 * factor, 1.4 * factor, 1.1 * factor)) == pytest.approx(factor)


@pytest.mark.parametrize("spacing", [(1.0, 1.2, 1.4), (3.1, 3.1, 3.1), (9.0, 1.5, 1.5)])
@pytest.mark.parametrize("factor", [1 / 20, 0.37, 1000])
@pytest.mark.parametrize("name", ["rotate-scale", "affine", "mild", "strong"])
def test_an_augmentation_bends_scans_of_any_size_alike(name, factor, spacing):
    augmentation = AUGMENTATIONS[name][0]

    fields = [
        augmentation.displacement(1, (12, 10, 8), tuple(mm * f for mm in spacing), torch.Generator().manual_seed(1))
        for f in (1, factor)
    ]

    assert fields[0].abs().max() > 0.5
    assert torch.allclose(*fields, atol=1e-4)


def test_fewer_voxels_leave_thick_slices_as_they_are():
    assert with_fewer_voxels((2.0, 2.0, 2.0), 8) == pytest.approx((4.0, 4.0, 4.0))
    assert with_fewer_voxels((10.0, 1.5, 1.5), 4) == pytest.approx((10.0, 3.0, 3.0))
    assert with_fewer_voxels((1.0, 1.0, 4.0), 4) == pytest.approx((2.0, 2.0, 4.0))


def test_a_spacing_is_written_as_the_configuration_has_it():
    assert as_setting((1.25, 1.25, 1.25)) == "1.25"
    assert as_setting((10.0, 1.3, 1.3)) == "[10, 1.3, 1.3]"
