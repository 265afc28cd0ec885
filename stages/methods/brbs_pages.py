"""Pictures of BRBS's segmentation network: its features of generated scans, and its answers to mixed images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Generator, Tensor, nn

from stages.parts.batches.drawing import Draw
from stages.parts.batches.scans import Paths, Scans
from stages.parts.batches.space_style import SpaceStyleSampling
from stages.parts.networks.unet import FeatureNetwork
from stages.parts.panels import Panel, Points, in_main_directions, spread
from stages.parts.warps import warp

DRAWN, OTHERS = 40, 16  # generated scans, and of each other kind at most, whose features are shown
GAMMA = 0.4  # share of X_A in the mixed image, as in Fig. 13 of the paper


@dataclass
class FromNetwork:
    """Paths of couples (atlas, scan) as a path bank has them, by R; each is found once."""

    network: nn.Module
    data: Scans
    couples: Sequence[tuple[int, int]]
    _ways: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def _way(self, moving: int, fixed: int) -> Tensor:
        if (moving, fixed) not in self._ways:
            found = self.network(self.data.image([moving]), self.data.image([fixed]))[0].float()
            self._ways[moving, fixed] = found.cpu()
        return self._ways[moving, fixed].to(self.data.images.device)

    def displacement(self, couple: int) -> Tensor:
        return self._way(*self.couples[couple])

    def style(self, couple: int) -> Tensor:
        atlas, scan = self.couples[couple]
        return (warp(self.data.image([scan]), self._way(scan, atlas)[None]) - self.data.image([atlas]))[0]


def paths_of(R: nn.Module, data: Scans) -> Paths:
    """The path bank; before there is one, R's paths of the first atlas to some scans."""
    return data.bank or FromNetwork(R, data, [(data.atlases[0], scan) for scan in spread(data.unlabeled, 8)])


def show_features(R: nn.Module, S: nn.Module, s3p: SpaceStyleSampling, data: Scans) -> Points:
    """S's features at its coarsest level, of scans generated with S3P, of atlases warped all the way, and of scans.

    The paper's Fig. 12, on one plot: without S3P a couple gives one generated scan.
    """
    bank, device = paths_of(R, data), data.images.device
    draw = Draw(1, None, None, Generator(device).manual_seed(0))
    sampling, with_bank = replace(s3p, mixing=None), replace(data, bank=bank)

    def of(image: Tensor) -> Tensor:
        return cast(FeatureNetwork, S).features(image)[0].float().flatten(1).cpu()

    def whole(couple: int) -> Tensor:
        atlas, _ = bank.couples[couple]
        return warp(data.image([atlas]), bank.displacement(couple).to(device).float()[None])

    couples = spread(range(len(bank.couples)), OTHERS)
    groups = {
        "generated with S3P": [of(sampling.from_bank(with_bank, draw).image) for _ in range(DRAWN)],
        "without: atlas, warped all the way to a scan": [of(whole(couple)) for couple in couples],
        "unlabelled scans": [of(data.image([scan])) for scan in spread(data.unlabeled, OTHERS)],
    }
    flat, axes = in_main_directions([torch.cat(features) for features in groups.values()])
    title = "features of the segmentation network's coarsest level"
    return Points(title, dict(zip(groups, flat, strict=True)), axes, clouds=True)


def show_mixing(R: nn.Module, S: nn.Module, data: Scans) -> list[tuple[str, list[Panel]]]:
    """Two images that are nearly aligned, their mixture, and S's answers; what L_mix pulls to 0 (Fig. 13).

    X_A is the atlas in the shape of the row's scan and the look of another one, X_B the scan.
    """
    bank, device, rows = paths_of(R, data), data.images.device, []
    for couple in spread(range(len(bank.couples)), 3):
        atlas, scan = bank.couples[couple]
        others = [c for c, (a, _) in enumerate(bank.couples) if a == atlas and c != couple] or [couple]
        path = bank.displacement(couple).to(device).float()[None]
        first = warp(data.image([atlas]) + bank.style(others[couple % len(others)]).to(device).float(), path)
        second = data.image([scan])
        mixed = GAMMA * first + (1 - GAMMA) * second
        answers = [S(image).float().softmax(1)[0] for image in (first, second, mixed)]
        apart = (answers[2] - GAMMA * answers[0] - (1 - GAMMA) * answers[1]).abs().sum(0) / 2
        names = (f"X_A: atlas, share {GAMMA}", f"X_B: scan, share {1 - GAMMA}", "mixed image")
        panels = [
            Panel(f"{name}; S's answer", image[0, 0], answer.argmax(0))
            for name, image, answer in zip(names, (first, second, mixed), answers, strict=True)
        ]
        panels.append(Panel("doubt about the mixed image", 1 - answers[2].amax(0), shows="error"))
        panels.append(Panel("S(mixed) - mixed S", apart, shows="error"))
        rows.append((data.names[scan], panels))
    return rows
