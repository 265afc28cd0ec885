"""What a training step looks at: draws from scans in memory. Everything random comes from the generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from stages.errors import LrlsError
from stages.parts.augmentation import (
    AffineAugmentation,
    IntensityAugmentation,
    SpatialAugmentation,
    brighten,
    uniform,
)
from stages.parts.warps import one_hot, warp, warp_label, warp_one_hot


@dataclass(frozen=True)
class PseudoLabel:
    """A network's answer for a scan, screened."""

    label: Tensor  # class indices, (D, H, W)
    trusted: Tensor  # whether a voxel counts, (D, H, W), bool
    accepted: Tensor  # whether a class counts, (C,), bool

    @property
    def counts(self) -> bool:
        """Whether a structure was accepted; the background alone makes no label."""
        return bool(self.accepted[1:].any())


@dataclass(frozen=True)
class Scans:
    """Aligned scans on one grid, in memory on the training device.

    Args:
        names: case ids.
        images: (n, 1, D, H, W), float16 in [0, 1].
        labels: place in `names` -> class indices (D, H, W), for scans whose labels may be used.
        atlases: places of the atlases.
        unlabeled: places of the unlabelled scans.
        num_classes: background included.
        spacing_mm: voxel size (D, H, W).
        bank, samples: what `lrls generate` wrote, for the methods that learn from it.
        pseudo: place in `names` -> pseudo-label, where it wrote these.
    """

    names: Sequence[str]
    images: Tensor
    labels: dict[int, Tensor]
    atlases: Sequence[int]
    unlabeled: Sequence[int]
    num_classes: int
    spacing_mm: tuple[float, float, float]
    bank: PathBank | None = None
    samples: Sequence[Sample] | None = None
    pseudo: Mapping[int, PseudoLabel] | None = None

    @cached_property
    def class_voxels(self) -> Tensor:
        """Voxels of each class in the labels that may be used, (C,)."""
        labels = torch.stack([self.labels[place] for place in sorted(self.labels)])
        return torch.bincount(labels.flatten().long(), minlength=self.num_classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        d, h, w = self.images.shape[2:]
        return d, h, w

    def image(self, places: Sequence[int]) -> Tensor:
        return self.images[list(places)].float()

    def label(self, places: Sequence[int]) -> Tensor:
        return torch.stack([self.labels[place] for place in places])


def pick(items: Sequence[int], count: int, generator: Generator) -> list[int]:
    """Independent uniform draws, with replacement."""
    return [items[int(i)] for i in torch.randint(len(items), (count,), generator=generator, device=generator.device)]


@dataclass(frozen=True)
class Draw:
    """How a batch is drawn: the run's settings and its source of randomness."""

    batch_size: int
    space: SpatialAugmentation | AffineAugmentation | None
    intensity: IntensityAugmentation | None
    generator: Generator

    def displacement(self, data: Scans, count: int | None = None) -> Tensor | None:
        """One random displacement a sample, (N, 3, D, H, W) voxels; N is the batch size where `count` says no other."""
        if self.space is None:
            return None
        return self.space.displacement(count or self.batch_size, data.shape, data.spacing_mm, self.generator)

    def recolour(self, image: Tensor) -> Tensor:
        return self.intensity(image, self.generator) if self.intensity else image


class Batch(Protocol):
    """Tensors of a step and the case ids in it."""

    scans: list[str]


class Sampler(Protocol):
    """Draws a batch."""

    def __call__(self, data: Scans, draw: Draw) -> Batch: ...


@dataclass
class Labelled:
    """Images with soft labels, as a segmentation network sees them."""

    scans: list[str]
    image: Tensor  # (N, 1, D, H, W)
    target: Tensor  # (N, C, D, H, W), sums to 1


def labelled_scans(data: Scans, draw: Draw) -> Labelled:
    """Labelled scans under augmentation."""
    places = pick(sorted(data.labels), draw.batch_size, draw.generator)
    return _augmented([data.names[place] for place in places], data.image(places), data.label(places), data, draw)


def _augmented(scans: list[str], image: Tensor, label: Tensor, data: Scans, draw: Draw) -> Labelled:
    displacement = draw.displacement(data)
    if displacement is None:
        return Labelled(scans, draw.recolour(image), one_hot(label, data.num_classes))
    image = warp(image, displacement, padding="zeros")
    return Labelled(scans, draw.recolour(image), warp_one_hot(label, displacement, data.num_classes))


def generated_samples(data: Scans, draw: Draw) -> Labelled:
    """Finished couples (image, label) that `lrls generate` wrote, under augmentation."""
    assert data.samples is not None
    couples = [data.samples[c] for c in pick(range(len(data.samples)), draw.batch_size, draw.generator)]
    device = data.images.device
    image = torch.stack([couple.image for couple in couples]).to(device).float()
    label = torch.stack([couple.label for couple in couples]).to(device)
    return _augmented([couple.scan for couple in couples], image, label, data, draw)


@dataclass
class Triple(Labelled):
    """A generated image with its soft label, and the real scan whose anatomy it imitates."""

    scan: Tensor  # (N, 1, D, H, W)


def triples(data: Scans, draw: Draw, *, real: bool = False) -> Triple:
    """Finished couples with the scans that they imitate; both images move alike, the couple's alone is recoloured.

    What a teacher is to reconstruct, and what its features say, should be the scan's, not a random change's.

    Args:
        real: the scan itself in place of the generated image, under the generated label.
    """
    assert data.samples is not None
    couples = [data.samples[c] for c in pick(range(len(data.samples)), draw.batch_size, draw.generator)]
    device = data.images.device
    scan = data.image([data.names.index(couple.scan) for couple in couples])
    image = scan if real else torch.stack([couple.image for couple in couples]).to(device).float()
    label = torch.stack([couple.label for couple in couples]).to(device)
    displacement = draw.displacement(data)
    images = torch.cat([image, scan])
    if displacement is None:
        target = one_hot(label, data.num_classes)
    else:
        images = warp(images, displacement.repeat(2, 1, 1, 1, 1), padding="zeros")
        target = warp_one_hot(label, displacement, data.num_classes)
    image, scan = images.chunk(2)
    return Triple([couple.scan for couple in couples], draw.recolour(image), target, scan)


@dataclass
class Pair:
    """Two images to register."""

    scans: list[str]
    moving: Tensor  # (N, 1, D, H, W)
    fixed: Tensor


@dataclass
class LabelledPair(Pair):
    """Two images to register, of which the moving one has a label."""

    label: Tensor  # (N, D, H, W), class indices
    num_classes: int


def atlas_and_scan(data: Scans, draw: Draw) -> LabelledPair:
    """An atlas, which moves, and an unlabelled scan, under the same random displacement."""
    atlases = pick(data.atlases, draw.batch_size, draw.generator)
    return _pair(atlases, pick(data.unlabeled, draw.batch_size, draw.generator), data, draw)


def atlas_and_different_scans(data: Scans, draw: Draw) -> LabelledPair:
    """As `atlas_and_scan`, but no scan comes twice: for losses that tell the scans of a batch apart."""
    n = draw.batch_size
    if n < 2:
        raise LrlsError(
            f"train_reg.batch_size: found {n}, expected at least 2, because the contrastive loss compares each scan "
            "with others; set it to 2 or more, or the method's contrastive_weight to 0."
        )
    if len(data.unlabeled) < n:
        raise LrlsError(
            f"data.unlabeled: found {len(data.unlabeled)} scans, expected at least {n}, because the scans of a batch "
            "must differ for the contrastive loss; list more, or set the method's contrastive_weight to 0."
        )
    order = torch.randperm(len(data.unlabeled), generator=draw.generator, device=draw.generator.device)
    scans = [data.unlabeled[int(i)] for i in order[:n]]
    return _pair(pick(data.atlases, n, draw.generator), scans, data, draw)


def _pair(atlases: Sequence[int], scans: Sequence[int], data: Scans, draw: Draw) -> LabelledPair:
    images, label = data.image([*atlases, *scans]), data.label(atlases)
    displacement = draw.displacement(data)
    if displacement is not None:
        images = warp(images, displacement.repeat(2, 1, 1, 1, 1), padding="zeros")
        label = warp_label(label, displacement)
    moving, fixed = images.chunk(2)
    return LabelledPair([data.names[place] for place in (*atlases, *scans)], moving, fixed, label, data.num_classes)


@dataclass
class TwoScans(Pair):
    """Two training scans, of any kind, that differ."""

    owner: Tensor  # place of the moving one in the cohort, (N,)
    draw: Draw  # the players draw from the prior with it
    plain: Tensor  # the moving one before jitter


def two_scans(data: Scans, draw: Draw, *, jitter: Literal["none", "pair", "each"] = "none") -> TwoScans:
    """Any two atlases or unlabelled scans, never one twice, under the same random displacement.

    Args:
        jitter: brightness and contrast times U(0.7, 1.3), drawn for a pair or for each scan (SST's published code);
            0 stays 0, which is ours.
    """
    places = [*data.atlases, *data.unlabeled]
    moving = pick(range(len(places)), draw.batch_size, draw.generator)
    ahead = pick(range(1, len(places)), draw.batch_size, draw.generator)
    fixed = [places[(i + step) % len(places)] for i, step in zip(moving, ahead, strict=True)]
    moving = [places[i] for i in moving]
    images = data.image([*moving, *fixed])
    displacement = draw.displacement(data)
    if displacement is not None:
        images = warp(images, displacement.repeat(2, 1, 1, 1, 1), padding="zeros")
    plain = images[: len(moving)]
    if jitter != "none":
        alike = 2 if jitter == "pair" else 1
        size = (len(images) // alike, 2, 1, 1, 1, 1)
        brightness, contrast = uniform(size, 0.7, 1.3, draw.generator).repeat(alike, 1, 1, 1, 1, 1).unbind(1)
        # What lies outside a scan, 0, stays 0, and nothing else becomes 0: `ranks` tells the two apart by that.
        images = torch.where(images > 0, brighten(images, brightness, contrast).clamp(min=1e-3), 0.0)
    names = [data.names[place] for place in (*moving, *fixed)]
    first, second = images.chunk(2)
    return TwoScans(names, first, second, torch.tensor(moving, device=images.device), draw, plain)


@dataclass
class OneAtlas(Pair):
    """An atlas, the same in all pairs, and unlabelled scans, none of them augmented."""

    mixture: Tensor  # what each sample takes of every pair's displacement, (N, N); rows add up to 1
    draw: Draw
    displacement: Tensor | None = None  # mixed; the player that comes first fills it in


def one_atlas_and_scans(data: Scans, draw: Draw, *, mix: bool = False) -> OneAtlas:
    """An atlas and N unlabelled scans.

    Args:
        mix: a sample takes, of its own pair and two that are drawn, shares of 1, U(0, 0.3) and U(0, 0.3) over their sum
            (SST's published code); otherwise its own pair's displacement alone.
    """
    n, generator = draw.batch_size, draw.generator
    atlases, scans = pick(data.atlases, 1, generator) * n, pick(data.unlabeled, n, generator)
    mixture = torch.eye(n, device=generator.device)
    if mix:
        others = torch.randint(n, (n, 2), generator=generator, device=generator.device)
        mixture.scatter_add_(1, others, 0.3 * torch.rand((n, 2), generator=generator, device=generator.device))
        mixture /= mixture.sum(1, keepdim=True)
    names = [data.names[place] for place in (*atlases, *scans)]
    return OneAtlas(names, data.image(atlases), data.image(scans), mixture, draw)


@dataclass
class LabelledPairs(Pair):
    """Pairs to register; the last ones have labels."""

    moving_label: Tensor  # (M, D, H, W), class indices
    fixed_label: Tensor
    num_classes: int


def scans_and_labelled_pairs(data: Scans, draw: Draw) -> LabelledPairs:
    """N pairs of an atlas and an unlabelled scan, then N of two different atlases; pairs i of both kinds move alike."""
    n = draw.batch_size
    scans = pick(data.unlabeled, n, draw.generator)
    moving = pick(data.atlases, n, draw.generator)
    first = pick(data.atlases, n, draw.generator)
    second = [pick([a for a in data.atlases if a != other], 1, draw.generator)[0] for other in first]
    images = data.image([*moving, *first, *scans, *second])
    labels = data.label([*first, *second])
    displacement = draw.displacement(data)
    if displacement is not None:
        images = warp(images, displacement.repeat(4, 1, 1, 1, 1), padding="zeros")
        labels = warp_label(labels, displacement.repeat(2, 1, 1, 1, 1))
    names = [data.names[place] for place in (*moving, *first, *scans, *second)]
    all_moving, all_fixed = images.chunk(2)
    moving_label, fixed_label = labels.chunk(2)
    return LabelledPairs(names, all_moving, all_fixed, moving_label, fixed_label, data.num_classes)


@dataclass
class Triplet:
    """An atlas with its label and two unlabelled scans, BRBS's batch."""

    scans: list[str]
    atlas: Tensor  # (N, 1, D, H, W)
    label: Tensor  # (N, D, H, W), class indices
    first: Tensor  # U1, (N, 1, D, H, W)
    second: Tensor  # U2
    num_classes: int
    draw: Draw  # the players draw pairs, alpha, beta and gamma from it
    around: Tensor | None = None  # an augmentation that the images have not undergone: for what S sees


def atlas_and_two_unlabeled(data: Scans, draw: Draw, *, move: bool = True) -> Triplet:
    """(A, y), U1 and U2 under one random displacement that they share (BRBS, section IV).

    Without `move` they stay as they are, and the displacement comes along for the couples that are made of them.
    """
    n = draw.batch_size
    atlases = pick(data.atlases, n, draw.generator)
    scans = pick(data.unlabeled, 2 * n, draw.generator)
    images, label = data.image([*atlases, *scans]), data.label(atlases)
    displacement = draw.displacement(data)
    if displacement is not None and move:
        images = warp(images, displacement.repeat(3, 1, 1, 1, 1), padding="zeros")
        label = warp_label(label, displacement)
    atlas, first, second = images.chunk(3)
    names = [data.names[p] for p in (*atlases, *scans)]
    around = None if move else displacement
    return Triplet(names, atlas, label, first, second, data.num_classes, draw, around)


@dataclass
class Mixed(Labelled):
    """Generated couples (image, target) and an approximately aligned pair of images for mixing."""

    first: Tensor  # X_A, (N, 1, D, H, W)
    second: Tensor  # X_B
    gamma: Tensor  # (N, 1, 1, 1, 1)


class PathBank(Protocol):
    """Stored transformation paths of couples (atlas, scan): what `lrls generate` wrote, read couple by couple."""

    @property
    def couples(self) -> Sequence[tuple[int, int]]: ...  # places of (atlas, scan) in the cohort

    def displacement(self, couple: int) -> Tensor: ...  # (3, D, H, W) voxels: atlas to scan
    def style(self, couple: int) -> Tensor: ...  # (1, D, H, W): what the atlas gains to look like the scan


class Sample(Protocol):
    """A finished couple that `lrls generate` wrote."""

    @property
    def image(self) -> Tensor: ...  # (1, D, H, W)
    @property
    def label(self) -> Tensor: ...  # (D, H, W)
    @property
    def scan(self) -> str: ...


Degree = Callable[[int, Generator], Tensor]  # (count, generator) -> (count, 1, 1, 1, 1) in [0, 1]


@dataclass(frozen=True)
class Beta:
    """Degrees drawn from Beta(a, a), independent for every sample."""

    a: float

    def __call__(self, count: int, generator: Generator) -> Tensor:
        # A quotient of two Gamma draws, because torch.distributions takes no generator.
        concentration = torch.full((2, count, 1, 1, 1, 1), self.a, device=generator.device)
        x, y = torch._standard_gamma(concentration, generator=generator).clamp(min=1e-30)
        return x / (x + y)


@dataclass(frozen=True)
class Always:
    """A degree that is not sampled."""

    degree: float

    def __call__(self, count: int, generator: Generator) -> Tensor:
        return torch.full((count, 1, 1, 1, 1), self.degree, device=generator.device)


@dataclass(frozen=True)
class SpaceStyleSampling:
    """S3P: X = T(A + beta psi, alpha phi), y = T(y_A, alpha phi) (BRBS Eqs. 10-12), and the pair that MMR mixes.

    The paths phi (atlas to scan) and psi (style, on the atlas's grid) come from a path bank or straight from R.

    Args:
        space: draws alpha, the degree of the deformation.
        style: draws beta, the degree of the style.
        mixing: draws gamma; None: no mixing, and no pair is made.
        any_pair: mix any two training images (the paper's text) instead of X_A = T(A + psi, phi) with X_B = U.
        coupled: phi and psi of a sample are one scan's; otherwise the style scan is drawn independently.
    """

    space: Degree
    style: Degree
    mixing: Degree | None
    any_pair: bool = False
    coupled: bool = False

    @property
    def needs_style(self) -> bool:
        """Whether style maps are looked at, for couples or for mixing."""
        return self.style != Always(0.0) or self.mixing is not None

    def from_bank(self, data: Scans, draw: Draw) -> Labelled:
        """A batch for `train-seg`; the augmentation is composed with the path, so images are interpolated once."""
        bank, n = data.bank, draw.batch_size
        assert bank is not None
        spaces = pick(range(len(bank.couples)), n, draw.generator)
        atlases = [bank.couples[c][0] for c in spaces]
        styles = list(spaces) if self.coupled else []
        for atlas in atlases[len(styles) :]:  # drawn independently among the couples of the same atlas
            styles += pick([c for c, (a, _) in enumerate(bank.couples) if a == atlas], 1, draw.generator)
        scans = [bank.couples[c][1] for c in spaces]
        device = data.images.device
        path = torch.stack([bank.displacement(c) for c in spaces]).to(device).float()
        psi = torch.stack([bank.style(c) for c in styles]).to(device).float() if self.needs_style else None
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
            atlas: (N, 1, D, H, W).
            label: class indices, (N, D, H, W).
            path: phi, atlas to scan, (N, 3, D, H, W), voxels.
            psi: style of another scan on the atlas's grid, (N, 1, D, H, W); None where `needs_style` is not.
            scan: the image that the path leads to, (N, 1, D, H, W).
            around: displacement of the augmentation, (N, 3, D, H, W); None: no augmentation.
            others: (2N, 1, D, H, W), the two images of each mixed pair where any may be mixed.
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
