"""Hybrid OBELISK networks: sampling at learned offsets, sizes, starting points."""

import itertools

import numpy as np
import pytest
import torch

from stages.parts.networks.obelisk import ConvolutionBlock, HybridObelisk, Obelisk
from stages.parts.networks.registration import RegistrationNetwork


def sampled_slowly(image: np.ndarray, offsets: np.ndarray, factor: int) -> np.ndarray:
    """(D, H, W), offsets (K, 3) from -1 to 1 over the image -> (K, d, h, w), voxel by voxel."""
    shape = image.shape
    coarse = [-(-n // factor) for n in shape]
    found = np.zeros((len(offsets), *coarse))
    for k, offset in enumerate(offsets):
        for place in itertools.product(*(range(n) for n in coarse)):
            point = [
                (i + 0.5) * n / m - 0.5 + o * n / 2 for i, n, m, o in zip(place, shape, coarse, offset, strict=True)
            ]
            low = [int(np.floor(p)) for p in point]
            for corner in itertools.product((0, 1), repeat=3):
                voxel = [a + c for a, c in zip(low, corner, strict=True)]
                if all(0 <= v < n for v, n in zip(voxel, shape, strict=True)):
                    weight = np.prod([1 - abs(p - v) for p, v in zip(point, voxel, strict=True)])
                    found[(k, *place)] += weight * image[tuple(voxel)]
    return found


@pytest.mark.parametrize(("shape", "factor"), [((8, 4, 12), 4), ((5, 7, 9), 4), ((6, 5, 4), 2)])
def test_sampling_at_offsets_is_what_a_loop_over_voxels_finds(shape, factor):
    torch.manual_seed(0)
    layer = Obelisk(6, factor, deviation=0.6)  # far enough that some points lie outside
    image = torch.rand(2, 1, *shape)
    found = layer(image).detach().numpy()
    offsets = layer.offsets.detach().numpy()
    assert found.shape == (2, 6, *(-(-n // factor) for n in shape))
    for i in range(2):
        np.testing.assert_allclose(found[i], sampled_slowly(image[i, 0].numpy(), offsets, factor), atol=1e-5)
    assert (found == 0).any() and (found > 0).any()


def test_each_image_of_a_pair_is_sampled_at_every_offset_one_image_after_the_other():
    torch.manual_seed(0)
    layer, pair = Obelisk(5, 4), torch.rand(1, 2, 8, 8, 8)
    both = layer(pair)
    torch.testing.assert_close(both[:, :5], layer(pair[:, :1]))
    torch.testing.assert_close(both[:, 5:], layer(pair[:, 1:]))


def test_offsets_are_drawn_as_published_and_learn():
    torch.manual_seed(0)
    layer = Obelisk(2000, 4)
    assert float(layer.offsets.detach().std()) == pytest.approx(0.05, rel=0.05)
    ramp = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(1, 1, 16, 16, 16)
    layer(ramp).sum().backward()
    assert (layer.offsets.grad[:, 0] > 0).float().mean() > 0.95  # further along D lies more, but for the border
    assert layer.offsets.grad[:, 1:].abs().mean() < 0.05 * layer.offsets.grad[:, 0].mean()


def test_networks_have_the_papers_size():
    sizes = [
        sum(p.numel() for p in network.parameters())
        for network in (HybridObelisk(1, 11, task="segments"), HybridObelisk(2, 3, task="registers"))
    ]
    assert sizes == [230_129, 258_155]  # LPBA40: 10 structures; the paper and its code say 230 k and 258 k


@pytest.mark.parametrize("shape", [(24, 16, 24), (9, 11, 10)])
def test_any_grid_goes_through_and_gradients_reach_every_weight_in_bfloat16_too(shape):
    torch.manual_seed(0)
    for network, channels in ((HybridObelisk(1, 4, task="segments"), 1), (HybridObelisk(2, 3, task="registers"), 2)):
        image = torch.rand(2, channels, *shape)
        gradients = []
        for half in (False, True):
            network.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                out = network(image)
            assert out.shape == (2, 4 if channels == 1 else 3, *shape) and out.dtype == torch.float32
            (out * torch.linspace(-1, 1, out.shape[2]).view(-1, 1, 1)).square().sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        assert all(bool(each.isfinite().all()) for each in gradients)
        assert float(torch.nn.functional.cosine_similarity(*gradients, dim=0)) > 0.9


def test_registration_starts_at_the_identity_and_segmentation_with_xavier_and_no_bias():
    torch.manual_seed(0)
    R = RegistrationNetwork(HybridObelisk(2, 3, task="registers"))
    assert R(*torch.rand(2, 1, 1, 16, 16, 16)).abs().max() < 1e-2
    S = HybridObelisk(1, 3, task="segments")
    convolutions = [m for m in S.modules() if isinstance(m, torch.nn.Conv3d)]
    assert all(m.bias is None or not m.bias.any() for m in convolutions)
    wide = S.up[1][0]  # 64 -> 32 channels
    assert float(wide.weight.detach().std()) == pytest.approx((2 / (27 * (64 + 32))) ** 0.5, rel=0.02)


def test_slope_is_that_of_every_activation():
    x = torch.tensor([-1.0])
    network = HybridObelisk(1, 3, task="segments", slope=0.025)
    assert network.at_quarter.slope == network.at_eighth.slope == 0.025
    blocks = [m for m in network.modules() if isinstance(m, ConvolutionBlock)]
    assert len(blocks) == 9 and all(float(block[2](x)) == pytest.approx(-0.025) for block in blocks)
