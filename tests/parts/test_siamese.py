"""Siamese registration networks: one encoder for both images, sizes, the identity at the start, precision."""

import pytest
import torch
from torch import nn

from stages.parts.batches.pairs import Pair
from stages.parts.losses import contrastive_loss, nt_xent_loss
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.siamese import PooledSiameseUNet, SiameseUNet, apart, batch_block, instance_block, together
from stages.parts.players.registering import RegisterAndEmbed, contrast, contrast_all

NETWORKS = {
    "os-medseg": SiameseUNet,
    "clmorph": lambda shape: PooledSiameseUNet(shape, batch_block),
    "light": lambda shape: PooledSiameseUNet(shape, instance_block, light=True),
}
SHAPE = (24, 16, 24)


def fresh(name, shape=SHAPE):
    torch.manual_seed(0)
    return NETWORKS[name](shape)


def trained(name, shape=SHAPE):
    """A network whose head says something."""
    net = fresh(name, shape)
    nn.init.normal_(net.head.weight, std=0.02)
    return net


def smooth_pairs(n, shape=SHAPE, seed=0):
    noise = torch.rand(n, 2, *(-(-size // 4) for size in shape), generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, size=shape, mode="trilinear")


def test_published_network_has_1_6_million_parameters():
    assert sum(p.numel() for p in SiameseUNet((48, 64, 48)).parameters()) == 1_591_779


def test_images_come_apart_with_the_fixed_one_first_and_together_again():
    pair = torch.arange(4.0).view(2, 2, 1, 1, 1)  # pairs (0, 1) and (2, 3)
    assert apart(pair).flatten().tolist() == [0, 2, 1, 3]
    assert torch.equal(together(apart(pair)), pair)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(13, 16, 19), (10, 12, 12), (9, 9, 9)])
def test_any_grid_goes_and_a_fresh_network_stays_near_the_identity(name, shape):
    output = fresh(name, shape)(torch.rand(2, 2, *shape))
    assert output.shape == (2, 3, *shape) and output.dtype == torch.float32
    assert 0 < output.abs().max() < 1e-2


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(48, 64, 48), (80, 96, 80), SHAPE, (16, 16, 16)])
def test_every_convolution_sees_at_least_three_voxels_an_axis(name, shape):
    seen = []
    with torch.device("meta"):
        net = fresh(name, shape)
    for module in net.modules():
        if isinstance(module, nn.Conv3d) and module is not net.head:
            module.register_forward_pre_hook(lambda _, inputs: seen.append(min(inputs[0].shape[2:])))
    net.head = nn.Identity()  # runs outside autocast, which knows no meta tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.parts.networks.siamese.in_float32", lambda head, x: head(x))
        net(torch.zeros(1, 2, *shape, device="meta"))
    assert min(seen) >= 3


@pytest.mark.parametrize("name", NETWORKS)
def test_both_images_go_through_the_same_encoder(name):
    net = fresh(name).eval()
    image, other = smooth_pairs(1).split(1, dim=1)
    if name == "os-medseg":  # which has a projection for either role
        net.of_moving.load_state_dict(net.of_fixed.state_dict())
    raw, of_fixed, of_moving = net.with_embeddings(torch.cat([image, other], 1))
    _, swapped_fixed, swapped_moving = net.with_embeddings(torch.cat([other, image], 1))
    torch.testing.assert_close(of_fixed, swapped_moving)
    torch.testing.assert_close(of_moving, swapped_fixed)
    torch.testing.assert_close(raw, net(torch.cat([image, other], 1)))
    assert not torch.equal(of_fixed, of_moving)
    for embedding in (of_fixed, of_moving):
        assert embedding.norm(dim=1).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("name", NETWORKS)
def test_pairs_of_a_batch_do_not_see_each_other(name):
    net = trained(name).eval()
    pairs = smooth_pairs(2)
    torch.testing.assert_close(net(pairs)[1:], net(pairs[1:]), atol=1e-4, rtol=1e-3)


def test_light_field_changes_sign_with_the_roles():
    net, pairs = trained("light"), smooth_pairs(2)
    assert net(pairs).abs().max() > 0.1
    torch.testing.assert_close(net(pairs.flip(1)), -net(pairs))


def test_diffeomorphic_field_is_the_integral_of_the_bodys():
    body, (fixed, moving) = trained("light"), smooth_pairs(1).split(1, dim=1)
    for diffeomorphic in (False, True):
        network = RegistrationNetwork(body, diffeomorphic=diffeomorphic)
        torch.testing.assert_close(network.with_embeddings(moving, fixed)[0], network(moving, fixed))


def test_contrast_takes_the_scan_as_anchor_and_the_atlas_as_its_positive():
    network = RegistrationNetwork(fresh("os-medseg"))
    fixed, moving = smooth_pairs(3).split(1, dim=1)
    registered = RegisterAndEmbed(network)(Pair([], moving, fixed))
    _, of_fixed, of_moving = network.body.with_embeddings(torch.cat([fixed, moving], 1))
    torch.testing.assert_close(contrast(registered), contrastive_loss(of_fixed, of_moving))
    torch.testing.assert_close(contrast_all(registered), nt_xent_loss(of_fixed, of_moving))
    assert abs(float((contrast(registered) - contrastive_loss(of_moving, of_fixed)).detach())) > 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_and_float32_gradients_agree(name):
    net, pairs, target = trained(name), smooth_pairs(2), smooth_pairs(3, seed=1)[:2, :1]
    gradients = []
    for bf16 in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            raw, of_fixed, of_moving = net.with_embeddings(pairs)
        assert {each.dtype for each in (raw, of_fixed, of_moving)} == {torch.float32}
        ((raw - target).square().mean() + 0.01 * nt_xent_loss(of_fixed, of_moving)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.15 * exact.norm()
