"""Couples (image, label) from an atlas that is moved and recoloured towards scans by random degrees (S3P of BRBS)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stages.parts.batches.drawing import Draw, pick, pick_whole
from stages.parts.batches.labelled import Labelled
from stages.parts.batches.scans import Scans, on_training_device
from stages.parts.together import per_sample, share_of
from stages.parts.warps import warp, warp_one_hot

Degree = Callable[[int, Generator], Tensor]  # (count, generator) -> (count, 1, 1, 1, 1) in [0, 1]


@dataclass(frozen=True)
class Beta:
    """Degrees drawn from Beta(a, a), independent for every sample."""

    a: float

    def __call__(self, count: int, generator: Generator) -> Tensor:
        # A quotient of two Gamma draws, because torch.distributions takes no generator.
        def draw(size: Sequence[int]) -> Tensor:
            concentration = torch.full(tuple(size), self.a, device=generator.device)
            return torch._standard_gamma(concentration, generator=generator)

        x, y = per_sample(draw, (2, count, 1, 1, 1, 1), generator, axis=1).clamp(min=1e-30)
        return x / (x + y)


@dataclass(frozen=True)
class Always:
    """A degree that is not sampled."""

    degree: float

    def __call__(self, count: int, generator: Generator) -> Tensor:
        return torch.full((count, 1, 1, 1, 1), self.degree, device=generator.device)


@dataclass
class Mixed(Labelled):
    """Generated couples (image, target) and an approximately aligned pair of images for mixing."""

    first: Tensor  # X_A, (N, channels, D, H, W)
    second: Tensor  # X_B
    gamma: Tensor  # (N, 1, 1, 1, 1)


@dataclass(frozen=True)
class SpaceStyleSampling:
    """S3P: X = T(A + beta psi, alpha phi), y = T(y_A, alpha phi) (BRBS Eqs. 10-12), and the pair that MMR mixes.

    The paths phi (atlas to scan) and psi (style, on the atlas's grid) come from a path bank or straight from R.

    Args:
        space: draws alpha, the degree of the deformation.
        style: draws beta, the degree of the style.
        mixing: draws gamma; None: no mixing, and no pair is made.
        any_pair: mix any two training images (the paper's text) instead of X_A = T(A + psi, phi) with X_B = U.
        coupled: phi and psi of a sample come from one scan; otherwise the style scan is drawn independently.
    """

    space: Degree
    style: Degree
    mixing: Degree | None
    any_pair: bool = False
    coupled: bool = False

    @property
    def needs_style(self) -> bool:
        """Whether style maps are used, for couples or for mixing."""
        return self.style != Always(0.0) or self.mixing is not None

    def from_bank(self, data: Scans, draw: Draw) -> Labelled:
        """A batch for `train-seg`; the augmentation is composed with the path, so images are interpolated once."""
        bank, n = data.bank, draw.batch_size
        assert bank is not None
        spaces = pick_whole(range(len(bank.couples)), draw.whole, draw.generator)
        atlases = [bank.couples[c][0] for c in spaces]
        styles = list(spaces) if self.coupled else []
        for atlas in atlases[len(styles) :]:  # drawn independently among the couples of the same atlas
            styles += pick_whole([c for c, (a, _) in enumerate(bank.couples) if a == atlas], 1, draw.generator)
        spaces, styles, atlases = (share_of(places, draw.generator) for places in (spaces, styles, atlases))
        scans = [bank.couples[c][1] for c in spaces]
        device = data.images.device
        path = on_training_device([bank.displacement(c) for c in spaces], device).float()
        psi = on_training_device([bank.style(c) for c in styles], device).float() if self.needs_style else None
        around = draw.displacement(data)
        others = None
        if self.mixing and self.any_pair:
            others = data.image(pick([*data.atlases, *data.unlabeled], 2 * n, draw.generator))
        batch = self(
            draw,
            atlas=data.image(atlases),
            label=data.label(atlases),
            num_classes=data.num_classes,
            path=path,
            psi=psi,
            scan=data.image(scans),
            around=around,
            others=others,
        )
        batch.scans = [data.names[p] for p in (*atlases, *scans, *(bank.couples[c][1] for c in styles))]
        batch.missing = data.missing([data.names[atlas] for atlas in atlases])
        return batch

    def __call__(
        self,
        draw: Draw,
        *,
        atlas: Tensor,
        label: Tensor,
        num_classes: int,
        path: Tensor,
        psi: Tensor | None,
        scan: Tensor,
        around: Tensor | None = None,
        others: Tensor | None = None,
    ) -> Labelled:
        """Draw degrees and make the couples.

        Args:
            draw: batch size, augmentation of intensities, generator.
            atlas: (N, channels, D, H, W).
            label: class indices, (N, D, H, W).
            path: phi, atlas to scan, (N, 3, D, H, W), voxels.
            psi: style of another scan on the atlas's grid, (N, channels, D, H, W); None unless `needs_style`.
            scan: the image that the path leads to, (N, channels, D, H, W).
            around: displacement of the augmentation, (N, 3, D, H, W); None: no augmentation.
            others: (2N, channels, D, H, W), the two images of each mixed pair, with `any_pair`.
        """
        n = draw.batch_size
        alpha, beta = self.space(n, draw.generator), self.style(n, draw.generator)
        padding = "border"
        if around is None:
            around = torch.zeros_like(path)
        else:
            path, padding = warp(path, around), "zeros"
        way = around + alpha * path
        image = warp(atlas if psi is None else atlas + beta * psi, way, padding=padding)
        target = warp_one_hot(label, way, num_classes)
        if self.mixing is None:
            return Labelled([], draw.recolour(image), target)
        if others is None:
            assert psi is not None
            first = warp(atlas + psi, around + path, padding=padding)
            second = warp(scan, around, padding=padding) if around.any() else scan
        else:
            first, second = warp(others, around.repeat(2, 1, 1, 1, 1), padding=padding).chunk(2)
        image, first, second = draw.recolour(torch.cat([image, first, second])).chunk(3)
        return Mixed([], image, target, first, second, self.mixing(n, draw.generator))
