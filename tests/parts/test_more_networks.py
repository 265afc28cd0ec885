"""SegNet, U-Net++ and VoxelMorph's U-Net as segmentation networks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from recipes import textured
from torch import nn

from stages.methods.networks import segmentation_network
from stages.methods.recipe import Task
from stages.parts.networks.dropout import channels_dropped
from stages.parts.networks.nested_unet import NestedUNet
from stages.parts.networks.segnet import SegNet, max_pool, max_unpool

KINDS = ("vm-unet", "segnet", "unet++")
GRIDS = [((9, 10, 11), (1.0, 1.0, 1.0)), ((10, 16, 16), (10.0, 1.5, 1.5))]


def made(kind: str, shape: tuple[int, int, int], spacing: tuple[float, ...] = (1.0, 1.0, 1.0), channels: int = 2):
    return segmentation_network(kind, Task(shape, 3, 1, channels=channels, spacing_mm=spacing))


def test_unpooling_puts_values_back_where_they_came_from():
    x = torch.zeros(1, 2, 4, 4, 4)
    x[0, 0, 1, 2, 3], x[0, 0, 2, 0, 1], x[0, 1, 3, 3, 3] = 5, 7, 9
    values, places = max_pool(x, (2, 2, 2))
    assert values[0, 0, 0, 1, 1] == 5 and values[0, 0, 1, 0, 0] == 7 and values[0, 1, 1, 1, 1] == 9
    assert torch.equal(max_unpool(values, places, (2, 2, 2)), x)
    moved = max_unpool(torch.ones_like(values), places, (2, 2, 2))
    assert moved.sum() == values.numel()  # one voxel a block
    assert moved[0, 0, 1, 2, 3] == 1 and moved[0, 0, 2, 0, 1] == 1


@pytest.mark.parametrize("pool", [(2, 2, 2), (1, 2, 2)])
def test_pooling_is_torchs_and_so_is_its_gradient(pool):
    x = textured(2, 3, 4, 6, 8).double().requires_grad_()
    values, places = max_pool(x, pool)
    theirs, indices = nn.functional.max_pool3d(x, pool, return_indices=True)
    assert torch.equal(values, theirs)
    unpooled = max_unpool(values, places, pool)
    assert torch.equal(unpooled, nn.functional.max_unpool3d(theirs, indices, pool))
    torch.autograd.gradcheck(lambda v: max_unpool(v, places, pool), (values.detach().requires_grad_(),))
    (gradient,) = torch.autograd.grad(unpooled.square().sum(), x)
    assert torch.equal(gradient, 2 * unpooled.detach())  # reaches the largest voxels alone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "spacing"), GRIDS)
def test_output_has_the_inputs_grid_and_no_convolution_sees_fewer_than_three_voxels(kind, shape, spacing):
    network, seen = made(kind, shape, spacing), []
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(
                lambda m, inputs: seen.append(
                    [n for n, k in zip(inputs[0].shape[2:], m.kernel_size, strict=True) if k > 1]
                )
            )
    with torch.no_grad():
        output = network(textured(1, 2, *shape))
    assert output.shape == (1, 3, *shape) and output.dtype == torch.float32
    assert min(n for sizes in seen for n in sizes) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_answer_on_the_last_feature_is_the_output_and_features_grow(kind):
    network, image = made(kind, (11, 9, 10), channels=1), textured(1, 1, 11, 9, 10)
    with torch.no_grad():
        features = network.features(image)
        assert torch.equal(network.answer(features[-1], (11, 9, 10)), network(image))
    assert all(coarse.shape[2] <= fine.shape[2] for coarse, fine in pairwise(features))


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns_and_dropout_finds_its_layers(kind):
    network, image = made(kind, (9, 9, 9), channels=1), textured(1, 1, 9, 9, 9)
    network(image).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad():
        whole = network(image)
        with channels_dropped(network, 0.5, torch.Generator().manual_seed(0)):
            assert not torch.equal(network(image), whole)
        assert torch.equal(network(image), whole)


def test_segnet_has_no_skips_and_vggs_convolutions():
    network = SegNet(1, 2, (48, 48, 48))
    widths = [(each.in_channels, each.out_channels) for stage in network.up for each in stage.convolutions]
    assert widths == [
        (16, 16), (16, 16), (32, 32), (32, 16), (64, 64), (64, 64), (64, 32), (128, 128), (128, 128), (128, 64),
        (128, 128), (128, 128), (128, 128),
    ]  # fmt: skip
    assert [len(stage.convolutions) for stage in network.down] == [2, 2, 3, 3, 3]


def test_nested_nodes_see_their_level_and_the_one_below():
    network = NestedUNet(1, 2, (48, 48, 48))
    assert [len(level) for level in network.between] == [3, 2, 1]
    widths = (16, 32, 64, 128, 256)
    for i in range(4):
        assert network.up[i].layers[0].in_channels == (4 - i) * widths[i] + widths[i + 1]
        for j, node in enumerate(network.between[i] if i < 3 else [], 1):
            assert node.layers[0].in_channels == j * widths[i] + widths[i + 1]


def test_head_of_vm_unet_does_not_start_at_nothing():
    with torch.no_grad():
        assert made("vm-unet", (9, 9, 9), channels=1)(textured(1, 1, 9, 9, 9)).std() > 1e-3
