"""Networks: sizes, what a fresh one says, precision, and the grids that tests, example and benchmarks use."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from stages.config import load_config
from stages.data.grid import derive_grid, label_box
from stages.data.intake import read_scan
from stages.data.intensities import normalise
from stages.data.labels import classes_of
from stages.errors import LrlsError
from stages.methods import data_aug
from stages.methods.networks import registration_network
from stages.methods.recipe import Task
from stages.parts.augmentation import gaussian_blur
from stages.parts.metrics import folding_fraction, jacobian_determinant
from stages.parts.networks.blocks import Block
from stages.parts.networks.discriminators import PatchDiscriminator
from stages.parts.networks.plain_unet import PlainUNet
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.sizes import crop, depth_to_space, derived_depth, pad_to_multiple, space_to_depth
from stages.parts.networks.teacher_student import ResidualUNet, ResidualUnit
from stages.parts.networks.unet import LightUNet, UNet
from stages.parts.networks.voxelmorph import VoxelMorphUNet
from stages.parts.warps import compose, integrate, voxel_grid

ROOT = Path(__file__).parents[2]
BENCHMARKS = {
    path.stem: tuple(yaml.safe_load(path.read_text(encoding="utf-8"))["preprocess"]["shape"])
    for path in sorted((ROOT / "docs" / "benchmarks").glob("*.yaml"))
}
EXAMPLE = (48, 32, 40)  # of data.example, see the first test
GRIDS = {"example": EXAMPLE, "tests": (24, 16, 24), "smallest derived": (16, 16, 16), **BENCHMARKS}


class SmoothLightUNet(LightUNet):
    """The light network as it registers."""

    def __init__(self, inputs, outputs, shape, **widths):
        super().__init__(inputs, outputs, shape, smooth=True, **widths)


class AppearanceUNet(VoxelMorphUNet):
    """DataAug's, which is deeper."""

    def __init__(self, inputs, outputs, shape, **channels):
        super().__init__(inputs, outputs, shape, **data_aug.CHANNELS | channels)


NETWORKS = [UNet, LightUNet, SmoothLightUNet, VoxelMorphUNet, ResidualUNet]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth_image(*size, seed=0):
    """Blurred noise in about [0, 1]."""
    noise = torch.randn(size, generator=generator(seed))
    return torch.cat([0.5 + 3 * gaussian_blur(noise[:, i : i + 1], 2.0) for i in range(size[1])], 1)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


# Depth


def test_the_examples_grid_is_the_one_that_the_tests_below_use():
    config = load_config(ROOT / "data.example" / "lrls.yaml")
    atlas = config.part("atlases")[0]
    scan = read_scan(config, atlas, label=True)
    reference = normalise(scan.image, config.preprocess)[0]
    classes = classes_of(scan.label, config, atlas)
    box = label_box(scan.label, classes, np.eye(4), reference.GetDirection())
    place = (reference.GetDirection(), reference.GetSpacing(), reference.GetOrigin())
    assert derive_grid(config.preprocess, box, *place).shape == EXAMPLE


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_convolution_sees_at_least_three_voxels_an_axis(monkeypatch, network, grid):
    # Depth 2 in bfloat16 gives uninitialised weight gradients on the CPU. Shapes alone: nothing is computed.
    for module in ("unet", "voxelmorph", "teacher_student"):  # autocast knows no meta tensors
        monkeypatch.setattr(f"stages.parts.networks.{module}.in_float32", lambda head, x: head(x))
    seen = []
    with torch.device("meta"):
        net = network(2, 3, GRIDS[grid])
        for module in net.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
        net(torch.zeros(1, 2, *GRIDS[grid]))
    assert seen
    assert min(min(shape) for shape in seen) >= 3


def test_depth_halves_while_three_voxels_remain_on_the_padded_grid():
    assert derived_depth((48, 64, 48), most=4) == 4  # 3 4 3
    assert derived_depth((47, 64, 48), most=4) == 4  # padded to 48
    assert derived_depth((32, 64, 48), most=4) == 3  # 2 would remain
    assert derived_depth((48, 64, 48), most=3, stem=2) == 3
    assert derived_depth((500, 500, 500), most=2) == 2


