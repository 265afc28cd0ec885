"""Looks by Fourier amplitudes: where things are lies in the phase of a spectrum, how they look in its amplitudes."""

from __future__ import annotations

import torch
from torch import Tensor


def mix_amplitudes(image: Tensor, look: Tensor, share: Tensor) -> Tensor:
    """An image with its own phase and part of another one's amplitudes.

        F^-1[((1 - share) |F(image)| + share |F(look)|) e^(i arg F(image))]

    Share 0: the image itself. Share 1: all amplitudes are the other one's; a look that is a multiple of the image gives
    that multiple.

    Args:
        image, look: (N, 1, D, H, W), aligned with each other.
        share: in [0, 1], (N, 1, 1, 1, 1).

    Returns:
        (N, 1, D, H, W), float32; not clipped.

    Source: Lv et al., "Robust One-shot Segmentation of Brain Tissues via Image-aligned Style Transformation", AAAI
    2023, with whole spectra.
    """
    dims = (2, 3, 4)
    spectrum, other = (torch.fft.rfftn(each.float(), dim=dims) for each in (image, look))
    amplitude = (1 - share) * spectrum.abs() + share * other.abs()
    mixed = torch.polar(amplitude, spectrum.angle())
    return torch.fft.irfftn(mixed, s=image.shape[2:], dim=dims)
