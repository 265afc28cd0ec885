"""Temporary changes of a network for one pass: dropped channels, and running statistics that stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import Generator, Tensor, nn

from stages.parts.networks.standardised import Standardised
from stages.parts.together import rand


@contextmanager
def channels_dropped(network: nn.Module, rate: float, generator: Generator) -> Iterator[None]:
    """Inside, the U-Net's last layers on the way down and up lose each channel with probability `rate`.

    Args:
        network: has `down` and `up` (finest first), or wraps such a network.
    """
    body = network.body if isinstance(network, Standardised) else network

    def drop(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept = rand((*output.shape[:2], 1, 1, 1), generator) >= rate
        return output * (kept / (1 - rate)).to(output.dtype)

    layers = [cast(nn.ModuleList, body.down)[-1], cast(nn.ModuleList, body.up)[0]] if rate else []
    handles = [layer.register_forward_hook(drop) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def statistics_kept(network: nn.Module, kept: bool = True) -> Iterator[None]:
    """Inside, BatchNorm's running statistics stay as they are; every batch is still normalised by its own."""
    norms = [layer for layer in network.modules() if kept and isinstance(layer, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