def test_grid_that_is_too_small_is_refused_with_the_least_size():
    assert derived_depth((5, 5, 5), most=4) == 1
    with pytest.raises(LrlsError, match=r"grid of 4 x 9 x 9 voxels is too small .* preprocess\.shape to more than 4"):
        derived_depth((4, 9, 9), most=4)
    with pytest.raises(LrlsError, match="more than 8 voxels"):
        derived_depth((8, 9, 9), most=4, stem=2)


# Sizes


@pytest.mark.parametrize(
    ("shape", "patches"),
    [((5, 5, 5), (3, 3, 3)), ((10, 12, 13), (5, 6, 7)), ((24, 24, 24), (12,) * 3), ((47, 64, 50), (12, 16, 13))],
)
def test_patch_discriminator_says_one_number_a_patch_on_any_grid(shape, patches):
    judged = PatchDiscriminator(1, shape)(torch.rand(2, 1, *shape))
    assert judged.shape == (2, 1, *patches)
    assert judged.dtype == torch.float32


def test_patch_discriminator_is_the_published_one_where_the_grid_allows():
    network = PatchDiscriminator(1, (160, 160, 128))
    assert [c.weight.shape[:3] for c in network.down] == [(32, 1, 4), (64, 32, 4), (128, 64, 4), (256, 128, 4)]
    assert all(c.stride == (2, 2, 2) for c in network.down)
    assert [(n.num_groups, n.num_channels) for n in network.norms] == [(64, 64), (128, 128), (256, 256)]


@pytest.mark.parametrize(("shape", "levels"), [((80, 96, 80), 3), ((48, 64, 48), 2), ((24, 16, 24), 1), ((9, 9, 9), 1)])
def test_no_patch_is_the_whole_grid(shape, levels):
    assert len(PatchDiscriminator(1, shape).down) == levels  # patches of 46, 22 and 10 voxels


def test_patch_discriminator_judges_every_patch_by_its_own_surroundings():
    shape = (48, 8, 8)  # one level: a patch sees 2 x 3 + 4 = 10 voxels an axis
    network = PatchDiscriminator(1, shape)
    image = torch.rand(1, 1, *shape)
    changed = image.clone()
    changed[:, :, 40:] += 1
    moved = (network(changed) - network(image))[0, 0].abs().amax((1, 2))
    assert moved[-4:].min() > 1e-4 and moved[:12].max() < 1e-6


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(13, 16, 19), (9, 9, 9)])
def test_output_has_the_inputs_grid_whatever_its_size(network, shape):
    output = network(2, 5, shape)(torch.rand(1, 2, *shape))
    assert output.shape == (1, 5, *shape)
    assert output.dtype == torch.float32


def test_parameter_counts_are_the_published_ones():
    assert count(UNet(2, 3, (48, 64, 48))) == 5_887_443
    assert count(VoxelMorphUNet(2, 3, (48, 64, 48))) == 327_331


@pytest.mark.parametrize("network", [UNet, LightUNet, ResidualUNet])
def test_answer_on_the_last_feature_is_the_output_and_features_double_their_grid(network):
    torch.manual_seed(0)
    net, image = network(1, 3, (25, 26, 29)), torch.rand(2, 1, 25, 26, 29)
    features = net.features(image)
    assert torch.equal(net.answer(features[-1], (25, 26, 29)), net(image))
    assert len(features) == 4 if network is not LightUNet else 3
    for coarse, fine in pairwise(features):
        assert tuple(fine.shape[2:]) == tuple(2 * n for n in coarse.shape[2:])
        assert 2 * fine.shape[1] == coarse.shape[1]


