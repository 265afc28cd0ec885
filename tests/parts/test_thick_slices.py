"""Networks on grids of thick slices: levels per axis, and the networks of before on isotropic grids."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from stages.errors import LrlsError
from stages.parts.networks.sizes import depth_to_space, derived_depth, derived_levels, space_to_depth, whole
from stages.parts.networks.unet import LightUNet, UNet

HEART, SPINE, ABDOMEN = (10.0, 1.5, 1.5), (1.0, 1.0, 4.0), (7.7, 1.2, 1.2)


def pools(shape, spacing_mm, **settings):
    return [level.pool for level in derived_levels(shape, spacing_mm, **settings)]


def kernels(shape, spacing_mm, **settings):
    return [level.kernel for level in derived_levels(shape, spacing_mm, **settings)]


def test_an_axis_is_halved_once_the_others_are_nearly_as_coarse():
    thick, flat, whole_axis = (1, 2, 2), (1, 3, 3), (2, 2, 2)
    assert pools((12, 104, 112), HEART, most=3, stem=2) == [thick, thick, whole_axis, whole_axis]
    assert kernels((12, 104, 112), HEART, most=3, stem=2) == [flat, (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert pools((12, 104, 112), HEART, most=4) == [(1, 1, 1), thick, thick, whole_axis, whole_axis]
    assert kernels((12, 104, 112), HEART, most=4) == [flat, flat, (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert pools((200, 88, 18), SPINE, most=3, stem=2) == [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]


def test_short_slices_stay_while_the_other_axes_are_halved_on():
    assert pools((4, 96, 96), HEART, most=4)[1:] == [(1, 2, 2)] * 4
    assert all(math.ceil(4 / a) >= 3 for a, _, _ in [whole(derived_levels((4, 96, 96), HEART, most=4))])


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.15, 0.15, 0.15), (1.0, 1.9, 1.5)])
@pytest.mark.parametrize("shape", [(48, 64, 48), (16, 16, 40), (80, 96, 80), (9, 30, 200)])
def test_axes_of_about_the_same_spacing_are_treated_alike(shape, spacing_mm):
    for most, stem in ((4, 1), (3, 2)):
        levels = derived_levels(shape, (1, 1, 1), most=most, stem=stem)
        assert [level.pool for level in levels] == [(stem,) * 3] + [(2,) * 3] * derived_depth(
            shape, most=most, stem=stem
        )
        assert {level.kernel for level in levels} == {(3, 3, 3)}
        assert levels == derived_levels(shape, spacing_mm, most=most, stem=stem)


def test_a_grid_of_two_slices_is_refused():
    with pytest.raises(LrlsError, match="a grid of 2 x 64 x 64 voxels is too small"):
        derived_levels((2, 64, 64), HEART, most=3)


@pytest.mark.parametrize("block", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_blocks_become_channels_and_come_back(block):
    x = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    channels = space_to_depth(x, block)
    assert channels.shape == (2, 3 * math.prod(block), *(n // edge for n, edge in zip((4, 6, 8), block, strict=True)))
    assert torch.equal(depth_to_space(channels, block), x)


@pytest.mark.parametrize("network", [UNet, LightUNet])
@pytest.mark.parametrize(
    ("shape", "spacing_mm"), [((10, 40, 44), HEART), ((24, 33, 11), SPINE), ((9, 21, 24), ABDOMEN)]
)
def test_thick_slices_go_through_and_every_convolution_sees_three_voxels_where_it_is_three_wide(
    network, shape, spacing_mm
):
    net = network(1, 3, shape, spacing_mm=spacing_mm)
    seen = []
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(
                lambda module, inputs: seen.extend(zip(inputs[0].shape[2:], module.kernel_size, strict=True))
            )
    image = torch.rand(1, 1, *shape, requires_grad=True)
    answer = net(image)
    answer.square().mean().backward()
    assert answer.shape == (1, 3, *shape) and image.grad.abs().sum() > 0
    assert min(voxels for voxels, kernel in seen if kernel == 3) >= 3


def test_the_first_level_of_thick_slices_does_not_mix_them():
    net = UNet(1, 2, (12, 48, 48), spacing_mm=HEART)
    one, other = torch.rand(2, 1, 1, 12, 48, 48, generator=torch.Generator().manual_seed(0))
    other[:, :, 3] = one[:, :, 3]
    with torch.no_grad():
        first = net.down[0].layers[0](torch.cat([one, other]))
    assert torch.equal(first[0, :, 3], first[1, :, 3]) and not torch.equal(first[0, :, 4], first[1, :, 4])


# Isotropic grids: what the networks were before levels had axes. Digests of weights and answers are not stable between
# versions of torch; names, shapes and the way through are.


def plain(network, x, stem):
    """The way through a U-Net whose axes are all alike, from its blocks alone."""
    from torch.nn import functional as F

    x = space_to_depth(x) if stem == 2 else x
    skips = []
    for level, block in enumerate(network.down):
        x = block(F.max_pool3d(x, 2) if level else x)
        skips.append(x)
    for skip, block in zip(reversed(skips[:-1]), reversed(network.up), strict=True):
        x = block(torch.cat([skip, F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=True)], 1))
    x = network.head(x)
    return depth_to_space(x) if stem == 2 else x


@pytest.mark.parametrize(("network", "stem", "widths"), [(UNet, 1, (16, 32, 64, 128)), (LightUNet, 2, (32, 64, 128))])
def test_isotropic_grids_get_the_networks_of_before(network, stem, widths):
    shape, inputs = (24, 32, 24), 1
    torch.manual_seed(0)
    net = network(inputs, 3, shape, spacing_mm=(0.7, 0.7, 0.7))
    blocks = [*pairwise((inputs * stem**3, *widths))]
    expected = {}
    for place, (a, b) in enumerate(blocks):
        expected |= block_shapes(f"down.{place}", a, b)
    for place, (a, b) in enumerate(pairwise(widths)):
        expected |= block_shapes(f"up.{place}", a + b, a)
    expected |= {"head.weight": (3 * stem**3, widths[0], 1, 1, 1), "head.bias": (3 * stem**3,)}
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == expected

    torch.manual_seed(0)
    same = network(inputs, 3, shape)
    assert fingerprint(net) == fingerprint(same)
    image = torch.rand(1, inputs, *shape)
    with torch.no_grad():
        assert torch.equal(net(image), plain(same, image, stem))


def block_shapes(name, inputs, outputs):
    shapes = {}
    for place, width in ((0, inputs), (2, outputs)):
        shapes[f"{name}.layers.{place}.weight"] = (outputs, width, 3, 3, 3)
        shapes[f"{name}.layers.{place}.bias"] = (outputs,)
        shapes[f"{name}.layers.{place + 1}.weight"] = shapes[f"{name}.layers.{place + 1}.bias"] = (outputs,)
    return shapes


def fingerprint(network):
    data = b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())
    return hashlib.sha256(data).hexdigest()
