"""One loss for every method that learns registration, and one network for every method that segments."""

from typing import get_args

import pytest
import torch
from recipes import SHAPE, built, config, generator, textured

from stages.errors import LrlsError
from stages.methods import METHODS, settings_of, training_of
from stages.methods.networks import segmentation_network
from stages.methods.recipe import Task
from stages.methods.registration_losses import (
    SIMILARITIES,
    SMOOTHNESSES,
    RegistrationSettings,
    Similarity,
    Smoothness,
    registration_terms,
)
from stages.parts.losses import bending_energy_loss, diffusion_loss, lncc_loss, lncc_of_means_loss, mutual_information
from stages.parts.networks.dropout import channels_dropped
from stages.parts.networks.standardised import Standardised
from stages.parts.networks.teacher_student import ResidualUNet
from stages.parts.players import style
from stages.parts.players.dense_displacement import non_local_similarity
from stages.parts.players.registering import Registered, mean_squares, similarity
from stages.parts.players.self_training import RegisterPartlyLabelled
from stages.parts.warps import warp

NAMES = ("similarity", "smoothness")
SHARES = [name for name in METHODS if set(NAMES) <= set(METHODS[name].settings.model_fields)]
SEGMENTS = [name for name in METHODS if "segmentation_network" in METHODS[name].settings.model_fields]


def losses_of(name, **settings):
    """Of all players that register, the functions that compare images and that ask for smoothness, as sets."""
    recipe = built(name, atlases=2, **settings)
    found = {"similarity": set(), "smoothness": set()}
    for _, step in recipe.training_steps():
        for player in (player for phase in step.phases for player in phase.players):
            terms = player.loss.terms
            if "smoothness" in terms and player.name != "appearance":
                found["similarity"].add(terms.get("similarity", terms.get("reconstruction"))[1])
                found["smoothness"].add(terms["smoothness"][1])
    return found


def test_every_method_that_learns_registration_shares_the_settings():
    learn = [name for name in METHODS if built(name, atlases=2).learns_registration]
    assert learn == SHARES


@pytest.mark.parametrize("name", SHARES)
def test_every_player_that_registers_has_the_losses_that_are_named(name):
    for likeness in get_args(Similarity):
        for smooth in get_args(Smoothness):
            found = losses_of(name, similarity=likeness, smoothness=smooth)
            assert found == {"similarity": {SIMILARITIES[likeness]}, "smoothness": {SMOOTHNESSES[smooth]}}


@pytest.mark.parametrize("name", SHARES)
def test_what_is_not_named_is_each_methods_own(name):
    own = {"clmorph": {mean_squares}, "jrss": {mean_squares}, "sst": {similarity, style.reconstruction}}
    own["pdd-net"] = {non_local_similarity}
    expected = {"similarity": own.get(name, {similarity}), "smoothness": {SMOOTHNESSES["diffusion"]}}
    if name == "sst":
        expected["smoothness"] = {style.gradient}
    assert losses_of(name) == expected


def test_names_are_the_losses_worked_out_apart():
    moving, fixed = textured(2, 1, 1, *SHAPE)
    field = textured(1, 3, *SHAPE, seed=1)
    warped = warp(moving, field)
    alike = {
        "lncc": lncc_loss(warped, fixed),
        "lncc-means": lncc_of_means_loss(warped, fixed),
        "mse": (warped - fixed).square().mean(),
        "mi": -mutual_information(warped, fixed),
    }
    smooth = {"diffusion": diffusion_loss(field), "bending": bending_energy_loss(field)}
    pair = Registered(moving, fixed, field, directions=1)
    assert {name: float(term(pair)) for name, term in SIMILARITIES.items()} == pytest.approx(
        {name: float(value) for name, value in alike.items()}
    )
    assert {name: float(term(pair)) for name, term in SMOOTHNESSES.items()} == pytest.approx(
        {name: float(value) for name, value in smooth.items()}
    )
    both = Registered(moving, fixed, field, directions=2)  # a sum over the directions
    assert float(SIMILARITIES["mi"](both)) == pytest.approx(2 * float(alike["mi"]))


def test_weights_are_the_settings_unless_others_are_given():
    settings = RegistrationSettings(similarity="mi", smoothness="bending", smoothness_weight=3.0)
    assert registration_terms(settings) == {
        "similarity": (1.0, SIMILARITIES["mi"]), "smoothness": (3.0, SMOOTHNESSES["bending"]),
    }  # fmt: skip
    other = registration_terms(settings, similarity_weight=0.5, smoothness_weight=0.0)
    assert [weight for weight, _ in other.values()] == [0.5, 0.0]


def test_unknown_loss_is_answered_with_the_known_ones():
    with pytest.raises(LrlsError, match=r"setting similarity: .*'lncc', 'lncc-means', 'mse' or 'mi'"):
        settings_of(METHODS["voxelmorph"], config(voxelmorph={"similarity": "ncc"}))


@pytest.mark.parametrize(("likeness", "standardised"), [("mse", True), ("mi", False), ("lncc", False)])
def test_jrss_compares_images_from_0_to_1_where_the_loss_needs_them(likeness, standardised):
    recipe = built("jrss", similarity=likeness)
    forwards = {
        player.forward.standardised
        for _, step in recipe.training_steps()
        for player in (player for phase in step.phases for player in phase.players)
        if isinstance(player.forward, RegisterPartlyLabelled)
    }
    assert forwards == {standardised}


# The residual network


@pytest.mark.parametrize("name", SEGMENTS)
def test_the_residual_network_can_be_s_of_every_method(name):
    recipe = built(name, atlases=2, segmentation_network="residual")
    S = recipe.answer.network
    body = S.body if isinstance(S, Standardised) else S
    assert type(body) is ResidualUNet
    assert S(textured(1, 1, *SHAPE)).shape == (1, 3, *SHAPE)
    if METHODS[name].train_seg:
        training = training_of(METHODS[name], config(**{name: {"segmentation_network": "residual"}}), "train_seg")
        assert training.steps and training.learning_rate


def test_the_residual_network_takes_every_channel_and_loses_channels_where_jrss_asks_for_it():
    two = segmentation_network("residual", Task(SHAPE, 3, 1, channels=2))
    assert two(textured(1, 2, *SHAPE)).shape == (1, 3, *SHAPE)
    S, image = built("jrss", segmentation_network="residual").answer.network, textured(1, 1, *SHAPE)
    with torch.no_grad(), channels_dropped(S, 0.5, generator()):
        dropped = S(image)
    with torch.no_grad():
        assert not torch.allclose(dropped, S(image))
