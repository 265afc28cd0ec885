"""The forward-backward cycle: who is warped with what, terms where the answer is known, whose gradients go where."""

import pytest
import torch
from torch import nn

from stages.methods.phases import Phase, Player, WeightedSum
from stages.parts.batches.pairs import LabelledPair
from stages.parts.losses import bending_energy_loss, diffusion_loss, lncc_loss
from stages.parts.networks.discriminators import PatchDiscriminator
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.players.cycle import (
    Cycle,
    RegisterCycle,
    adversarial,
    anatomy_cycle,
    difference_cycle,
    image_cycle,
    transformation_cycle,
    transformation_cycle_in_voxels,
)
from stages.parts.players.judging import Judged, JudgeWarped, fake, real
from stages.parts.players.registering import bending_energy, mean_squares, similarity, smoothness
from stages.parts.warps import one_hot, warp, warp_label
from stages.training.loop import give_turn

SHAPE = (9, 10, 11)
LEAST = 1e-6**0.45  # of the robust penalty


class Constant(nn.Module):
    """A body that moves every voxel alike, and remembers the images it saw."""

    def __init__(self, *vector):
        super().__init__()
        self.vector = nn.Parameter(torch.tensor(vector, dtype=torch.float32))
        self.seen = None

    def forward(self, pair):
        self.seen = pair
        return self.vector.view(1, 3, 1, 1, 1).expand(len(pair), 3, *pair.shape[2:])


def block():
    """A textured block with three structures, well inside of an empty grid, and a scan that shows it 2 voxels on."""
    generator = torch.Generator().manual_seed(0)
    inside = (slice(None), slice(None), slice(3, 6), slice(3, 6), slice(2, 6))
    image, label = torch.zeros(2, 1, *SHAPE), torch.zeros(2, 1, *SHAPE)
    image[inside] = torch.rand(image[inside].shape, generator=generator)
    label[inside] = torch.randint(1, 4, label[inside].shape, generator=generator).float()
    return LabelledPair(["a", "u"], image, image.roll(2, 4), label[:, 0].short(), 4)


def networks(back=(0.0, 0.0, 2.0)):
    there, back = RegistrationNetwork(Constant(0.0, 0.0, -2.0)), RegistrationNetwork(Constant(*back))
    return there, back, PatchDiscriminator(1, SHAPE)


def registered(there, back):
    return RegisterCycle(there.requires_grad_(False), back.requires_grad_(False), labels=True)(block())


def test_the_atlas_goes_to_the_scan_and_the_warped_atlas_back_to_the_atlas():
    batch, (there, back, discriminator) = block(), networks()
    cycle = RegisterCycle(there, back, discriminator, labels=True)(batch)
    assert torch.equal(there.body.seen, torch.cat([batch.fixed, batch.moving], 1))  # [fixed, moving]
    assert torch.equal(back.body.seen, torch.cat([batch.moving, cycle.warped], 1))
    torch.testing.assert_close(cycle.warped, batch.fixed)
    torch.testing.assert_close(cycle.rebuilt, batch.moving)
    torch.testing.assert_close(cycle.warped_label, one_hot(warp_label(batch.label, cycle.forward), 4))
    torch.testing.assert_close(cycle.rebuilt_label, cycle.label)
    torch.testing.assert_close(cycle.judged, discriminator(cycle.warped))


def test_half_voxels_there_and_back_rebuild_the_atlas_without_blur():
    there, back = RegistrationNetwork(Constant(0.0, 0.0, -0.5)), RegistrationNetwork(Constant(0.0, 0.0, 0.5))
    cycle, batch = registered(there, back), block()
    torch.testing.assert_close(cycle.rebuilt, batch.moving)
    torch.testing.assert_close(cycle.rebuilt_label, cycle.label)
    assert (cycle.warped - batch.moving).abs().max() > 0.1
    twice = RegisterCycle(there, back, labels=True, twice=True)(batch)
    for rebuilt, original in ((twice.rebuilt, batch.moving), (twice.rebuilt_label, cycle.label)):
        blurred = (original.roll(1, 4) + 2 * original + original.roll(-1, 4)) / 4  # half a voxel there, half back
        torch.testing.assert_close(rebuilt, blurred)


def test_what_is_not_asked_for_is_not_computed():
    cycle = RegisterCycle(networks()[0])(block())
    assert [value is None for value in (cycle.backward, cycle.rebuilt, cycle.label, cycle.judged)] == [True] * 4
    assert float(smoothness(cycle).detach()) == 0


def test_every_term_of_a_perfect_cycle_is_at_its_least():
    there, back, _ = networks()
    cycle = registered(there, back)
    assert float(image_cycle(cycle)) == pytest.approx(0, abs=1e-6)
    assert float(anatomy_cycle(cycle)) == pytest.approx(0, abs=1e-5)
    assert float(transformation_cycle(cycle)) == pytest.approx(LEAST, rel=1e-3)
    assert float(difference_cycle(cycle)) == pytest.approx(4 * LEAST, rel=1e-2)  # of four classes
    assert float(smoothness(cycle)) == 0
    assert float(similarity(cycle)) == pytest.approx(float(lncc_loss(cycle.scan, cycle.scan)))


