"""VAE augmentation: divergence of codes, autoencoders of fields, and what is drawn from them."""

import math

import pytest
import torch
from recipes import SHAPE, built, config, generator, phases, textured
from torch import nn
from torch.distributions import Normal, kl_divergence

from stages.errors import LrlsError
from stages.methods import METHODS, settings_of
from stages.parts.batches.drawing import Draw
from stages.parts.batches.pairs import OneAtlas
from stages.parts.batches.scans import Scans
from stages.parts.losses import code_kl_loss
from stages.parts.networks.variational import VariationalAutoencoder
from stages.parts.players.variational import Encoded, EncodeFields, field_reconstruction, image_reconstruction
from stages.parts.variational_synthesis import VariationalSynthesis
from stages.parts.warps import warp


def test_codes_of_the_prior_have_no_divergence():
    assert float(code_kl_loss(torch.zeros(2, 5), torch.zeros(2, 5))) == 0


def test_divergence_is_that_of_gaussians_known_by_hand_and_by_torch():
    mean, log_variance = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(4.0)]])
    by_hand = (0.5 + 0.5 * (4 + 4 - math.log(4.0) - 1)) / 2
    assert float(code_kl_loss(mean, log_variance)) == pytest.approx(by_hand)
    mean, log_variance = torch.randn(2, 3, 4, generator=generator())
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean()
    assert float(code_kl_loss(mean, log_variance)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("light", [True, False])
def test_autoencoder_takes_fields_of_any_grid_and_starts_near_none(light):
    network = VariationalAutoencoder(3, SHAPE, code=6, displaces=True, light=light)
    field = textured(2, 3, *SHAPE)
    inside = network.inside(field)
    assert inside.shape[2:] == network.grid and all(n % 16 == 0 for n in network.grid)
    mean, log_variance = network.encode(inside)
    assert mean.shape == log_variance.shape == (2, 6)
    decoded = network.outside(network.decode(mean)).detach()
    assert decoded.shape == field.shape and float(decoded.abs().max()) < 0.5


def test_a_shift_keeps_its_length_and_a_brightness_its_size_on_the_autoencoders_grid():
    shift = torch.zeros(1, 3, *SHAPE)
    shift[:, 1] = 2.0  # voxels
    moves = VariationalAutoencoder(3, SHAPE, code=2, displaces=True, light=True)
    grid = moves.grid[1]
    torch.testing.assert_close(moves.inside(shift)[:, 1].mean(), torch.tensor(2.0 * (grid - 1) / (SHAPE[1] - 1)))
    torch.testing.assert_close(moves.outside(moves.inside(shift)), shift)
    looks = VariationalAutoencoder(1, SHAPE, code=2, displaces=False, light=True)
    assert float(looks.inside(torch.full((1, 1, *SHAPE), 0.3)).mean()) == pytest.approx(0.3)


class Plain(nn.Module):
    """An autoencoder on the images' grid, which encodes a field as its mean, and decodes constants."""

    code = 3

    def inside(self, field):
        return field

    outside = inside

    def encode(self, field):
        mean = field.mean((2, 3, 4))
        return mean, torch.full_like(mean, -1e9)  # no variance

    def decode(self, code):
        return code[:, :, None, None, None].expand(-1, -1, *SHAPE)


def one_atlas(names=("a", "u1")):
    return OneAtlas(
        list(names), *textured(2, 1, 1, *SHAPE), torch.eye(1), Draw(1, None, None, generator())
    )  # fmt: skip


def test_every_pair_is_found_once_and_encoded():
    asked = []

    def finds(atlas, scan):
        asked.append(1)
        return torch.ones(1, 3, *SHAPE)

    forward = EncodeFields(finds, Plain())
    encoded = forward(one_atlas())
    forward(one_atlas())
    forward(one_atlas(("a", "u2")))
    assert len(asked) == 2
    torch.testing.assert_close(encoded.rebuilt, encoded.field)
    assert float(field_reconstruction(encoded)) == 0 and float(image_reconstruction(encoded)) == 0


def test_codes_are_drawn_around_their_mean_by_their_deviation():
    class Wide(Plain):
        def encode(self, field):
            return torch.full((1, 3), 5.0), torch.full((1, 3), math.log(4.0))

    rebuilt = EncodeFields(lambda *_: torch.ones(1, 3, *SHAPE), Wide())(one_atlas()).rebuilt
    noise = torch.randn((1, 3), generator=generator())
    torch.testing.assert_close(rebuilt[:, :, 0, 0, 0], 5 + 2 * noise)


def test_reconstructions_are_mean_squares_of_fields_and_of_the_moved_atlas():
    field, rebuilt = torch.zeros(1, 3, *SHAPE), torch.zeros(1, 3, *SHAPE)
    rebuilt[:, 0] = 1.0  # one voxel along D
    atlas = torch.arange(SHAPE[0]).float().view(1, 1, -1, 1, 1).expand(1, 1, *SHAPE) / 100
    encoded = Encoded(field, rebuilt, torch.zeros(1, 3), torch.zeros(1, 3), atlas, Plain())
    assert float(field_reconstruction(encoded)) == pytest.approx(1 / 3)
    moved = (SHAPE[0] - 1) / SHAPE[0]  # the last slice repeats the border
    assert float(image_reconstruction(encoded)) == pytest.approx(0.01**2 * moved, rel=1e-4)


class Says(Plain):
    """Decodes a code to its first numbers, everywhere."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def decode(self, code):
        return code[:, : self.channels, None, None, None].expand(-1, -1, *SHAPE)


def scans():
    labels = {0: torch.randint(3, SHAPE, generator=generator()).short()}
    return Scans(["a", "u"], textured(2, 1, *SHAPE).half(), labels, [0], [1], 3, (1.0, 1.0, 1.0))


def test_drawn_scan_is_the_atlas_recoloured_then_moved_by_two_draws_of_the_spread():
    draw = VariationalSynthesis(Says(3), Says(1), spread=0.5)
    drawn = draw(scans(), 0, generator(3))
    source = generator(3)
    shape, look = (0.5 * torch.randn((1, 3), generator=source) for _ in range(2))
    field = shape[:, :, None, None, None].expand(-1, -1, *SHAPE)
    image = scans().image([0])
    torch.testing.assert_close(drawn.image, warp(image + look[0, 0], field).clamp(0, 1))
    torch.testing.assert_close(drawn.plain, warp(image, field))
    torch.testing.assert_close(drawn.displacement, field)
    assert (drawn.space, drawn.style) == ("prior", "prior")
    still = VariationalSynthesis(None, Says(1))(scans(), 0, generator(3))
    assert not still.displacement.any() and (still.space, still.style) == ("a", "prior")
    alike = VariationalSynthesis(Says(3), None)(scans(), 0, generator(3))
    torch.testing.assert_close(alike.image, alike.plain)


def test_autoencoder_learns_which_way_an_atlas_moves():
    """Two shifts, there and back: codes tell them apart, and what is drawn lies between them."""
    torch.manual_seed(0)
    network = VariationalAutoencoder(3, SHAPE, code=2, displaces=True, light=True)
    shifts = torch.zeros(2, 3, *SHAPE)
    shifts[0, 2], shifts[1, 2] = 2.0, -2.0
    fields = network.inside(shifts)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        mean, log_variance = network.encode(fields)
        rebuilt = network.decode(mean + (log_variance / 2).exp() * torch.randn_like(mean))
        loss = (rebuilt - fields).square().mean() + 0.1 * code_kl_loss(mean, log_variance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.5 * float(fields.square().mean())
    assert 0.3 < float(mean.std(0).max()) < 4  # about the prior's


# The recipe


def test_phases_follow_the_paper_and_each_switch_takes_its_part_away():
    def players(**settings):
        return {
            phase.name: {player.name: list(player.loss.terms) for player in phase.players}
            for phase in phases(built("vae-aug", preset="light", **settings), "registration")
        }

    whole = players()
    assert list(whole) == ["space", "appearance", "autoencoders"]
    assert whole["autoencoders"] == {"shapes": ["field", "image", "divergence"], "looks": ["field", "divergence"]}
    assert list(players(looks=False)) == ["space", "autoencoders"]
    assert list(players(shapes=False)["autoencoders"]) == ["looks"]
    shares = [phase.share for phase in phases(built("vae-aug", preset="light", looks=False), "registration")]
    assert sum(shares) == pytest.approx(1)
    segment = phases(built("vae-aug", preset="light", segmentation_loss="ce"), "segmentation")[0].players[0]
    assert list(segment.loss.terms) == ["cross_entropy"]


def test_paper_draws_ten_times_as_far_and_nothing_to_draw_is_refused():
    settings = settings_of(METHODS["vae-aug"], config(**{"vae-aug": {"preset": "paper"}}))
    assert (settings.spread, settings.beta, settings.segmentation_loss) == (10, 0.1, "ce")
    for wrong, message in (
        ({"shapes": False, "looks": False}, "both off"),
        ({"appearance_share": 0.5, "autoencoder_share": 0.5}, "leave no step"),
    ):
        with pytest.raises(LrlsError, match=message):
            settings_of(METHODS["vae-aug"], config(**{"vae-aug": wrong}))
