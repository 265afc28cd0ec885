"""Images to register: pairs, with or without labels, and an atlas with two scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stages.errors import LrlsError
from stages.parts.augmentation import brighten, uniform
from stages.parts.batches.drawing import Draw, pick, pick_whole
from stages.parts.batches.scans import Scans
from stages.parts.together import rand, share_of
from stages.parts.warps import warp, warp_label


@dataclass
class Pair:
    """Two images to register."""

    scans: list[str]
    moving: Tensor  # (N, channels, D, H, W)
    fixed: Tensor


@dataclass
class LabelledPair(Pair):
    """Two images to register, of which the moving one has a label."""

    label: Tensor  # (N, D, H, W), class indices
    num_classes: int
    draw: Draw | None = None  # with which players draw samples
    missing: Tensor | None = None  # (N, C): structures that the label may lack


def atlas_and_scan(data: Scans, draw: Draw) -> LabelledPair:
    """An atlas, which moves, and an unlabelled scan, under the same random displacement."""
    atlases = pick(data.atlases, draw.batch_size, draw.generator)
    return _pair(atlases, pick(data.unlabeled, draw.batch_size, draw.generator), data, draw)


def atlas_and_different_scans(data: Scans, draw: Draw) -> LabelledPair:
    """As `atlas_and_scan`, but without repeated scans: for losses that contrast the scans of a batch."""
    n = draw.whole
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
    scans = share_of([data.unlabeled[int(i)] for i in order[:n]], draw.generator)
    return _pair(pick(data.atlases, draw.batch_size, draw.generator), scans, data, draw)


def _pair(atlases: Sequence[int], scans: Sequence[int], data: Scans, draw: Draw) -> LabelledPair:
    images, label = data.image([*atlases, *scans]), data.label(atlases)
    displacement = draw.displacement(data)
    if displacement is not None:
        images = warp(images, displacement.repeat(2, 1, 1, 1, 1), padding="zeros")
        label = warp_label(label, displacement)
    moving, fixed = images.chunk(2)
    names = [data.names[place] for place in (*atlases, *scans)]
    missing = data.missing(names[: len(atlases)])
    return LabelledPair(names, moving, fixed, label, data.num_classes, draw, missing)


@dataclass
class LabelledPairs(Pair):
    """Pairs to register; the last ones have labels."""

    moving_label: Tensor  # (M, D, H, W), class indices
    fixed_label: Tensor
    num_classes: int
    draw: Draw | None = None  # with which players draw samples


def scans_and_labelled_pairs(data: Scans, draw: Draw) -> LabelledPairs:
    """N pairs of an atlas and an unlabelled scan, then N of two different atlases; pairs i of both kinds move alike."""
    n = draw.batch_size
    scans = pick(data.unlabeled, n, draw.generator)
    moving = pick(data.atlases, n, draw.generator)
    first = pick_whole(data.atlases, draw.whole, draw.generator)
    second = [pick_whole([a for a in data.atlases if a != other], 1, draw.generator)[0] for other in first]
    first, second = share_of(first, draw.generator), share_of(second, draw.generator)
    images = data.image([*moving, *first, *scans, *second])
    labels = data.label([*first, *second])
    displacement = draw.displacement(data)
    if displacement is not None:
        images = warp(images, displacement.repeat(4, 1, 1, 1, 1), padding="zeros")
        labels = warp_label(labels, displacement.repeat(2, 1, 1, 1, 1))
    names = [data.names[place] for place in (*moving, *first, *scans, *second)]
    all_moving, all_fixed = images.chunk(2)
    moving_label, fixed_label = labels.chunk(2)
    return LabelledPairs(names, all_moving, all_fixed, moving_label, fixed_label, data.num_classes, draw)


@dataclass
class TwoScans(Pair):
    """Two training scans, of any kind, that differ."""

    owner: Tensor  # place of the moving one in the cohort, (N,)
    draw: Draw  # with which players draw from the prior
    plain: Tensor  # the moving one before jitter
    fixed_owner: Tensor  # likewise, of the fixed one
    fixed_plain: Tensor


def two_scans(data: Scans, draw: Draw, *, jitter: Literal["none", "pair", "each"] = "none") -> TwoScans:
    """Any two different atlases or unlabelled scans, under the same random displacement.

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
    plain, fixed_plain = images.chunk(2)
    if jitter != "none":
        alike = 2 if jitter == "pair" else 1
        size = (len(images) // alike, 2, 1, 1, 1, 1)
        brightness, contrast = uniform(size, 0.7, 1.3, draw.generator).repeat(alike, 1, 1, 1, 1, 1).unbind(1)
        # The outside of a scan stays 0, and nothing else becomes 0: `ranks` recognises the outside by that.
        images = torch.where(images > 0, brighten(images, brightness, contrast).clamp(min=1e-3), 0.0)
    names = [data.names[place] for place in (*moving, *fixed)]
    first, second = images.chunk(2)
    owner, fixed_owner = torch.tensor([moving, fixed]).to(images.device, non_blocking=True)
    return TwoScans(names, first, second, owner, draw, plain, fixed_owner, fixed_plain)


@dataclass
class OneAtlas(Pair):
    """An atlas, the same in all pairs, and unlabelled scans, none of them augmented. N samples mix M pairs."""

    mixture: Tensor  # shares of every pair's displacement in each sample, (N, M); rows add up to 1
    draw: Draw
    displacement: Tensor | None = None  # mixed; the first player fills it in


def one_atlas_and_scans(data: Scans, draw: Draw, *, mix: bool = False) -> OneAtlas:
    """An atlas and N unlabelled scans.

    Args:
        mix: a sample mixes its own pair's displacement and those of two pairs drawn from all, with weights of 1,
            U(0, 0.3) and U(0, 0.3) over their sum (SST's published code); otherwise it has its own pair's alone.
    """
    n, generator = draw.batch_size, draw.generator
    atlas, scans = pick_whole(data.atlases, 1, generator), pick(data.unlabeled, n, generator)
    mixture = torch.eye(n, device=generator.device)
    if mix:
        scans += pick(data.unlabeled, 2 * n, generator)
        shares = 0.3 * rand((2, n), generator, axis=1)
        mixture = torch.cat([mixture, *(torch.diag(share) for share in shares)], 1)
        mixture /= mixture.sum(1, keepdim=True)
    atlases = atlas * len(scans)
    names = [data.names[place] for place in (*atlases, *scans)]
    return OneAtlas(names, data.image(atlases), data.image(scans), mixture, draw)


@dataclass
class Triplet:
    """An atlas with its label and two unlabelled scans, BRBS's batch."""

    scans: list[str]
    atlas: Tensor  # (N, channels, D, H, W)
    label: Tensor  # (N, D, H, W), class indices
    first: Tensor  # U1, (N, channels, D, H, W)
    second: Tensor  # U2
    num_classes: int
    draw: Draw  # with which players draw pairs, alpha, beta and gamma
    around: Tensor | None = None  # augmentation that is not yet applied to the images: for S
    missing: Tensor | None = None  # (N, C): structures that the atlas's label may lack
    others: Tensor | None = None  # any training images, two a sample, (2N, channels, D, H, W)


def atlas_and_two_unlabeled(data: Scans, draw: Draw, *, move: bool = True, others: bool = False) -> Triplet:
    """(A, y), U1 and U2 under one shared random displacement (BRBS, section IV).

    Args:
        move: off: the images stay as they are, and `around` holds the displacement for the couples made from them.
        others: also draw two images a sample from atlases and unlabelled scans alike.
    """
    n = draw.batch_size
    atlases = pick(data.atlases, n, draw.generator)
    scans = pick(data.unlabeled, 2 * n, draw.generator)
    further = pick([*data.atlases, *data.unlabeled], 2 * n, draw.generator) if others else []
    images, label = data.image([*atlases, *scans, *further]), data.label(atlases)
    displacement = draw.displacement(data)
    if displacement is not None and move:
        images = warp(images, displacement.repeat(len(images) // n, 1, 1, 1, 1), padding="zeros")
        label = warp_label(label, displacement)
    atlas, first, second, *rest = images.split(n)
    names = [data.names[p] for p in (*atlases, *scans, *further)]
    around = None if move else displacement
    missing = data.missing(names[:n])
    return Triplet(
        names, atlas, label, first, second, data.num_classes, draw, around, missing,
        others=torch.cat(rest) if others else None,
    )  # fmt: skip
