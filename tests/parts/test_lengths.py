"""Lengths in mm that stand for a share of the anatomy grow with the scans."""

import pytest
import torch

from stages.parts.augmentation import SpatialAugmentation
from stages.parts.lengths import unit_mm


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.4, 0.4, 5.0), (2.0, 2.0, 2.0), (8.0, 1.5, 1.5)])
def test_scans_of_people_keep_their_mm(spacing):
    assert unit_mm(spacing) == 1


@pytest.mark.parametrize("factor", [1e-3, 0.1, 0.05, 10, 20, 1000])
def test_scans_of_another_size_are_measured_by_that_size(factor):
    assert unit_mm((1.05 * factor, 1.4 * factor, 1.1 * factor)) == pytest.approx(factor)


@pytest.mark.parametrize("factor", [0.1, 20, 1000])
def test_an_augmentation_bends_scans_of_any_size_alike(factor):
    augmentation = SpatialAugmentation(elastic_mm=3.0, elastic_knots_mm=5.0)
    spacing = (1.0, 1.2, 1.4)

    fields = [
        augmentation.displacement(1, (12, 10, 8), tuple(mm * f for mm in spacing), torch.Generator().manual_seed(0))
        for f in (1, factor)
    ]

    assert fields[0].abs().max() > 1
    assert torch.allclose(*fields, atol=1e-4)
