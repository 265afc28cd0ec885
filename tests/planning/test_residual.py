"""Scalings that are left after alignment, of displacements whose scaling is known."""

import numpy as np
import pytest

from stages.planning.residual import residual_scaling

SHAPE = (12, 20, 24)


def box():
    label = np.zeros(SHAPE, np.uint8)
    label[3:9, 5:15, 6:18] = 1
    return label


def scaled(factor, axis):
    """The displacement that stretches along an axis about the grid's centre."""
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")).astype(np.float32)
    field = np.zeros_like(grid)
    field[axis] = (factor - 1) * grid[axis]
    return field


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
@pytest.mark.parametrize("axis", [0, 2])
def test_a_scaling_is_found_on_thick_slices(factor, axis):
    found = residual_scaling(scaled(factor, axis), box(), (5.0, 1.0, 1.5))
    assert found == pytest.approx(abs(np.log(factor)), abs=0.01)


def test_a_shift_is_no_scaling():
    shift = np.ones((3, *SHAPE), np.float32)
    assert residual_scaling(shift, box(), (1.0, 1.0, 1.0)) == pytest.approx(0, abs=1e-5)


def test_structures_without_extent_say_nothing():
    flat = np.zeros(SHAPE, np.uint8)
    flat[4, 5:10, 6:12] = 1
    assert residual_scaling(scaled(1.2, 1), flat, (1.0, 1.0, 1.0)) == 0
    assert residual_scaling(scaled(1.2, 1), np.zeros(SHAPE, np.uint8), (1.0, 1.0, 1.0)) == 0
