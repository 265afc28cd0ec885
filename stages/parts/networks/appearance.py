"""Changing how an image looks: giving it the style of a code, or adding a learned change of intensities.

Images come and go in [0, 1]; within `AppearanceModel` they run from -1 to 1, as in SST (Tomar et al., WACV 2022).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts.networks.blocks import in_float32
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.sizes import crop, depth_to_space, pad_to_multiple, space_to_depth
from stages.parts.networks.style import CODE
from stages.parts.warps import warp

KNOTS = 16  # of the intensity curve that a code draws
POOLED = 3  # cells along an axis, on which a light model pools an image's features


class AdaptiveBlock(nn.Module):
    """Convolution 3^3, adaptive instance normalisation, LeakyReLU 0.2.

        AdaIN(x, s) = (1 + gamma(s)) (x - mean(x)) / std(x) + beta(s),  mean and std of each sample's channel

    gamma and beta are linear in the style. Their weights start from N(0, 1e-4) without bias, so that training starts
    without style.

    Source: Huang and Belongie, ICCV 2017; SST's published code.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.scale, self.offset = nn.Linear(CODE, outputs), nn.Linear(CODE, outputs)
        for layer in (self.scale, self.offset):
            nn.init.normal_(layer.weight, std=1e-4)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(N, inputs, D, H, W) and (N, CODE) -> (N, outputs, D, H, W)."""
        scale, offset = (in_float32(layer, style)[:, :, None, None, None] for layer in (self.scale, self.offset))
        return F.leaky_relu((1 + scale) * F.instance_norm(self.convolution(x)) + offset, 0.2)


class Residual(nn.Module):
    """x plus twice [convolution 3^3, LeakyReLU 0.2] of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(width, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv3d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class AppearanceModel(nn.Module):
    """A: image and style code -> the image with that style, its anatomy as it was.

    Convolution 7^3 to 16 channels; twice InstanceNorm and 5^3 of stride 2 to 32, with LeakyReLU 0.2; two residual
    blocks; three blocks with AdaIN, trilinear upsampling between them; one convolution 3^3 and tanh. No skips: the
    whole image goes through the bottleneck. InstanceNorm removes brightness and contrast, except for their effect on
    the preceding LeakyReLU.

    Args:
        light: works on blocks of 2^3 voxels, with 16 and 64 channels, 3^3 kernels and two blocks with AdaIN. It has no
            layer at full resolution, where the published one spends its time. Three changes make it depend on the code
            in short trainings. (1) It sees the image's ranks, so that brightness, contrast and any other rising curve
            of intensities can come from the code alone; redrawing a scan in its own style then teaches how every scan
            looks in that style. (2) Instead of a third AdaIN a curve over the ranks is drawn from the code and from the
            image's features, pooled on a grid of 3^3; the network adds local differences, and the outside of a scan
            stays 0. Ranks keep whether a tissue is bright or dark, so a scan and a negative need opposite curves to get
            one look: the features tell which of the two the image is. (3) Codes, of length 1, are scaled to numbers of
            size 1, so that they are not small beside biases. No gradient goes to the image.

    Source: SST's published code; the paper only says that there are three AdaIN layers.
    """

    def __init__(self, *, light: bool = False) -> None:
        super().__init__()
        self.light = light
        widths = (16, 64) if light else (16, 32, 32)
        stem, kernel = (3, 3) if light else (7, 5)
        self.style = nn.Sequential(nn.Linear(CODE, CODE), nn.LeakyReLU(0.2), nn.Linear(CODE, CODE), nn.LeakyReLU(0.2))
        self.stem = nn.Conv3d(8 if light else 1, widths[0], stem, padding=stem // 2)
        self.down = nn.ModuleList(nn.Conv3d(a, b, kernel, stride=2, padding=kernel // 2) for a, b in pairwise(widths))
        self.residual = nn.Sequential(Residual(widths[-1]), Residual(widths[-1]))
        wide = [(64, 32), (32 + 16, 16)] if light else pairwise((widths[-1], *reversed(widths)))
        self.up = nn.ModuleList(AdaptiveBlock(a, b) for a, b in wide)
        self.head = nn.Conv3d(widths[0], 8 if light else 1, 3, padding=1)
        if light:
            self.seen_as = nn.Linear(widths[-1] * POOLED**3, CODE)
            self.mixed = nn.Sequential(nn.Linear(2 * CODE, CODE), nn.LeakyReLU(0.2))
            self.curve = nn.Linear(CODE, KNOTS)
            nn.init.normal_(self.curve.weight, std=1e-2)
            self.curve.bias.data = torch.linspace(-1.5, 1.5, KNOTS)

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """(N, 1, D, H, W) in [0, 1] and (N, CODE) -> (N, 1, D, H, W) in [0, 1], float32."""
        seen = pad_to_multiple(ranks(image) if self.light else image, 4)
        style = in_float32(self.style, code * CODE**0.5 if self.light else code)
        x = self.stem(space_to_depth(2 * seen - 1) if self.light else 2 * seen - 1)
        x = sharp = F.leaky_relu(F.instance_norm(x) if self.light else x, 0.2)
        for convolution in self.down:
            x = F.leaky_relu(convolution(F.instance_norm(x)), 0.2)
        x = deep = self.residual(x)
        for level, block in enumerate(self.up):
            x = F.interpolate(x, scale_factor=2, mode="trilinear") if level else x
            x = block(torch.cat([x, sharp], 1) if self.light and block is self.up[-1] else x, style)
        if self.light:
            x = depth_to_space(self.head(x)) + drawn(self.knots(deep, style), seen)
            return crop((torch.tanh(x) + 1) / 2 * (seen > 0), image.shape[2:])
        return crop((torch.tanh(in_float32(self.head, x)) + 1) / 2, image.shape[2:])

    def knots(self, deep: Tensor, style: Tensor) -> Tensor:
        """The light model's curve, (N, KNOTS), from features (N, 64, d, h, w) and the style (N, CODE)."""
        pooled = F.adaptive_avg_pool3d(deep.float(), POOLED).flatten(1)
        # Of length 4, whatever their number: one step of Adam moves a sum of many features of size 1 too far.
        pooled = 4 * F.normalize(pooled - pooled.mean(1, keepdim=True), dim=1)
        mixed = in_float32(self.mixed, torch.cat([style, in_float32(self.seen_as, pooled)], 1))
        return in_float32(self.curve, mixed)


@torch.no_grad()
def ranks(image: Tensor) -> Tensor:
    """At each voxel, the share of voxels above 0 that are not brighter, (N, 1, D, H, W) in [0, 1], float32; 0 stays 0.

    Rising curves of the intensities that keep 0 at 0 do not change it.
    """
    ranked = torch.zeros_like(image, dtype=torch.float32)
    for values, result in zip(image.float(), ranked, strict=True):
        inside = values[values > 0]
        result[values > 0] = torch.searchsorted(inside.sort().values, inside, right=True) / max(1, inside.numel())
    return ranked


def drawn(knots: Tensor, places: Tensor) -> Tensor:
    """Piecewise linear curves through evenly spaced knots, read at places in [0, 1].

    Args:
        knots: (N, KNOTS), the values at 0, ..., 1.
        places: (N, 1, D, H, W).
    """
    steps = knots.shape[1] - 1
    place = places.flatten(1) * steps
    low = place.floor().clamp(max=steps - 1)
    index = low.long()
    return torch.lerp(knots.gather(1, index), knots.gather(1, index + 1), place - low).view_as(places)


class AppearanceChange(nn.Module):
    """psi_a: the intensities that, added to an atlas in its own space, give it the look of a scan.

    Args:
        network: [atlas, scan brought to the atlas] (N, 2, D, H, W) -> (N, 1, D, H, W).
        backward: registers scans to atlases; it gets no gradient.
    """

    def __init__(self, network: nn.Module, backward: RegistrationNetwork) -> None:
        super().__init__()
        self.network, self.backward_registration = network, backward

    def forward(self, atlas: Tensor, scan: Tensor) -> Tensor:
        """Images (N, 1, D, H, W) in [0, 1] -> the change, (N, 1, D, H, W), float32."""
        with torch.no_grad():
            back = warp(scan, self.backward_registration(scan, atlas))
        return self.network(torch.cat([atlas, back], 1))