def test_similarity_looks_at_the_way_there_and_smoothness_at_both_ways():
    there, back, _ = networks()
    cycle = registered(there, back)
    assert float(mean_squares(cycle)) == pytest.approx(float((cycle.warped - cycle.scan).square().mean()))
    cycle.forward, cycle.backward = torch.rand(2, 1, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    for term, loss in ((smoothness, diffusion_loss), (bending_energy, bending_energy_loss)):
        assert float(term(cycle)) == pytest.approx(float(loss(cycle.forward) + loss(cycle.backward)))
    cycle.backward = None
    assert float(bending_energy(cycle)) == pytest.approx(float(bending_energy_loss(cycle.forward)))


def test_every_term_rises_when_the_way_back_goes_wrong():
    there, back, _ = networks(back=(0.0, 1.0, 2.0))
    cycle = registered(there, back)
    assert float(transformation_cycle_in_voxels(cycle)) == pytest.approx((1 + 2 * LEAST) / 3, rel=1e-3)
    of_grid = ((2 / 9) ** 2 + 1e-6) ** 0.45  # one voxel of H, where -1 to 1 are 9 voxels
    assert float(transformation_cycle(cycle)) == pytest.approx((of_grid + 2 * LEAST) / 3, rel=1e-3)
    torch.testing.assert_close(image_cycle(cycle), (cycle.atlas.roll(-1, 3) - cycle.atlas).abs().mean())
    moved, label = cycle.label.roll(-1, 3)[:, 1:].flatten(2), cycle.label[:, 1:].flatten(2)
    dice = (2 * (moved * label).sum(-1) + 1) / (moved.sum(-1) + label.sum(-1) + 1)
    torch.testing.assert_close(anatomy_cycle(cycle), 1 - dice.mean(), atol=1e-4, rtol=0)
    assert float(difference_cycle(cycle)) > 8 * LEAST


def test_smoothness_is_that_of_both_fields():
    forward, backward = (torch.rand(2, 3, *SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(2))
    image = block().moving
    both = smoothness(Cycle(image, image, forward, image, backward))
    torch.testing.assert_close(both, diffusion_loss(forward) + diffusion_loss(backward))


def test_gan_terms_are_zero_for_those_who_have_what_they_want():
    patches = torch.ones(2, 1, 3, 3, 3)
    perfect = Judged(real=patches, fake=0 * patches)
    assert float(real(perfect)) == float(fake(perfect)) == 0
    image = block().moving
    found_out, fooling = (Cycle(image, image, image, image, judged=value * patches) for value in (0, 1))
    assert (float(adversarial(found_out)), float(adversarial(fooling))) == (1, 0)
    fooled = Judged(real=0 * patches, fake=patches)
    assert (float(real(fooled)), float(fake(fooled))) == (1, 1)


def players():
    there, back, discriminator = networks()
    terms = {
        "adversarial": adversarial,
        "image": image_cycle,
        "anatomy": anatomy_cycle,
        "inverse": transformation_cycle,
    }
    generators = Player(
        "generators",
        nn.ModuleList([there, back]),
        RegisterCycle(there, back, discriminator, labels=True),
        WeightedSum(**{name: (1.0, term) for name, term in terms.items()}),
    )
    judge = Player(
        "discriminator",
        discriminator,
        JudgeWarped(there, discriminator),
        WeightedSum(real=(0.5, real), fake=(0.5, fake)),
    )
    return Phase("cycle", None, [generators, judge])


@pytest.mark.parametrize("turn", [0, 1])
def test_a_players_turn_leaves_no_gradient_in_the_other(turn):
    phase = players()
    player, other = phase.players[turn], phase.players[1 - turn]
    give_turn(player, phase)
    total, _ = player.loss(player.forward(block()))
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in player.trains.parameters())
    assert all(p.grad is None for p in other.trains.parameters())


def test_the_discriminator_sees_atlases_as_the_generator_warps_them_now():
    there, _, discriminator = networks()
    batch = block()
    judged = JudgeWarped(there, discriminator)(batch)
    torch.testing.assert_close(judged.real, discriminator(batch.fixed))
    torch.testing.assert_close(judged.fake, discriminator(warp(batch.moving, there(batch.moving, batch.fixed))))


def test_the_discriminators_verdict_moves_the_generator_through_the_warped_atlas():
    phase = players()
    generators, _ = phase.players
    give_turn(generators, phase)
    adversarial(generators.forward(block())).backward()
    there, back = generators.trains
    assert there.body.vector.grad.abs().max() > 0
    assert back.body.vector.grad is None


class Brightness(nn.Module):
    """A body that moves every voxel by what its second image says."""

    def forward(self, pair):
        return pair[:, 1:].expand(-1, 3, -1, -1, -1)


def test_what_the_backward_network_sees_moves_the_way_there():
    there, back = RegistrationNetwork(Constant(0.0, 0.0, -1.5)), RegistrationNetwork(Brightness())
    cycle = RegisterCycle(there, back)(block())
    diffusion_loss(cycle.backward).backward()  # depends on G_F through the warped atlas that G_B is given, alone
    assert there.body.vector.grad.abs().max() > 0


def test_the_way_back_moves_the_way_there():
    phase = players()
    generators, _ = phase.players
    image_cycle(generators.forward(block())).backward()
    assert all(network.body.vector.grad is not None for network in generators.trains)
