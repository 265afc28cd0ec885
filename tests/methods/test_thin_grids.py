"""Every method's networks run on a few thick slices, or the method says in one line what to set."""

from __future__ import annotations

import pytest
import torch
from recipes import config

from stages.errors import LrlsError
from stages.methods import METHODS, settings_of
from stages.methods.recipe import Task

THIN, SPACING = (10, 16, 16), (10.0, 1.5, 1.5)


def presets(method):
    return [method.settings.model_fields["preset"].default, "light"]


@pytest.mark.parametrize("name", METHODS)
def test_networks_run_on_ten_thick_slices(name):
    for preset in presets(METHODS[name]):
        settings = settings_of(METHODS[name], config(**{name: {"preset": preset}}))
        recipe = METHODS[name].recipe(Task(THIN, 3, 2, spacing_mm=SPACING), settings)
        generator = torch.Generator().manual_seed(0)
        moving, fixed = torch.rand(2, 1, 1, *THIN, generator=generator)
        with torch.no_grad():
            if recipe.answer.network is not None:
                assert recipe.answer.network.eval()(fixed).shape == (1, 3, *THIN)
            if isinstance(recipe.answer.registers, torch.nn.Module):
                assert recipe.answer.registers.eval()(moving, fixed).shape == (1, 3, *THIN)


@pytest.mark.parametrize("name", ["unet", "brbs", "voxelmorph", "clmorph", "os-medseg", "sst", "data-aug", "lt-net"])
def test_too_few_slices_are_refused_in_one_line_that_names_the_setting(name):
    with pytest.raises(LrlsError, match=r"^a grid of 2 x 64 x 64 voxels is too small .* preprocess\.shape"):
        METHODS[name].recipe(Task((2, 64, 64), 3, 2, spacing_mm=SPACING), settings_of(METHODS[name], config()))
