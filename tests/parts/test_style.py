"""Parts of SST: momentum contrast by hand, AdaIN's statistics, MS-SSIM against MONAI, flows as codes, who learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.metrics.regression import MultiScaleSSIMMetric
from torch import nn

from stages.methods.phases import Phase, Player, WeightedSum
from stages.parts.augmentation import SpatialAugmentation, brighten
from stages.parts.batches.drawing import Draw
from stages.parts.batches.pairs import OneAtlas, TwoScans, one_atlas_and_scans, two_scans
from stages.parts.batches.scans import Scans
from stages.parts.losses import absolute_gradient_loss, info_nce_loss, ms_ssim, structural_loss
from stages.parts.losses.similarity import _ssim
from stages.parts.networks.appearance import AdaptiveBlock, AppearanceModel, drawn, ranks
from stages.parts.networks.discriminators import LatentDiscriminator
from stages.parts.networks.flow_autoencoder import FlowAutoencoder
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.style import CODE, Contrasted, MomentumContrast, StyleEncoder, style_prior
from stages.parts.networks.styled_registration import StyledRegistration
from stages.parts.networks.voxelmorph import StridedUNet
from stages.parts.players import flow as flows
from stages.parts.players import style as styles
from stages.parts.players.flow import Coded, EncodeFlows, FlowsOfAtlas
from stages.parts.players.judging import JudgeFlows, JudgeStyles, fake, real
from stages.parts.players.registering import Registered
from stages.parts.players.style import Contrast, ContrastStyles, Encoded, RegisterStyled, Transfer
from stages.parts.synthesis import Synthesis
from stages.parts.warps import rescale, warp
from stages.training.loop import give_turn

SHAPE = (10, 12, 11)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(*size, seed=0):
    return torch.rand(size, generator=generator(seed))


def drawing(batch_size=2, space=None, seed=0):
    return Draw(batch_size, space, None, generator(seed))


def scans(count=4):
    """Two atlases and scans; image i is about i / 10."""
    images = torch.stack([0.1 * i + 0.05 * textured(1, *SHAPE, seed=i) for i in range(count)]).half()
    labels = {i: torch.randint(3, SHAPE, generator=generator(i)).short() for i in (0, 1)}
    names = [f"s{i}" for i in range(count)]
    return Scans(names, images, labels, [0, 1], list(range(2, count)), 3, (1.0, 1.0, 1.0))


def pair(seed=0):
    return TwoScans(
        ["a", "b"],
        *textured(2, 1, 1, *SHAPE, seed=seed),
        torch.tensor([0]),
        drawing(1),
        textured(1, 1, *SHAPE, seed=seed + 50),
        torch.tensor([1]),
        textured(1, 1, *SHAPE, seed=seed + 60),
    )


# Momentum contrast


class Direction(nn.Module):
    """Codes that point along a weight, whatever the image."""

    def __init__(self, angle=0.0):
        super().__init__()
        self.angle = nn.Parameter(torch.tensor(angle))

    def forward(self, image):
        code = torch.stack([self.angle.cos(), self.angle.sin()])
        return F.pad(code, (0, CODE - 2)).expand(len(image), CODE)


def test_contrast_by_hand():
    query, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    negatives = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    free = torch.tensor([[False, False, True]])
    found = info_nce_loss(query, key, negatives, free, temperature=0.5)
    assert float(found) == pytest.approx(-math.log(math.exp(1.2) / (math.exp(1.2) + 1 + math.exp(-2))))
    every = info_nce_loss(query, key, negatives, torch.zeros(1, 3, dtype=torch.bool), temperature=0.5)
    assert float(every) == pytest.approx(-math.log(math.exp(1.2) / (math.exp(1.2) + 1 + math.exp(-2) + math.exp(2))))
    assert float(info_nce_loss(query, key, negatives, torch.ones(1, 3, dtype=torch.bool), temperature=0.5)) == 0


def test_keys_come_from_the_copy_after_it_has_followed_by_a_hundredth():
    contrast = MomentumContrast(Direction(0.0), size=4)
    with torch.no_grad():
        contrast.encoder.angle.fill_(1.0)
    found = contrast(*[textured(1, 1, 4, 4, 4)] * 2, torch.tensor([3]), textured(1, 1, 4, 4, 4))
    assert float(contrast.key_encoder.angle) == pytest.approx(0.99 * 0.0 + 0.01 * 1.0)
    assert found.query[0, :2].tolist() == pytest.approx([math.cos(1), math.sin(1)])
    assert found.key[0, :2].tolist() == pytest.approx([math.cos(0.01), math.sin(0.01)])
    contrast.follow()
    assert float(contrast.key_encoder.angle) == pytest.approx(0.99 * 0.01 + 0.01)


def test_new_keys_replace_the_oldest_ones_and_are_no_negatives_of_their_own_step():
    contrast = MomentumContrast(Direction(), size=5)
    first = contrast.queue.clone()
    assert contrast.queue.norm(dim=1).tolist() == pytest.approx([1] * 5)
    images = textured(2, 1, 4, 4, 4)
    found = contrast(images, images, torch.tensor([7, 8]), images)
    assert torch.equal(found.negatives, first) and not found.own.any()
    assert contrast.owners.tolist() == [7, 8, -1, -1, -1]
    assert torch.equal(contrast.queue[2:], first[2:]) and torch.equal(contrast.queue[:2], found.key)
    for owners in ([9, 10], [11, 12]):
        contrast.enqueue(torch.eye(CODE)[:2], torch.tensor(owners), torch.eye(CODE)[2:4])
    assert contrast.owners.tolist() == [12, 8, 9, 10, 11] and int(contrast.pointer) == 1
    assert torch.equal(contrast.looks[[4, 0]], torch.eye(CODE)[2:4]) and torch.equal(contrast.looks[1], found.query[1])


@pytest.mark.parametrize("of", ["query", "key"])
def test_looks_are_remembered_as_the_appearance_model_sees_them(of):
    contrast = MomentumContrast(StyleEncoder(SHAPE), size=4, looks_of=of)
    with torch.no_grad():
        contrast.encoder.head[0].weight.mul_(-1)
        scan, moved = textured(1, 1, *SHAPE), textured(1, 1, *SHAPE, seed=1)
        contrast(0.5 * scan, moved, torch.tensor([3]), scan)
        expected = (contrast.encoder if of == "query" else contrast.key_encoder)(scan)
    torch.testing.assert_close(contrast.looks[:1], expected)


def test_keys_of_the_querys_own_scan_are_left_out():
    contrast = MomentumContrast(Direction(), size=3)
    contrast.owners.copy_(torch.tensor([4, 5, 4]))
    images = textured(2, 1, 4, 4, 4)
    found = contrast(images, images, torch.tensor([4, 6]), images)
    assert found.own.tolist() == [[True, False, True], [False, False, False]]
    contrast = MomentumContrast(Direction(), size=3, own=True)  # but not where its look changes from draw to draw
    contrast.owners.copy_(torch.tensor([4, 5, 4]))
    assert not contrast(images, images, torch.tensor([4, 6]), images).own.any()


def test_the_queue_is_part_of_the_weights_and_the_copy_takes_no_gradient():
    contrast = MomentumContrast(StyleEncoder(SHAPE), size=6)
    assert {"queue", "owners", "pointer"} <= contrast.state_dict().keys()
    found = contrast(textured(1, 1, *SHAPE), textured(1, 1, *SHAPE, seed=1), torch.tensor([0]), textured(1, 1, *SHAPE))
    Contrast(0.07)(Encoded(found)).backward()
    assert all(p.grad is not None for p in contrast.encoder.parameters())
    assert all(p.grad is None and not p.requires_grad for p in contrast.key_encoder.parameters())


def test_same_looks_in_other_shapes_are_told_from_other_looks_after_some_steps():
    # What learning by contrast is for: the codes of two looks part, those of one look in two shapes do not.
    torch.manual_seed(0)
    contrast = MomentumContrast(StyleEncoder((8, 8, 8)), size=16)
    shapes = [textured(8, 8, 8, seed=seed) for seed in range(4)]
    looks = [lambda x: 0.2 + 0.6 * x, lambda x: 0.8 * (1 - x) ** 3]
    optimizer = torch.optim.Adam(contrast.encoder.parameters(), lr=1e-3)
    for step in range(15):
        query, key = (torch.stack([look(shapes[(step + k) % 4])[None] for look in looks]) for k in (0, 1))
        loss = Contrast(0.1)(Encoded(contrast(query, key, torch.tensor([0, 1]), query)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes = [contrast.encoder(torch.stack([look(shape)[None] for shape in shapes])) for look in looks]
    within = min(float((each @ each.T).min()) for each in codes)
    assert within > float((codes[0] @ codes[1].T).max()) + 0.2


@pytest.mark.parametrize("shape", [(128, 160, 160), (48, 64, 48), (24, 16, 24), (5, 9, 17)])
def test_style_encoders_of_all_grids_have_the_same_weights_and_keep_four_voxels_an_axis(shape):
    network = StyleEncoder(shape)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in StyleEncoder((128, 160, 160)).state_dict().items()
    }
    strides = [layer.stride for layer in network.backbone if isinstance(layer, nn.Conv3d)]
    left = list(shape)
    for stride in strides:
        left = [-(-n // s) for n, s in zip(left, stride, strict=True)]
    assert all(n >= min(4, size) for n, size in zip(left, shape, strict=True))
    if shape == (128, 160, 160):
        assert strides == [(4, 4, 4), *[(2, 2, 2)] * 3, (1, 1, 1)] and left == [4, 5, 5]
    else:
        codes = network(textured(2, 1, *shape))
        assert codes.shape == (2, CODE) and codes.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_light_style_encoder_sees_contrast_that_the_first_layer_of_the_published_one_takes_away():
    centred = textured(1, 1, 16, 16, 16) - 0.5
    for light in (False, True):
        network = StyleEncoder((16, 16, 16), light=light).requires_grad_(False)
        first, half = network.backbone[:3](centred), network.backbone[:3](0.5 * centred)
        assert torch.allclose(first, half, atol=0.01, rtol=0.01) != light


def test_the_prior_of_styles_is_on_the_sphere_and_has_no_direction():
    codes = style_prior(4000, generator())
    assert codes.norm(dim=1).sub(1).abs().max() < 1e-5
    assert codes.mean(0).abs().max() < 5 / math.sqrt(4000 * CODE)


# Appearance


def test_adain_gives_every_channel_the_mean_and_deviation_that_the_style_says():
    torch.manual_seed(0)
    block, x, style = AdaptiveBlock(2, 3), textured(2, 2, 6, 7, 8), textured(2, CODE, seed=1)
    assert float(block.scale.weight.detach().std()) == pytest.approx(1e-4, rel=0.2) and not block.offset.bias.any()
    with torch.no_grad():
        block.scale.bias.copy_(torch.tensor([0.5, 0.0, 1.0]))
        block.offset.bias.copy_(torch.tensor([9.0, 8.0, 7.0]))  # so far up that LeakyReLU changes nothing
        found = block(x, style)
    for statistic, layer, first in (
        (found.std((2, 3, 4), correction=0), block.scale, 1.0),
        (found.mean((2, 3, 4)), block.offset, 0.0),
    ):
        torch.testing.assert_close(statistic, first + layer(style), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("light", [False, True])
def test_appearance_model_keeps_the_grid_and_depends_on_image_and_style(light):
    torch.manual_seed(0)
    model, image = AppearanceModel(light=light), textured(2, 1, *SHAPE)
    for block in model.up:
        nn.init.normal_(block.scale.weight, std=0.1)
    code = style_prior(2, generator())
    found = model(image, code)
    assert found.shape == image.shape and found.min() >= 0 and found.max() <= 1
    assert (model(image, code.flip(0)) - found).abs().max() > 1e-3
    assert (model(image.flip(2), code) - found).abs().max() > 1e-3
    assert len(model.up) == (2 if light else 3)


def test_light_appearance_model_takes_rising_curves_of_intensities_from_the_code_alone():
    image, code = textured(1, 1, 12, 12, 12).clamp(0.01), style_prior(1, generator())
    image[:, :, :3] = 0  # outside the scan
    for curve in (lambda x: 0.3 * x, lambda x: x**4, torch.sqrt):
        torch.manual_seed(0)
        published, light = (AppearanceModel(light=light).requires_grad_(False) for light in (False, True))
        torch.testing.assert_close(light(curve(image), code), light(image, code))
        assert (published(curve(image), code) - published(image, code)).abs().max() > 1e-3
        assert not light(image, code)[:, :, :3].any()


def test_ranks_are_shares_of_what_is_not_brighter():
    image = torch.tensor([[0.0, 0.2, 0.9, 0.2], [0.5, 0.0, 0.25, 0.125]]).view(2, 1, 1, 2, 2)
    expected = torch.tensor([[0, 2 / 3, 1, 2 / 3], [1, 0, 2 / 3, 1 / 3]]).view(2, 1, 1, 2, 2)
    torch.testing.assert_close(ranks(image), expected)
    assert not ranks(torch.zeros(1, 1, 2, 2, 2)).any()


def test_curves_run_straight_from_knot_to_knot():
    knots = torch.randn(2, 5, generator=generator())
    places = torch.tensor([0.0, 0.1, 0.25, 0.6, 0.99, 1.0]).repeat(2, 1)
    expected = [np.interp(p, np.linspace(0, 1, 5), k) for k, p in zip(knots.numpy(), places.numpy(), strict=True)]
    found = drawn(knots, places.view(2, 1, 1, 2, 3)).view(2, 6)
    torch.testing.assert_close(found, torch.tensor(np.array(expected), dtype=torch.float32))


def test_light_appearance_model_begins_with_the_curve_that_the_code_draws():
    torch.manual_seed(0)
    model, image, code = AppearanceModel(light=True), textured(2, 1, 11, 12, 13), style_prior(2, generator())
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    knots = []
    model.curve.register_forward_hook(lambda _module, _inputs, out: knots.append(out))
    found = model(image, code)
    expected = (torch.tanh(drawn(knots[0], ranks(image))) + 1) / 2
    torch.testing.assert_close(found, expected)
    assert torch.corrcoef(torch.stack([expected.flatten(), image.flatten()]))[0, 1] > 0.9  # as the image, at first


def test_curve_of_the_light_model_depends_on_the_code_and_on_what_the_image_looks_like():
    torch.manual_seed(0)
    model, code = AppearanceModel(light=True), style_prior(2, generator())
    image = torch.linspace(0.1, 1, 12).view(1, 1, 12, 1, 1) * torch.ones(1, 1, 12, 12, 12)  # dark to bright
    knots = []
    model.curve.register_forward_hook(lambda _module, _inputs, out: knots.append(out))
    for seen, by in ((image, code[:1]), (image, code[1:]), (1.1 - image, code[:1]), (0.5 * image**3, code[:1])):
        model(seen, by)
    plain, other_code, negative, rising = knots
    assert (plain - other_code).abs().max() > 1e-4 and (plain - negative).abs().max() > 1e-4
    torch.testing.assert_close(plain, rising)  # any rising curve of an image has its ranks


def test_light_appearance_model_soon_learns_to_give_a_scan_and_its_negative_one_look():
    torch.manual_seed(0)
    model, code = AppearanceModel(light=True), style_prior(1, generator()).repeat(2, 1)
    ball = (torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 12)] * 3, indexing="ij")).square().sum(0) < 0.7).float()
    scan = (0.2 + 0.6 * ball + 0.1 * textured(12, 12, 12))[None, None]
    seen = torch.cat([scan, 1 - scan])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(21):
        loss = structural_loss(scan.repeat(2, 1, 1, 1, 1), model(seen, code))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2  # with a curve of the code alone 0.31; 1.5 at first


def test_light_appearance_model_sees_codes_whose_numbers_are_about_1():
    model, seen = AppearanceModel(light=True), []
    model.style.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0]))
    code = style_prior(3, generator())
    model(textured(3, 1, 8, 8, 8), code)
    torch.testing.assert_close(seen[0], code * math.sqrt(CODE))
    torch.testing.assert_close(seen[0].square().mean(1), torch.ones(3))


def test_appearance_model_learns_to_say_an_image_again_through_its_bottleneck():
    torch.manual_seed(0)
    model, code = AppearanceModel(light=True), style_prior(1, generator())
    image = torch.zeros(1, 1, 12, 12, 12)
    image[..., 3:9, 2:8, 4:10] = 0.8
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = structural_loss(image, model(image, code))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.35 * losses[0]


# Losses


@pytest.mark.parametrize(("shape", "scales"), [((14, 16, 18), 2), ((28, 28, 32), 3)])
def test_ms_ssim_agrees_with_monai(shape, scales):
    first, second = textured(2, 1, *shape), textured(2, 1, *shape, seed=1)
    second = 0.7 * first + 0.3 * second
    weights = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales])
    reference = MultiScaleSSIMMetric(3, kernel_size=7, weights=(weights / weights.sum()).tolist())
    expected = [float(each) for each in reference(first, second)]
    assert float(ms_ssim(first, second)) == pytest.approx(sum(expected) / 2, abs=1e-4)  # variances of float32
    plain = [float(each) for each in MultiScaleSSIMMetric(3, kernel_size=7, weights=(1.0,))(first, second)]
    assert float(ms_ssim(first, second, most_scales=1)) == pytest.approx(sum(plain) / 2, abs=1e-5)


@pytest.mark.parametrize("shape", [(5, 6, 7), (7, 9, 30), (16, 16, 16)])
def test_ms_ssim_is_one_for_equal_images_and_has_a_gradient_everywhere(shape):
    image = textured(1, 1, *shape)
    assert float(ms_ssim(image, image)) == pytest.approx(1, abs=1e-5)
    for other in (1 - image, torch.zeros_like(image), torch.full_like(image, 0.5)):
        other.requires_grad_()
        value = ms_ssim(image, other)
        value.backward()
        assert -1 <= float(value.detach()) < 0.99 and bool(other.grad.isfinite().all())


def test_ms_ssim_of_an_image_and_its_negative_is_negative_and_leads_away_from_it():
    image = textured(1, 1, 16, 16, 16)  # two scales
    negative = (1 - image).requires_grad_()
    value = ms_ssim(image, negative)
    value.backward()
    assert -1 < float(value.detach()) < -0.8
    with torch.no_grad():
        assert float(ms_ssim(image, negative + 100 * negative.grad)) > float(value) + 1e-4
    plain = float(ms_ssim(image, (1 - image), most_scales=1))
    _, whole = _ssim(image, 1 - image, 7)
    assert plain == pytest.approx(float(whole.mean()) + 1e-4, abs=1e-6)  # one scale: SSIM with its sign


def test_structural_loss_counts_differences_on_the_scale_from_minus_one_to_one():
    image = torch.full((1, 1, 8, 8, 8), 0.4)
    assert float(structural_loss(image, image)) == pytest.approx(0, abs=1e-6)
    found = float(structural_loss(image, image + 0.1))
    luminance = (2 * 0.4 * 0.5 + 1e-4) / (0.4**2 + 0.5**2 + 1e-4)
    assert found == pytest.approx(2 * 0.1 + 1 - luminance, abs=1e-4)


def test_absolute_gradient_of_a_stretch_is_its_slope():
    displacement = torch.zeros(1, 3, 5, 6, 7)
    displacement[:, 2] = 0.3 * torch.arange(7)
    assert float(absolute_gradient_loss(displacement)) == pytest.approx(0.3 / 9)
    assert float(absolute_gradient_loss(torch.full((1, 3, 5, 6, 7), 4.0))) == 0


# Flows


@pytest.mark.parametrize("light", [False, True])
def test_flows_keep_their_vectors_on_the_grid_of_the_autoencoder_and_back(light):
    shape = (21, 31, 41)
    autoencoder = FlowAutoencoder(shape, light=light)
    assert autoencoder.grid == ((16, 16, 32) if light else (32, 32, 64))
    shift = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, *shape)
    inside = autoencoder.inside(shift)
    ratio = [(m - 1) / (n - 1) for m, n in zip(autoencoder.grid, shape, strict=True)]
    assert inside[0, :, 5, 5, 5].tolist() == pytest.approx([ratio[0], -2 * ratio[1], 3 * ratio[2]])
    torch.testing.assert_close(autoencoder.outside(inside), shift)
    smooth = rescale(textured(1, 3, 4, 4, 4), shape)
    assert (autoencoder.outside(autoencoder.inside(smooth)) - smooth).abs().max() < 0.2 * smooth.abs().max()
    code = autoencoder.encode(inside)
    assert code.shape == (1, *autoencoder.code_shape) == (1, 64, 1, 1, 2)
    assert autoencoder.decode(code).shape == (1, 3, *autoencoder.grid)


def test_light_autoencoder_keeps_how_far_a_displacement_goes_and_the_published_one_does_not():
    for light in (False, True):
        torch.manual_seed(0)
        autoencoder = FlowAutoencoder((64, 64, 64), light=light).requires_grad_(False)
        field = torch.randn(1, 3, *autoencoder.grid, generator=generator())
        code = autoencoder.encode(field)
        assert float(autoencoder.encode(4 * field).norm() / code.norm()) == pytest.approx(4 if light else 1, rel=0.05)
        if light:  # neither shrunk nor swollen by ten layers
            assert 0.2 < float(autoencoder.decode(torch.randn(code.shape, generator=generator())).std()) < 5


def test_strided_unet_is_the_published_one_on_large_grids_and_starts_near_the_identity():
    network = StridedUNet(2, 3, (128, 160, 160))
    assert [(c.in_channels, c.out_channels) for c in network.down] == [(2, 16), (16, 32), (32, 32), (32, 32)]
    assert [(c.in_channels, c.out_channels) for c in network.up] == [(32, 32), (64, 32), (64, 32), (48, 16)]
    assert (network.last.in_channels, network.head.kernel_size) == (18, (5, 5, 5))
    small = StridedUNet(2, 3, SHAPE)
    found = small(textured(1, 2, *SHAPE))
    assert found.shape == (1, 3, *SHAPE) and found.abs().max() < 0.5


class Shift(nn.Module):
    """Moves every pair by the mean of its fixed image, along D."""

    def forward(self, moving, fixed):
        self.calls = getattr(self, "calls", 0) + 1
        field = torch.zeros(len(moving), 3, *moving.shape[2:])
        field[:, 0] = fixed.mean((1, 2, 3, 4)).view(-1, 1, 1, 1)
        return field


def test_displacements_are_found_once_for_a_pair_as_far_as_there_is_room_and_mixed_as_the_batch_says():
    fixed = torch.tensor([0.25, 0.5]).view(2, 1, 1, 1, 1).expand(2, 1, *SHAPE)
    autoencoder = FlowAutoencoder(SHAPE, light=True)
    ratio = 15 / (SHAPE[0] - 1)  # voxels of the autoencoder's grid
    for most_bytes, calls in ((2**30, 2), (3 * 16**3 * 2, 3), (0, 4)):
        registration = Shift()
        of_atlas = FlowsOfAtlas(registration, autoencoder, most_bytes)
        for _ in range(2):
            batch = OneAtlas(["a", "a", "u", "v"], fixed, fixed, torch.tensor([[1.0, 0.0], [0.25, 0.75]]), drawing())
            found = of_atlas(batch)
            expected = [0.25 * ratio, (0.25 * 0.25 + 0.75 * 0.5) * ratio]
            assert found.shape == (2, 3, 16, 16, 16) and found[:, 0, 0, 0, 0].tolist() == pytest.approx(
                expected, rel=1e-3
            )
            assert of_atlas(batch) is found
        assert registration.calls == calls


def test_terms_of_the_autoencoder():
    autoencoder = FlowAutoencoder(SHAPE)
    field = torch.zeros(1, 3, *autoencoder.grid)
    atlas = textured(1, 1, *SHAPE)
    same = Coded(field, field, atlas, autoencoder)
    off = Coded(field, field + 0.5, atlas, autoencoder, judged=torch.tensor([[0.25]]))
    assert float(flows.flow_reconstruction(same)) == 0 and float(flows.flow_reconstruction(off)) == pytest.approx(0.5)
    assert float(flows.image_reconstruction(same)) == pytest.approx(0, abs=1e-5)
    assert float(flows.image_reconstruction(off)) > 0.01
    assert float(flows.adversarial(off)) == pytest.approx(0.75**2)


# Batches


def test_two_scans_differ_and_are_named_and_owned_by_the_one_that_moves():
    data = scans()
    seen = set()
    for seed in range(20):
        batch = two_scans(data, drawing(3, seed=seed))
        assert all(a != b for a, b in zip(batch.scans[:3], batch.scans[3:], strict=True))
        assert [f"s{int(i)}" for i in batch.owner] == batch.scans[:3]
        assert torch.equal(batch.moving, data.image(batch.owner.tolist()))
        seen |= set(zip(batch.scans[:3], batch.scans[3:], strict=True))
    assert len(seen) == 4 * 3


def test_jitter_changes_both_scans_of_a_pair_alike_or_each_on_its_own_and_stays_what_it_was_off():
    data, plain = scans(), two_scans(scans(), drawing(2))
    assert torch.equal(two_scans(data, drawing(2), jitter="none").moving, plain.moving)
    for jitter, alike in (("pair", 2), ("each", 1)):
        factors = 0.7 + 0.6 * torch.rand((4 // alike, 2, 1, 1, 1, 1), generator=after_places())
        expected = [
            brighten(torch.cat([plain.moving, plain.fixed])[i : i + 1], *factors[i % len(factors)][:, None])
            for i in range(4)
        ]
        expected = [image.clamp(min=1e-3) for image in expected]
        found = two_scans(data, drawing(2), jitter=jitter)
        torch.testing.assert_close(torch.cat([found.moving, found.fixed]), torch.cat(expected))
        assert found.scans == plain.scans and torch.equal(found.plain, plain.moving)


def test_jitter_leaves_what_lies_outside_a_scan_at_0_and_every_voxel_its_rank():
    images = 0.1 + 0.5 * textured(4, 1, *SHAPE)  # far from 0 and 1, where a factor would cut voxels off
    images[:, :, :4] = 0
    data = replace(scans(), images=images)
    for seed in range(10):
        found, plain = (two_scans(data, drawing(2, seed=seed), jitter=jitter) for jitter in ("each", "none"))
        assert torch.equal(found.moving > 0, plain.moving > 0) and not torch.equal(found.moving, plain.moving)
        torch.testing.assert_close(ranks(found.moving), ranks(plain.moving), atol=0.01, rtol=0)


def after_places():
    """What is left to draw from behind the places of two pairs of four scans."""
    source = generator()
    torch.randint(4, (2,), generator=source)
    torch.randint(3, (2,), generator=source)
    return source


def test_the_autoencoder_sees_one_atlas_a_step_that_no_augmentation_moves():
    data = scans(6)
    turned = SpatialAugmentation(degrees=15.0, scale=(0.8, 1.2))
    for seed in range(5):
        batch = one_atlas_and_scans(data, drawing(3, space=turned, seed=seed))
        assert len(set(batch.scans[:3])) == 1 and batch.scans[0] in ("s0", "s1")
        assert torch.equal(batch.fixed, data.image([int(name[1]) for name in batch.scans[3:]]))
        assert torch.equal(batch.mixture, torch.eye(3))
    mixed = one_atlas_and_scans(data, drawing(200), mix=True).mixture
    assert mixed.shape == (200, 600) and mixed.sum(1).tolist() == pytest.approx([1] * 200)
    assert 1 / 1.6 <= float(mixed.diagonal().min()) < 0.7 and int((mixed > 0).sum(1).max()) == 3


def test_mixtures_draw_their_partners_from_all_scans_also_in_a_batch_of_one():
    data, partners = scans(6), set()
    for seed in range(40):
        batch = one_atlas_and_scans(data, drawing(1, seed=seed), mix=True)
        assert batch.mixture.shape == (1, 3) and float(batch.mixture[0, 0]) < 1
        assert len(batch.scans) == 6 and len(set(batch.scans[:3])) == 1
        partners |= set(batch.scans[4:])
    assert partners == {"s2", "s3", "s4", "s5"}
    found = EncodeFlows(FlowsOfAtlas(Told(), Halves()), Halves(), None)(batch)
    expected = sum(float(share) * int(name[1]) for share, name in zip(batch.mixture[0], batch.scans[3:], strict=True))
    torch.testing.assert_close(found.displacement, torch.full_like(found.displacement, expected), atol=0.05, rtol=0)
    assert found.atlas.shape == found.rebuilt[:, :1].shape


class Told(nn.Module):
    """A registration that moves everything by ten times the mean of the fixed image, which is its number."""

    def forward(self, moving, fixed):
        return (10 * fixed.mean((1, 2, 3, 4), keepdim=True) - 0.25).expand(-1, 3, *fixed.shape[2:])


class Halves:
    """An autoencoder of nothing."""

    def inside(self, field):
        return field

    def encode(self, field):
        return field

    def decode(self, code):
        return code


# Who learns


def styled_networks(code_of="query"):
    torch.manual_seed(0)
    flow = RegistrationNetwork(StridedUNet(2, 3, SHAPE))
    model = AppearanceModel(light=True)
    for block in model.up:
        nn.init.normal_(block.scale.weight, std=0.1)
    R = StyledRegistration(flow, model, MomentumContrast(StyleEncoder(SHAPE), size=8), code_of=code_of)
    return R, LatentDiscriminator(CODE, layers=5, width=128)


def learners(total, **networks):
    for network in networks.values():
        network.zero_grad()
    total.backward()
    return {name for name, n in networks.items() if any(p.grad is not None and p.grad.any() for p in n.parameters())}


def test_query_and_own_look_are_the_scans_that_are_asked_for_and_keys_are_made_by_the_transformer():
    R, _ = styled_networks()
    seen = []
    R.style.forward = lambda scan, moved, owner, plain: seen.append((scan, moved, owner, plain))
    batch = pair()
    nn.init.normal_(R.flow.body.head.weight, std=0.05)
    with torch.no_grad():
        for own in ("moving", "fixed"):
            result = Transfer(R, None, own=own)(batch)
            assert torch.equal(result.own, getattr(batch, own))
            torch.testing.assert_close(result.same, R.appearance(result.own, R.code(result.own)))
        (scan, moved, owner, plain), (other, back, other_owner, other_plain) = seen
        assert torch.equal(scan, batch.moving) and torch.equal(other, batch.fixed)
        assert torch.equal(owner, batch.owner) and torch.equal(other_owner, batch.fixed_owner)
        assert torch.equal(plain, batch.plain) and torch.equal(other_plain, batch.fixed_plain)
        torch.testing.assert_close(moved, warp(scan, R.flow(R.restyled(scan, other), other)))
        torch.testing.assert_close(back, warp(other, R.flow(other, scan)))
        R.transformer = RegistrationNetwork(StridedUNet(2, 3, SHAPE))
        nn.init.normal_(R.transformer.body.head.weight, std=0.05)
        for own, target in (("moving", other), ("fixed", scan)):
            Transfer(R, None, own=own)(batch)
            torch.testing.assert_close(seen[-1][1], warp(seen[-1][0], R.transformer(seen[-1][0], target)))


@pytest.mark.parametrize(
    ("term", "code_of", "who"),
    [
        (styles.style_cycle, "query", {"encoder", "appearance"}),
        (styles.style_identity, "query", {"encoder", "appearance"}),
        (styles.reconstruction, "query", {"encoder", "appearance", "flow"}),
        (styles.gradient, "query", {"encoder", "appearance", "flow"}),
        (Contrast(0.07), "query", {"encoder"}),
        (styles.adversarial, "query", {"encoder", "judge"}),
        (styles.reconstruction, "key", {"appearance", "flow"}),
        (styles.style_cycle, "key", {"appearance"}),
        (Contrast(0.07), "key", {"encoder"}),
    ],
)
def test_terms_of_the_joint_phase_teach_the_networks_that_they_are_about(term, code_of, who):
    R, judge = styled_networks(code_of)
    total = term(Transfer(R, judge)(pair()))
    assert learners(total, encoder=R.style.encoder, appearance=R.appearance, flow=R.flow, judge=judge) == who


def test_apart_the_appearance_model_and_the_flow_model_do_not_reach_each_other():
    R, judge = styled_networks()
    networks = {"encoder": R.style.encoder, "appearance": R.appearance, "flow": R.flow}
    assert learners(styles.reconstruction(RegisterStyled(R)(pair())), **networks) == {"flow"}
    state = Transfer(R, judge, registers=False)(pair())
    assert not state.displacement.requires_grad
    assert learners(styles.style_cycle(state), **networks) == {"encoder", "appearance"}


def test_discriminators_and_what_they_judge_learn_apart():
    R, judge = styled_networks()
    encoder = R.style.encoder
    autoencoder = FlowAutoencoder(SHAPE, light=True)
    of_atlas = FlowsOfAtlas(Shift(), autoencoder)
    flow_judge = LatentDiscriminator(autoencoder.code_size, layers=2, width=256)
    one_atlas = one_atlas_and_scans(scans(), drawing())
    rows = [
        (
            encoder, ContrastStyles(R.style, R.flow, judge), styles.adversarial,
            judge, JudgeStyles(encoder, judge), pair(),
        ),
        (
            autoencoder.encoder, EncodeFlows(of_atlas, autoencoder, flow_judge), flows.adversarial,
            flow_judge, JudgeFlows(of_atlas, autoencoder, flow_judge), one_atlas,
        ),
    ]  # fmt: skip
    for generates, forward, adversarial, judges, judging, batch in rows:
        players = [
            Player("generator", generates, forward, WeightedSum(adversarial=(1.0, adversarial))),
            Player("judge", judges, judging, WeightedSum(real=(0.5, real), fake=(0.5, fake))),
        ]
        phase = Phase("p", lambda *_: None, players)
        for turn, (moves, stands) in enumerate(((generates, judges), (judges, generates))):
            give_turn(players[turn], phase)
            total, _ = players[turn].loss(players[turn].forward(batch))
            assert learners(total, moves=moves, stands=stands) == {"moves"}


def test_the_judge_learns_one_for_the_prior_and_zero_for_codes():
    R, judge = styled_networks()
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)
    loss = WeightedSum(real=(0.5, real), fake=(0.5, fake))
    images = textured(2, 8, 1, *SHAPE)
    batch = TwoScans([], *images, torch.arange(8), drawing(8), images[0], torch.arange(8), images[1])
    forward = JudgeStyles(R.style.encoder, judge)
    for _ in range(60):
        total, _ = loss(forward(batch))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    with torch.no_grad():
        assert judge(style_prior(32, generator(9))).mean() > 0.8 and judge(R.style.encoder(batch.moving)).mean() < 0.2


def test_positive_keys_are_the_querys_scan_in_the_shape_that_was_found():
    R, judge = styled_networks()
    nn.init.normal_(R.flow.body.head.weight, std=0.05, generator=generator())
    seen = []
    R.style.key_encoder.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0]))
    batch = pair()
    state = Transfer(R, judge)(batch)
    assert torch.equal(seen[0], warp(batch.moving, state.displacement)) and isinstance(state, Registered)
    ContrastStyles(R.style, R.flow, judge)(batch)
    assert torch.equal(seen[1], warp(batch.moving, R.flow(batch.moving, batch.fixed)))
    assert torch.equal(R(batch.moving, batch.fixed), R.flow(R.restyled(batch.moving, batch.fixed), batch.fixed))


# Drawing


def synthesis(**changes):
    R, _ = styled_networks()
    return Synthesis(R, FlowAutoencoder(SHAPE, light=True), R.appearance, **changes)


def test_drawn_scans_are_the_atlas_in_the_drawn_look_and_shape_and_look_at_no_scan():
    draw, data = synthesis(), scans()
    with torch.no_grad():
        drawn = draw(data, 1, generator(3))
        again = draw(data, 1, generator(3))
        other = draw(data, 1, generator(4))
        data.images[2:] = 0
        blind = draw(data, 1, generator(3))
    source = generator(3)
    style = style_prior(1, source)
    code = torch.randn((1, *draw.autoencoder.code_shape), generator=source)
    with torch.no_grad():
        field = draw.autoencoder.outside(draw.autoencoder.decode(code))
        expected = warp(draw.appearance(data.image([1]), style), field)
    torch.testing.assert_close(drawn.image, expected)
    torch.testing.assert_close(drawn.plain, warp(data.image([1]), field))
    assert torch.equal(drawn.image, again.image) and torch.equal(drawn.image, blind.image)
    assert not torch.equal(drawn.image, other.image) and (drawn.space, drawn.style) == ("prior", "prior")


def test_only_the_joint_phase_remembers_looks_those_of_scans_before_jitter():
    R, judge = styled_networks()
    batch = pair()
    with torch.no_grad():
        ContrastStyles(R.style, R.flow, judge)(batch)
        assert R.style.owners[0] == 0 and not R.style.known.any()
        Transfer(R, judge)(batch)
        assert R.style.known.tolist() == [False, True] + [False] * 6
        torch.testing.assert_close(R.style.looks[1:2], R.style.encoder(batch.plain))


def test_of_more_keys_than_the_queue_holds_the_last_ones_stay():
    contrast = MomentumContrast(Direction(), size=3)
    contrast.enqueue(torch.eye(CODE)[:5], torch.arange(5), torch.eye(CODE)[5:10])
    assert contrast.owners.tolist() == [2, 3, 4] and contrast.known.all()
    assert torch.equal(contrast.queue, torch.eye(CODE)[2:5]) and torch.equal(contrast.looks, torch.eye(CODE)[7:10])


def test_encoder_pays_for_what_the_discriminator_does_not_take_for_the_prior():
    contrasted = Contrasted(*[torch.zeros(2, CODE)] * 3, own=torch.zeros(2, 2))
    judged = torch.tensor([[1.0], [0.5]])
    assert float(styles.adversarial(Encoded(contrasted, judged))) == pytest.approx(0.5 * 0.5**2)


def test_looks_from_memory_lie_between_two_that_are_alike():
    draw = synthesis()
    E = draw.memory = MomentumContrast(draw.registration.style.encoder, size=24)
    looks = F.normalize(torch.eye(CODE)[:20] + 2 * torch.eye(CODE)[[50] * 10 + [60] * 10])  # two sites of ten scans
    E.enqueue(style_prior(20, generator(8)), torch.arange(20), looks)
    assert len(E.queue) > 20  # the others belong to no scan
    codes = E.remembered(400, generator())
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(400))
    shares = torch.linalg.lstsq(looks.T, codes.T).solution.T
    torch.testing.assert_close(shares @ looks, codes, atol=1e-5, rtol=0)
    assert (shares > -1e-5).all() and ((shares > 1e-5).sum(1) <= 2).all() and (shares > 1e-5).any(0).all()
    assert not ((shares[:, :10] > 1e-5).any(1) & (shares[:, 10:] > 1e-5).any(1)).any()
    assert len(torch.unique(codes.round(decimals=4), dim=0)) > 200
    with torch.no_grad():
        drawn = draw(scans(), 1, generator(3))
        expected = warp(draw.appearance(scans().image([1]), E.remembered(1, generator(3))), drawn.displacement)
    torch.testing.assert_close(drawn.image, expected)
    assert drawn.style == "memory"


def test_looks_that_are_nearly_one_are_told_apart_under_autocast():
    E = MomentumContrast(Direction(), size=100)
    looks = F.normalize(torch.eye(CODE)[0] + 0.01 * torch.randn(100, CODE, generator=generator()))
    E.enqueue(looks, torch.arange(100), looks)
    codes = E.remembered(50, generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(E.remembered(50, generator()), codes)


def test_without_appearance_model_the_atlas_keeps_its_look():
    draw = synthesis()
    draw.appearance = None
    with torch.no_grad():
        drawn = draw(scans(), 0, generator())
    assert torch.equal(drawn.image, drawn.plain) and (drawn.space, drawn.style) == ("prior", "s0")


def test_interpolated_shapes_lie_between_those_of_three_scans():
    draw, data = synthesis(interpolate=True), scans(6)
    with torch.no_grad():
        drawn = draw(data, 0, generator(3))
        names = drawn.space.split("+")
        codes = torch.stack(
            [
                draw.autoencoder.encode(
                    draw.autoencoder.inside(draw.registration(data.image([0]), data.image([int(name[1])])))
                )[0]
                for name in names
            ]
        )
        source = generator(3)
        style_prior(1, source)
        torch.randint(4, (3,), generator=source)
        shares = torch.tensor([1.0, *(0.3 * torch.rand(2, generator=source)).tolist()])
        mixed = torch.einsum("n,ncdhw->cdhw", shares / shares.sum(), codes)
        expected = draw.autoencoder.outside(draw.autoencoder.decode(mixed[None]))
    assert len(names) == 3 and set(names) <= {"s2", "s3", "s4", "s5"}
    torch.testing.assert_close(drawn.displacement, expected)