def test_residual_unit_adds_its_input():
    unit = ResidualUnit(4, 4)
    image = torch.rand(1, 4, 5, 6, 7)
    torch.testing.assert_close(unit(image) - unit.layers(image), image)
    nn.init.zeros_(unit.layers[5].weight)  # PReLU of slope 0
    assert (unit(image) >= image - 1e-6).all()


def test_heads_of_teacher_and_student_differ_and_nothing_else():
    student, teacher = (ResidualUNet(1, 1, (24, 16, 24), reconstructs=r) for r in (False, True))
    names = [{n for n, _ in net.named_parameters() if "head" not in n} for net in (student, teacher)]
    assert names[0] == names[1]
    assert [net.head.kernel_size[0] for net in (student, teacher)] == [1, 3]
    assert count(student) - count(teacher) == (16 * 16 * 27 + 16) + 1 - 16 * 26  # and the PReLU's slope


def test_light_network_never_convolves_at_full_resolution():
    shapes = []
    net = LightUNet(1, 2, (24, 24, 24))
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[2:])))
    net(torch.rand(1, 1, 24, 24, 24))
    assert max(shapes) == (12, 12, 12)


def test_space_to_depth_makes_channels_of_blocks_and_depth_to_space_undoes_it():
    x = torch.rand(2, 3, 4, 6, 8)
    channels = space_to_depth(x)
    assert channels.shape == (2, 24, 2, 3, 4)
    torch.testing.assert_close(channels[1, 8:16, 1, 2, 3], x[1, 1, 2:4, 4:6, 6:8].flatten())
    assert torch.equal(depth_to_space(channels), x)


