"""Instance optimisation on pairs whose displacement is known."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stages.answering.registering import on_arrays
from stages.parts import instance
from stages.parts.instance import InstanceOptimisation
from stages.parts.metrics import folding_fraction, jacobian_determinant
from stages.parts.warps import halved, rescale, squarings_for, voxel_grid, warp

SHAPE = (28, 32, 30)


def texture(seed=0):
    """Smooth random image in [0, 1], (1, 1, D, H, W)."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), 2.0)
    return torch.from_numpy((noise - noise.min()) / np.ptp(noise)).float()[None, None]


def inside(field, margin=5):
    return field[..., margin:-margin, margin:-margin, margin:-margin]


def bump(height=2.5, width=6.0):
    """A displacement along H that is a Gaussian about the centre, (1, 3, D, H, W)."""
    centre = torch.tensor([(n - 1) / 2 for n in SHAPE]).view(1, 3, 1, 1, 1)
    distance = ((voxel_grid(SHAPE, torch.zeros(1)) - centre) ** 2).sum(1)
    field = torch.zeros(1, 3, *SHAPE)
    field[:, 1] = height * torch.exp(-distance / (2 * width**2))
    return field


def test_equal_images_stay_where_they_are():
    image = texture()
    assert InstanceOptimisation()(image, image).norm(dim=1).mean() < 0.05


def test_a_translation_is_found():
    moving = texture()
    shift = torch.zeros(1, 3, *SHAPE)
    shift[:, 2] = 2.0
    found = InstanceOptimisation(smoothness=0.1)(moving, warp(moving, shift))
    assert inside(found - shift).abs().mean() < 0.15


@pytest.mark.parametrize("seed", [0, 1])
def test_a_local_deformation_is_found_without_folds(seed):
    moving, truth = texture(seed), bump()
    found = InstanceOptimisation(smoothness=0.1)(moving, warp(moving, truth))
    assert inside(found - truth).norm(dim=1).mean() < 0.25 * inside(truth).norm(dim=1).mean()
    assert float(folding_fraction(jacobian_determinant(found))[0]) == 0


def test_gain_and_offset_of_the_fixed_image_do_not_matter():
    moving, truth = texture(), bump()
    fixed = warp(moving, truth)
    optimise = InstanceOptimisation()
    difference = inside(optimise(moving, 0.5 * fixed + 0.3) - optimise(moving, fixed))
    assert difference.norm(dim=1).mean() < 0.05 * inside(truth).norm(dim=1).max()  # windows over the border see zeros


def test_more_smoothness_bends_less():
    moving = texture()
    fixed = warp(moving, bump())
    rough, smooth = (InstanceOptimisation(smoothness=weight)(moving, fixed) for weight in (0.1, 10.0))
    assert smooth.abs().max() < 0.7 * rough.abs().max()


def test_fine_steps_improve_on_coarse_ones():
    moving, truth = texture(), bump()
    fixed = warp(moving, truth)
    coarse, both = (InstanceOptimisation(60, steps, smoothness=0.1)(moving, fixed) for steps in (0, 40))
    assert inside(both - truth).norm(dim=1).mean() < 0.9 * inside(coarse - truth).norm(dim=1).mean()
    assert InstanceOptimisation(0, 0)(moving, fixed).abs().max() == 0


def test_arrays_give_the_same_and_twice_the_same():
    moving, fixed = (texture(seed)[0, 0].numpy() for seed in (0, 1))
    optimisation = InstanceOptimisation(5, 5)
    threads = torch.get_num_threads()
    try:
        once, twice = (on_arrays(optimisation, 3, moving, fixed) for _ in range(2))
        tensors = optimisation(*(torch.from_numpy(each)[None, None] for each in (moving, fixed)))[0]
    finally:
        torch.set_num_threads(threads)
    assert once[0] == 3
    assert np.array_equal(once[1], twice[1])
    assert np.array_equal(once[1], tensors.numpy())


def test_rescaled_displacements_are_in_voxels_of_their_grid():
    shape = (9, 17, 5)
    field = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1, 1).expand(1, 3, *shape)
    small = rescale(field, halved(shape))
    assert small.shape[2:] == (5, 9, 3)
    assert torch.allclose(small, torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1, 1).expand_as(small))
    assert torch.allclose(rescale(small, shape), field)


def small(seed, shape=(16, 18, 20)):
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    return torch.from_numpy((noise - noise.min()) / np.ptp(noise)).float()[None, None]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_pairs_of_a_batch_get_what_each_gets_alone(monkeypatch, one_thread):
    moving = [small(0), small(1), torch.zeros_like(small(0))]
    shift = torch.zeros(1, 3, 16, 18, 20)
    shift[:, 2] = 3.0
    fixed = [warp(moving[0], shift), small(4), small(5)]
    optimise = InstanceOptimisation(30, 12, smoothness=0.1)
    seen = []
    with monkeypatch.context() as patched:
        patched.setattr(instance, "squarings_for", lambda v: seen.append(squarings_for(v)) or seen[-1])
        together = optimise(torch.cat(moving), torch.cat(fixed))
    assert any(len(set(of_batch)) > 1 for of_batch in seen)  # so unlike are they
    assert 2 in {len(of_batch) for of_batch in seen}  # and one ends before the others
    for pair, found in enumerate(together.split(1)):
        assert torch.allclose(found, optimise(moving[pair], fixed[pair]), rtol=0, atol=1e-4)
    assert together[2].abs().max() == 0 and together[0].abs().max() > 2


def test_each_pair_goes_on_from_its_better_start():
    first, second, third = (torch.full((2, 3, 2, 2, 2), value) for value in (1.0, 2.0, 3.0))
    better = instance._better([(first, [0.3, 0.2]), (second, [0.1, 0.2]), (third, [0.4, 0.1])])
    assert better.mean((1, 2, 3, 4)).tolist() == [2.0, 3.0]
