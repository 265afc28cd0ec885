"""Swin windows and TransMorph: who looks at whom, the way back, sizes as published, what each switch does."""

import itertools

import pytest
import torch
from torch import nn

from stages.methods.recipe import Task
from stages.methods.transmorph import METHOD, SIZES, Settings
from stages.parts.networks.swin import (
    Merge,
    SwinBlock,
    WindowAttention,
    neighbours,
    offsets,
    partitioned,
    together,
)
from stages.parts.networks.transmorph import TransMorph, stages_of, window_of

SHAPE = (5, 8, 7)
WINDOW = (3, 4, 4)


def block(shape=SHAPE, window=WINDOW, **options):
    torch.manual_seed(0)
    return SwinBlock(8, 2, window, **options).eval()


def seen_from(layer, place, shape=SHAPE):
    """The tokens whose change changes the answer at a place, as a set of (d, h, w)."""
    x = torch.randn(1, *shape, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    layer.double()(x)[(0, *place)].square().sum().backward()
    return {tuple(index) for index in torch.nonzero(x.grad[0].abs().sum(-1) > 1e-12).tolist()}


@pytest.mark.parametrize("shifted", [False, True])
def test_a_token_looks_at_its_own_window_and_never_over_the_grids_border(shifted):
    layer = block(shifted=shifted)
    for place in itertools.product(*((0, n // 2, n - 1) for n in SHAPE)):
        # Windows begin at multiples of their edge, shifted ones half an edge earlier where there are several.
        first = [w // 2 - w if shifted and n > w else 0 for n, w in zip(SHAPE, WINDOW, strict=True)]
        spans = []
        for at, start, n, w in zip(place, first, SHAPE, WINDOW, strict=True):
            low = start + (at - start) // w * w
            spans.append(range(max(low, 0), min(low + w, n)))
        assert seen_from(layer, place) == set(itertools.product(*spans))


def test_tokens_of_a_window_from_both_ends_are_kept_apart_and_padding_is_not_seen():
    allowed = neighbours((5,) * 3, (4,) * 3, (2,) * 3)
    assert allowed.shape == (8, 64, 64) and bool(allowed.diagonal(dim1=1, dim2=2).all())
    assert bool((allowed == allowed.transpose(1, 2)).all())
    last = allowed[-1].view(4, 4, 4, 4, 4, 4)[:, 0, 0, :, 0, 0]  # along D it holds tokens 6, 7 (padding), 0 and 1
    assert last.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_windows_come_back_where_they_were():
    x = torch.randn(2, 6, 8, 4, 3)
    windows, blocks = partitioned(x, (3, 4, 2))
    assert windows.shape == (2, 8, 24, 3)
    assert torch.equal(windows[0, 0].view(3, 4, 2, 3), x[0, :3, :4, :2])
    assert torch.equal(together(windows, blocks, (3, 4, 2)), x)


def test_attention_is_softmax_of_scaled_products_and_the_offsets_bias():
    layer = WindowAttention(8, 2, (1, 2, 2))
    windows = torch.randn(1, 1, 4, 8)
    queries, keys, values = layer.to_all(windows)[0, 0].view(4, 3, 2, 4).unbind(1)
    expected = torch.empty(4, 2, 4)
    for head in range(2):
        bias = layer.bias.detach()[offsets((1, 2, 2)), head]
        weights = (queries[:, head] @ keys[:, head].T / 2 + bias).softmax(1)
        expected[:, head] = weights @ values[:, head]
    torch.testing.assert_close(layer(windows)[0, 0], layer.project(expected.flatten(1)))


def test_offsets_are_numbered_alike_where_they_are_alike():
    number = offsets((2, 3, 4))
    places = list(itertools.product(range(2), range(3), range(4)))
    by_number = {}
    for (i, a), (j, b) in itertools.product(enumerate(places), enumerate(places)):
        by_number.setdefault(int(number[i, j]), set()).add(tuple(x - y for x, y in zip(a, b, strict=True)))
    assert all(len(each) == 1 for each in by_number.values())
    assert sorted(by_number) == list(range(3 * 5 * 7))


def test_merging_halves_odd_axes_upwards_and_doubles_the_channels():
    assert Merge(4)(torch.randn(1, 5, 4, 3, 4)).shape == (1, 3, 2, 2, 8)


def test_stochastic_depth_leaves_out_branches_in_training_alone_and_repeats_itself():
    layer, x = block(shifted=False, dropped=0.5).train(), torch.randn(64, *WINDOW, 8)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    untouched = (first == x).flatten(1).all(1).float().mean()
    assert 0.1 < float(untouched) < 0.45  # both branches are left out of a quarter of the samples
    assert not (layer.eval()(x) == x).flatten(1).all(1).any()


# TransMorph


def parameters(network):
    return sum(weight.numel() for weight in network.parameters())


def test_published_sizes_have_the_published_numbers_of_parameters():
    found = {}
    for name in SIZES:
        plan = METHOD.planned(Task((160, 192, 224), 2, 1), Settings(size=name))  # networks without weights
        found[name] = parameters(plan.networks["registration"]) / 1e6
    assert found == pytest.approx({"published": 46.77, "large": 108.34, "small": 11.76, "tiny": 0.24}, abs=0.006)


def test_windows_and_stages_follow_the_grid():
    assert window_of((160, 192, 224)) == (5, 6, 7)
    assert [window_of((n, n, n))[0] for n in (24, 144, 512)] == [4, 4, 7]
    assert [stages_of((n, n + 9, n), 4) for n in (3, 8, 12, 17, 24, 33, 160)] == [1, 1, 2, 3, 3, 4, 4]
    blocks = TransMorph(2, (24, 32, 24), SIZES["tiny"]).transformer.stages
    assert [stage[0].window for stage in blocks] == [(4, 4, 4), (3, 4, 3), (2, 2, 2)]


@pytest.mark.parametrize("shape", [(4, 5, 6), (10, 12, 12), (25, 18, 31)])
def test_any_grid_goes_through_and_an_untrained_network_stays_where_it_is(shape):
    network = TransMorph(2, shape, SIZES["tiny"])
    out = network(torch.rand(1, 2, *shape))
    assert out.shape == (1, 3, *shape) and out.dtype == torch.float32
    assert out.abs().max() < 1e-3


def test_switches_leave_out_what_they_name():
    full = parameters(TransMorph(2, (40, 40, 40), SIZES["tiny"]))
    kept = {"convolution_skips": 0, "transformer_skips": 0, "positions": 0}
    for name in kept:
        network = TransMorph(2, (40, 40, 40), SIZES["tiny"], **{name: False})
        network(torch.rand(1, 2, 40, 40, 40))
        kept[name] = full - parameters(network)
    width, own = 16, 3
    assert kept["convolution_skips"] == 27 * (2 * (width + own) + width * width + own * own)
    assert kept["transformer_skips"] == 27 * sum(channels * channels for channels in (6, 12, 24))
    assert kept["positions"] == 2 * 7**3 * 2 + 2 * 7**3 * 2 + 4 * 5**3 * 4 + 2 * 3**3 * 4
    rates = [
        layer.dropped
        for layer in TransMorph(2, (40, 40, 40), SIZES["tiny"], most_dropped=0.9).modules()
        if isinstance(layer, SwinBlock)
    ]
    assert rates == pytest.approx([i / 10 for i in range(10)])


def test_the_whole_network_learns_a_shift():
    torch.manual_seed(0)
    network = TransMorph(2, (8, 8, 8), SIZES["tiny"], most_dropped=0.0)
    pair, target = torch.rand(1, 2, 8, 8, 8), torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(pair), target.expand(1, 3, 8, 8, 8))
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
