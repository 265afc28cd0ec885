"""One training step of BRBS written plainly, as research code usually is: what `brbs_step.py` measures against.

float32, default memory format, one forward pass an image or direction, dense 9^3 convolutions for LNCC, one-hot
labels warped as images. Formulas, networks and weights are those of `stages.methods.brbs` with default settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """What is random in a step."""

    pair: int  # 0, 1: (A, U1); 2, 3: (A, U2); 4, 5: (U2, U1); even: swapped
    alpha: float  # degree of the deformation
    beta: float  # degree of the style
    gamma: float  # share of X_A in the mixed image


class ConvolutionBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1),
            nn.GroupNorm(outputs // 4, outputs),
            nn.LeakyReLU(0.2),
            nn.Conv3d(outputs, outputs, 3, padding=1),
            nn.GroupNorm(outputs // 4, outputs),
            nn.LeakyReLU(0.2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class PlainUNet(nn.Module):
    """The published U-Net; grids are multiples of 2^(levels - 1)."""

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()
        levels = len(widths)
        self.down = nn.ModuleList(ConvolutionBlock(widths[i - 1] if i else inputs, widths[i]) for i in range(levels))
        self.up = nn.ModuleList(ConvolutionBlock(widths[i] + widths[i + 1], widths[i]) for i in range(levels - 1))
        self.pool = nn.MaxPool3d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True)
        self.head = nn.Conv3d(widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.down[0](x)]
        for block in self.down[1:]:
            skips.append(block(self.pool(skips[-1])))
        x = skips.pop()
        for block in reversed(self.up):
            x = block(torch.cat([skips.pop(), self.upsample(x)], dim=1))
        return self.head(x)


def warp(image: Tensor, displacement: Tensor, padding: str = "border") -> Tensor:
    """image(x + u(x)); every channel is resampled."""
    shape = displacement.shape[2:]
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None] + displacement
    grid = torch.stack([2 * points[:, i] / (shape[i] - 1) - 1 for i in (2, 1, 0)], dim=-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def warp_one_hot(label: Tensor, displacement: Tensor) -> Tensor:
    """What has no label after warping is background."""
    warped = warp(label, displacement, padding="zeros")
    missing = 1 - warped.sum(dim=1, keepdim=True)
    return torch.cat([warped[:, :1] + missing, warped[:, 1:]], dim=1)


def lncc_loss(warped: Tensor, fixed: Tensor, window: int = 9) -> Tensor:
    ones, padding, count = torch.ones(1, 1, window, window, window), window // 2, window**3
    i_sum = F.conv3d(warped, ones, padding=padding)
    j_sum = F.conv3d(fixed, ones, padding=padding)
    i2_sum = F.conv3d(warped * warped, ones, padding=padding)
    j2_sum = F.conv3d(fixed * fixed, ones, padding=padding)
    ij_sum = F.conv3d(warped * fixed, ones, padding=padding)
    cross = ij_sum - i_sum * j_sum / count
    i_var = i2_sum - i_sum * i_sum / count
    j_var = j2_sum - j_sum * j_sum / count
    return 1 - torch.mean(cross * cross / (i_var * j_var + 1e-5))


def smoothness_loss(displacement: Tensor) -> Tensor:
    d = displacement[:, :, 1:] - displacement[:, :, :-1]
    h = displacement[:, :, :, 1:] - displacement[:, :, :, :-1]
    w = displacement[:, :, :, :, 1:] - displacement[:, :, :, :, :-1]
    return ((d * d).mean() + (h * h).mean() + (w * w).mean()) / 3


def inverse_loss(forward: Tensor, backward: Tensor) -> Tensor:
    return torch.mean((forward + warp(backward, forward)) ** 2)


def dice_loss(prediction: Tensor, target: Tensor) -> Tensor:
    loss = 0
    for c in range(target.shape[1]):
        p, t = prediction[:, c], target[:, c]
        loss = loss + 1 - (2 * (p * t).sum() + 1) / ((p * p).sum() + (t * t).sum() + 1)
    return loss / target.shape[1]


class PlainBRBS:
    """R and S with their optimisers; `step` moves both once."""

    def __init__(self, num_classes: int, widths: Sequence[int] = (16, 32, 64, 128, 256)) -> None:
        self.num_classes = num_classes
        self.R = PlainUNet(2, 3, widths)
        self.S = PlainUNet(1, num_classes, widths)
        self.R_optimizer = torch.optim.Adam(self.R.parameters(), lr=1e-4)
        self.S_optimizer = torch.optim.Adam(self.S.parameters(), lr=1e-4)

    def step(self, atlas: Tensor, label: Tensor, first: Tensor, second: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Images (1, 1, D, H, W) and the atlas's label (1, D, H, W); returns the unweighted terms."""
        one_hot = F.one_hot(label.long(), self.num_classes).permute(0, 4, 1, 2, 3).float()
        return {
            **self.step_registration(atlas, one_hot, first, second, draws),
            **self.step_segmentation(atlas, one_hot, first, second, draws),
        }

    def step_registration(
        self, atlas: Tensor, label: Tensor, first: Tensor, second: Tensor, draws: Draws
    ) -> dict[str, Tensor]:
        moving, fixed = [(atlas, first), (atlas, second), (second, first)][draws.pair // 2]
        if draws.pair % 2 == 0:
            moving, fixed = fixed, moving
        with torch.no_grad():
            moving_label = label if moving is atlas else torch.softmax(self.S(moving), dim=1)
            fixed_label = label if fixed is atlas else torch.softmax(self.S(fixed), dim=1)

        forward = self.R(torch.cat([fixed, moving], dim=1))
        backward = self.R(torch.cat([moving, fixed], dim=1))
        similarity = lncc_loss(warp(moving, forward), fixed) + lncc_loss(warp(fixed, backward), moving)
        smoothness = smoothness_loss(forward) + smoothness_loss(backward)
        inverse = inverse_loss(forward, backward) + inverse_loss(backward, forward)
        semantic = dice_loss(warp_one_hot(moving_label, forward), fixed_label)
        semantic = semantic + dice_loss(warp_one_hot(fixed_label, backward), moving_label)

        loss = similarity + smoothness + 0.1 * inverse + 100 * semantic
        self.R_optimizer.zero_grad()
        loss.backward()
        self.R_optimizer.step()
        return {
            "similarity": similarity.detach(),
            "smoothness": smoothness.detach(),
            "inverse_consistency": inverse.detach(),
            "semantic_consistency": semantic.detach(),
        }

    def step_segmentation(
        self, atlas: Tensor, label: Tensor, first: Tensor, second: Tensor, draws: Draws
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            to_atlas = self.R(torch.cat([atlas, first], dim=1))
            path = self.R(torch.cat([second, atlas], dim=1))
            style = warp(first, to_atlas) - atlas
            image = warp(atlas + draws.beta * style, draws.alpha * path)
            target = warp_one_hot(label, draws.alpha * path)
            approximate = warp(atlas + style, path)
            mixed = draws.gamma * approximate + (1 - draws.gamma) * second

        overlap = dice_loss(torch.softmax(self.S(image), dim=1), target)
        of_approximate = torch.softmax(self.S(approximate), dim=1)
        of_second = torch.softmax(self.S(second), dim=1)
        of_mixed = torch.softmax(self.S(mixed), dim=1)
        mixing = F.mse_loss(of_mixed, draws.gamma * of_approximate + (1 - draws.gamma) * of_second)

        loss = overlap + 0.1 * mixing
        self.S_optimizer.zero_grad()
        loss.backward()
        self.S_optimizer.step()
        return {"overlap": overlap.detach(), "mixing": mixing.detach()}
