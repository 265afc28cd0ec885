"""B-splines and greedy on a phantom whose displacement is known, in voxels of three different lengths."""

from functools import partial

import numpy as np
import pytest
from recipes import config
from scipy.ndimage import gaussian_filter, map_coordinates

from stages.errors import LrlsError
from stages.methods import METHODS, aligned_for, settings_of
from stages.methods.recipe import Task
from stages.parts.bspline import bspline_displacement, coarsest_mesh
from stages.parts.classical import Classical, displacement_of
from stages.parts.greedy import greedy_displacement
from stages.processes import in_processes

SHAPE, SPACING_MM = (22, 26, 24), (2.0, 1.0, 1.5)
CLASSICAL = {
    "bspline": Classical(partial(bspline_displacement, samples=2**11, iterations=10), "SimpleITK", "SimpleITK"),
    "greedy": Classical(greedy_displacement, "greedy", "picsl-greedy"),
}
CENTRE = (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2
PLACES = np.indices(SHAPE).astype(float)
BODY = (((PLACES - CENTRE) / 8) ** 2).sum(0) < 1


def textured_ball():
    noise = gaussian_filter(np.random.default_rng(0).random(SHAPE), 1.5)
    return (gaussian_filter(BODY.astype(float), 1.0) * (0.6 + 6 * (noise - noise.mean()))).clip(0, 1).astype(np.float32)


SHIFT = np.broadcast_to(np.array([1.5, -1.0, 2.0]).reshape(3, 1, 1, 1), PLACES.shape)
SCALING = 0.12 * (PLACES - CENTRE)
STILL = np.zeros(PLACES.shape)


def pair(displacement):
    """moving, and fixed(x) = moving(x + displacement(x))."""
    moving = textured_ball()
    return moving, map_coordinates(moving, PLACES + displacement, order=1).astype(np.float32)


@pytest.fixture(scope="module")
def fields():
    """Displacements by method and case; `again` is `shift` once more, in the same process, after all others."""
    cases = {"still": STILL, "shift": SHIFT, "scaling": SCALING, "again": SHIFT}
    keys = [(name, case) for case in cases for name in CLASSICAL]
    arguments = [
        (CLASSICAL[name], place, case, *pair(cases[case]), SPACING_MM, 0) for place, (name, case) in enumerate(keys)
    ]
    found = dict(in_processes(displacement_of, arguments, workers=1))
    return {key: found[place] for place, key in enumerate(keys)}


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize(("case", "truth"), [("still", STILL), ("shift", SHIFT), ("scaling", SCALING)])
def test_displacement_is_found_to_a_third_of_a_voxel(fields, name, case, truth):
    inside = (((PLACES + truth - CENTRE) / 6.5) ** 2).sum(0) < 1
    error = np.abs(fields[name, case] - truth)[:, inside]
    assert fields[name, case].shape == (3, *SHAPE)
    assert error.mean(1).max() < 0.34  # of every component, in (D, H, W): none is another axis's, or in mm
    assert fields[name, case].dtype == np.float32


def test_bsplines_go_on_for_as_many_iterations_as_are_set():
    short, long = (
        bspline_displacement(*pair(SCALING), SPACING_MM, 0, levels=2, iterations=n, samples=2**11) for n in (6, 12)
    )
    assert np.abs(long - short).max() > 1e-2


@pytest.mark.parametrize("name", CLASSICAL)
def test_the_same_pair_gives_the_same_displacement(fields, name):
    assert np.array_equal(fields[name, "shift"], fields[name, "again"])


def test_what_only_the_second_channel_shows_is_registered_by_greedy():
    moving, fixed = (np.stack([np.zeros_like(image), image]) for image in pair(SHIFT))
    field = greedy_displacement(moving, fixed, SPACING_MM, 0, iterations=(60, 30, 10))
    inside = (((PLACES + SHIFT - CENTRE) / 6) ** 2).sum(0) < 1
    assert np.abs(field - SHIFT)[:, inside].mean() < 0.5


def test_a_program_that_fails_is_named_with_the_case():
    def fails(moving, fixed, spacing_mm, seed):
        if not np.array_equal(moving, fixed):
            raise RuntimeError("pages of output")
        return moving

    moving, fixed = pair(SHIFT)
    with pytest.raises(LrlsError, match=r"^case b: plough could not register it; look at it"):
        displacement_of(Classical(fails, "plough", "picsl-plough"), 0, "b", moving, fixed, SPACING_MM, 0)


def test_control_points_lie_no_closer_than_two_voxels():
    assert coarsest_mesh((80, 96, 80), (2.0, 2.0, 2.0), 10.0, 3) == (4, 5, 4)
    assert coarsest_mesh((10, 128, 128), (10.0, 1.5, 1.5), 7.5, 1) == (5, 26, 26)
    assert coarsest_mesh((4, 4, 4), (1.0, 1.0, 1.0), 5.0, 3) == (1, 1, 1)


def test_greedy_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("stages.parts.greedy.find_spec", lambda name: None)
    method = METHODS["greedy"]
    with pytest.raises(LrlsError) as error:
        method.recipe(Task(SHAPE, 3, 1), settings_of(method, config()))
    assert str(error.value) == ("greedy needs the package picsl-greedy; install it with `pip install 'lrls[greedy]'`.")


def test_rigid_has_scans_aligned_rigidly_where_others_have_them_affine():
    affine = config()
    still = affine.model_copy(update={"preprocess": affine.preprocess.model_copy(update={"align": "none"})})
    assert aligned_for(METHODS["rigid"], affine).preprocess.align == "rigid"
    assert aligned_for(METHODS["affine"], affine).preprocess.align == "affine"
    assert aligned_for(METHODS["rigid"], still).preprocess.align == "none"
