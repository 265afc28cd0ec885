"""Folds on fields whose determinants are known, and velocities that fold."""

import pytest
import torch

from stages.parts.folding import folding_losses, least_determinant, without_folds
from stages.parts.metrics import folding_fraction, jacobian_determinant
from stages.parts.warps import integrate, rescale, voxel_grid

SHAPE = (10, 12, 14)


def linear(*factors):
    """u(x) = (factor - 1) x along each axis."""
    grid = voxel_grid(SHAPE, torch.zeros(1))
    return grid * (torch.tensor(factors).view(1, 3, 1, 1, 1) - 1)


@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (2.0, 0.5, 1.0), (0.3, 1.0, 1.5), (-1.0, 1.0, 1.0)])
def test_the_determinant_of_scalings_and_mirrors(factors):
    product = factors[0] * factors[1] * factors[2]
    assert torch.allclose(least_determinant(linear(*factors)), torch.tensor(product), atol=1e-5)


def test_one_voxel_that_passes_its_neighbour_is_found_where_central_differences_see_nothing():
    field = torch.zeros(1, 3, *SHAPE)
    field[:, 2, 5, 6, 7] = 1.5  # beyond the next voxel
    assert float(folding_fraction(jacobian_determinant(field))[0]) == 0
    assert least_determinant(field)[0, 5, 6, 7] < 0


def test_the_loss_is_what_the_determinant_lacks():
    assert float(folding_losses(linear(1.0, 1.0, 1.0))) == 0
    assert float(folding_losses(linear(0.1, 1.0, 1.0), least=0.2)) == pytest.approx(0.1, abs=1e-5)
    assert float(folding_losses(linear(-1.0, 1.0, 1.0), least=0.2)) == pytest.approx(1.2, abs=1e-5)


def displacement_of(velocity):
    return rescale(integrate(velocity, steps=6), (20, 24, 28))


def rough(seed, height):
    return torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(seed)) * height


@pytest.mark.parametrize("seed", [0, 1])
def test_velocities_that_fold_are_mended(seed):
    velocity = rough(seed, 1.5)
    assert (least_determinant(displacement_of(velocity)) <= 0).any()
    assert (least_determinant(without_folds(velocity, displacement_of)) > 0).all()


def test_only_folds_are_smoothed():
    velocity = rough(0, 0.1)
    velocity[..., :4] = rough(1, 2.0)[..., :4]
    mended, before = without_folds(velocity, displacement_of), displacement_of(velocity)
    assert (least_determinant(mended) > 0).all()
    assert torch.allclose(mended[..., 20:], before[..., 20:], atol=1e-3)
    assert torch.equal(without_folds(rough(0, 0.1), displacement_of), displacement_of(rough(0, 0.1)))