def test_padding_adds_zeros_behind_and_cropping_undoes_it():
    x = torch.rand(1, 2, 5, 8, 9)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 2, 8, 8, 12)
    assert float(padded.sum()) == pytest.approx(float(x.sum()))
    assert torch.equal(crop(padded, (5, 8, 9)), x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("groups", [2, 8])  # four channels a group; one, which is InstanceNorm
def test_block_has_torchs_values_and_gradients(groups, memory_format):
    torch.manual_seed(0)
    block = Block(3, 8, groups).to(memory_format=memory_format)
    first, first_norm, second, second_norm = block.layers
    for norm in (first_norm, second_norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    plain = nn.Sequential(first, first_norm, nn.LeakyReLU(0.2), second, second_norm, nn.LeakyReLU(0.2))
    image = torch.rand(2, 3, 5, 6, 7).contiguous(memory_format=memory_format).requires_grad_()
    weights = torch.randn(2, 8, 5, 6, 7)
    results = []
    for network in (block, plain):
        output = network(image)
        wanted = [image, *block.parameters()]
        results.append([output.detach(), *torch.autograd.grad((output * weights).sum(), wanted)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


# Registration


class Says(nn.Module):
    """A body that answers with a given field, or with what it is shown."""

    def __init__(self, field=None):
        super().__init__()
        self.field = field

    def forward(self, x):
        return x if self.field is None else self.field


def waves(amplitude, shape):
    """A smooth velocity that vanishes on the border; its displacement as it stands would fold."""
    x = voxel_grid(shape, torch.zeros(1))
    d, h, w = (x[:, i : i + 1] * math.pi / (shape[i] - 1) for i in range(3))
    inside = d.sin() * h.sin() * w.sin()
    return amplitude * torch.cat([inside * (2 * h).cos(), inside * (2 * w).sin(), -inside * (2 * d).cos()], 1)


def test_the_body_sees_the_fixed_image_first():
    moving, fixed = torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)
    assert RegistrationNetwork(Says())(moving, fixed)[0, :, 0, 0, 0].tolist() == [1, 0]


@pytest.mark.parametrize("diffeomorphic", [False, True])
@pytest.mark.parametrize("name", ["light", "voxelmorph"])
def test_fresh_registration_network_is_the_identity(name, diffeomorphic):
    torch.manual_seed(0)
    shape = (16, 16, 16)
    net = registration_network(name, Task(shape, 3, 1), diffeomorphic=diffeomorphic)
    displacement = net(torch.rand(1, 1, *shape), torch.rand(1, 1, *shape))
    assert 0 < displacement.abs().max() < 1e-3


def test_smooth_head_interpolates_and_keeps_positions():
    # A head that says where its block lies: 2 voxels a block, so interpolation gives back every voxel's own place.
    torch.manual_seed(0)
    net = LightUNet(1, 1, (12, 12, 16), smooth=True)
    net.head = Says(2 * torch.arange(8.0).expand(1, 1, 6, 6, 8) + 0.5)
    output = net(torch.rand(1, 1, 12, 12, 16))
    assert (output[0, 0, 3, 4, 1:-1] / net.UNIT).tolist() == pytest.approx(list(range(1, 15)), abs=1e-4)
    assert output.shape == (1, 1, 12, 12, 16)


def test_diffeomorphic_output_does_not_fold_where_the_velocity_itself_would():
    velocity = waves(6.0, (17, 20, 24))
    displacement = RegistrationNetwork(Says(velocity), diffeomorphic=True)(*torch.zeros(2, 1, 1, 17, 20, 24))
    assert folding_fraction(jacobian_determinant(velocity))[0] > 0.02
    assert folding_fraction(jacobian_determinant(displacement))[0] == 0


@pytest.mark.parametrize("shape", [(33, 29, 37), (32, 28, 36)])
def test_integration_at_half_resolution_is_close_to_full_resolution(shape):
    velocity = waves(3.0, shape)
    displacement = RegistrationNetwork(Says(velocity), diffeomorphic=True)(*torch.zeros(2, 1, 1, *shape))
    full = integrate(velocity)
    error = (displacement - full).norm(dim=1)
    assert full.norm(dim=1).max() > 2
    assert error.mean() < 0.08
    assert error.max() < 0.5


def test_linear_velocity_scales_by_its_exponential_on_even_and_odd_grids():
    # dx/dt = a x ends at exp(a) x. Corners are aligned: on an even grid a voxel at half resolution is not two long.
    for shape in ((6, 7, 8), (9, 6, 10)):
        offset = voxel_grid(shape, torch.zeros(1)) - (torch.tensor(shape).view(1, 3, 1, 1, 1) - 1) / 2
        displacement = RegistrationNetwork(Says(-0.5 * offset), diffeomorphic=True)(*torch.zeros(2, 1, 1, *shape))
        torch.testing.assert_close(displacement, (math.exp(-0.5) - 1) * offset, atol=5e-3, rtol=0)


class Mean(nn.Module):
    """A body that says smooth waves by the fixed image's mean, and a shift that is the same for every pair."""

    def forward(self, x):
        return waves(8.0, tuple(x.shape[2:])) * x[:, :1].mean((1, 2, 3, 4), keepdim=True) + 3.0


@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_antisymmetric_output_forgets_what_is_the_same_for_both_roles(diffeomorphic):
    network = RegistrationNetwork(Mean(), diffeomorphic=diffeomorphic, antisymmetric=True)
    moving, fixed = torch.zeros(1, 1, 17, 20, 24), torch.ones(1, 1, 17, 20, 24)
    both = network.both_ways(moving, fixed)
    torch.testing.assert_close(both, torch.cat([network(moving, fixed), network(fixed, moving)]))
    if diffeomorphic:  # the inverse, but for integration at half resolution
        residual = compose(both[:1], both[1:]).norm(dim=1)
        assert both.norm(dim=1).max() > 2
        assert residual.mean() < 0.1
    else:
        torch.testing.assert_close(both[:1], waves(4.0, (17, 20, 24)))
        torch.testing.assert_close(both[1:], -both[:1])


def test_both_ways_without_antisymmetry_is_the_network_on_either_order():
    torch.manual_seed(0)
    network = RegistrationNetwork(nn.Conv3d(2, 3, 1))
    moving, fixed = torch.rand(2, 1, 1, 4, 5, 6)
    expected = torch.cat([network(moving, fixed), network(fixed, moving)])
    torch.testing.assert_close(network.both_ways(moving, fixed), expected)


# Precision


@pytest.mark.parametrize("network", NETWORKS)
def test_output_is_float32_and_not_rounded_under_bfloat16_autocast(network):
    torch.manual_seed(0)
    net = network(2, 3, (16, 16, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(torch.rand(1, 2, 16, 16, 16))
    assert output.dtype == torch.float32
    assert not torch.equal(output, output.bfloat16().float())


def gradients(network, image, target, *, bf16):
    network.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = network(image)
    (output - target).square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


SMALL = [(network, grid) for network in NETWORKS for grid in ("tests", "smallest derived")]
# What the configurations run: VoxelMorph's U-Net on the brain's grid would take as long as all other tests here.
LARGE = [
    *((network, "example") for network in NETWORKS),
    (LightUNet, "hippocampus"),
    (SmoothLightUNet, "hippocampus"),
    (VoxelMorphUNet, "hippocampus"),
    (SmoothLightUNet, "brain"),
    (AppearanceUNet, "hippocampus"),
]
LIGHT = {"widths": (32, 64, 128, 256)}
CHANNELS = {
    LightUNet: LIGHT,
    SmoothLightUNet: LIGHT,
    VoxelMorphUNet: {
        "encoder": VoxelMorphUNet.ENCODER,
        "decoder": VoxelMorphUNet.DECODER,
        "final": VoxelMorphUNet.FINAL,
    },
    AppearanceUNet: data_aug.CHANNELS,
}


def thinned(network, shape):
    """The network with an eighth of its channels; of the U-Nets a quarter, four of which are normalised together."""
    if network not in CHANNELS:
        widths = tuple(n // 4 for n in network.WIDTHS)
        return type(network.__name__, (network,), {"WIDTHS": widths})(2, 3, shape)
    return network(2, 3, shape, **{name: tuple(n // 8 for n in numbers) for name, numbers in CHANNELS[network].items()})


def gradients_agree(net, shape):
    image, target = smooth_image(1, 2, *shape), smooth_image(1, 3, *shape, seed=1)
    exact, rounded = (gradients(net, image, target, bf16=bf16) for bf16 in (False, True))
    assert exact.isfinite().all() and rounded.isfinite().all()
    # bfloat16 keeps 8 bits, and every layer adds its share; what the trap returns is wrong by orders of magnitude.
    assert (rounded - exact).norm() < 0.15 * exact.norm()


@pytest.mark.parametrize(("network", "grid"), SMALL)
def test_bfloat16_and_float32_gradients_agree(network, grid):
    torch.manual_seed(0)
    gradients_agree(network(2, 3, GRIDS[grid]), GRIDS[grid])


@pytest.mark.parametrize(("network", "grid"), LARGE)
def test_bfloat16_and_float32_gradients_agree_on_large_grids(network, grid):
    """With all channels where oneDNN has kernels for bfloat16, which it picks by size: the trap is one of them.

    Elsewhere torch multiplies unfolded matrices, by one way for all sizes and forty times as slowly. What can go wrong
    there with the size of the grid, sums over more voxels, needs few channels.
    """
    torch.manual_seed(0)
    shape = GRIDS[grid]
    has_kernels = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    gradients_agree(network(2, 3, shape) if has_kernels else thinned(network, shape), shape)


def test_plain_unet_is_the_published_one_without_any_normalisation():
    with torch.device("meta"):
        network = PlainUNet(1, 5, (128, 160, 160))
    assert [level[0].out_channels for level in network.encoder] == [32, 64, 128, 256, 512]
    assert {type(module) for module in network.modules() if not list(module.children())} == {nn.Conv3d, nn.ReLU}
    assert all(layer.bias is None and layer.stride == (2, 2, 2) for layer in network.down)
    small = PlainUNet(1, 3, (12, 13, 20))
    assert small(torch.rand(2, 1, 12, 13, 20)).shape == (2, 3, 12, 13, 20)
