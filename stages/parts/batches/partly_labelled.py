"""Batches that mix atlases, scans with pseudo-labels and scans without labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.errors import LrlsError
from stages.parts import losses
from stages.parts.batches.drawing import Draw, pick, pick_whole
from stages.parts.batches.pairs import Pair
from stages.parts.batches.scans import Scans
from stages.parts.together import rand, share_of
from stages.parts.warps import warp, warp_label


@dataclass
class PartlyLabelledPair(Pair):
    """Two images to register, with their labels as far as known: for each image, the classes that count."""

    moving_label: Tensor  # (N, D, H, W), class indices
    fixed_label: Tensor
    moving_counts: Tensor  # (N, C), bool
    fixed_counts: Tensor
    num_classes: int
    draw: Draw  # S sees the images recoloured by it; R sees them as they are


def known_labels(data: Scans, places: list[int]) -> tuple[Tensor, Tensor]:
    """Label maps (N, D, H, W) and the classes that count in them (N, C): all, the accepted ones, or none."""
    device = data.images.device
    labels, counts = [], []
    for place in places:
        pseudo = data.pseudo.get(place) if data.pseudo else None
        if place in data.labels:
            label, count = data.labels[place], torch.ones(data.num_classes, dtype=torch.bool, device=device)
        elif pseudo is not None and pseudo.counts:
            label, count = pseudo.label, pseudo.accepted
        else:
            label = torch.zeros(data.shape, dtype=torch.int16, device=device)
            count = torch.zeros(data.num_classes, dtype=torch.bool, device=device)
        labels.append(label.short())
        counts.append(count)
    return torch.stack(labels), torch.stack(counts)


def any_pair(data: Scans, draw: Draw, *, with_atlas: float = 0.0, apart: bool = False) -> PartlyLabelledPair:
    """Two different scans, atlases among them, under random displacements.

    Args:
        with_atlas: share of the pairs in which one image, moving or fixed, is an atlas; the others are any two scans.
        apart: each image of a pair is moved its own way, if the pair is moved at all; otherwise both move alike.
    """
    generator = draw.generator
    everyone = [*data.atlases, *data.unlabeled]
    moving, fixed = [], []
    for _ in range(draw.whole):
        first, second = pick_whole(everyone, 1, generator)[0], None
        if with_atlas and float(torch.rand((), generator=generator, device=generator.device)) < with_atlas:
            first = pick_whole(data.atlases, 1, generator)[0]
        second = pick_whole([scan for scan in everyone if scan != first], 1, generator)[0]
        ways = int(torch.randint(2, (1,), generator=generator, device=generator.device))
        moving.append((first, second)[ways])
        fixed.append((second, first)[ways])
    moving, fixed = share_of(moving, generator), share_of(fixed, generator)
    images, (labels, counts) = data.image([*moving, *fixed]), known_labels(data, [*moving, *fixed])
    displacement = draw.displacement(data)
    if displacement is not None:
        both = torch.cat([displacement, _another(displacement, data, draw) if apart else displacement])
        images, labels = warp(images, both, padding="zeros"), warp_label(labels, both)
    names = [data.names[place] for place in (*moving, *fixed)]
    pairs = (tensor.chunk(2) for tensor in (images, labels, counts))
    (a, b), (label_a, label_b), (counts_a, counts_b) = pairs
    return PartlyLabelledPair(names, a, b, label_a, label_b, counts_a, counts_b, data.num_classes, draw)


def _another(displacement: Tensor, data: Scans, draw: Draw) -> Tensor:
    """A further random displacement of the samples that a first one moves; the others stand still in both."""
    assert draw.space is not None
    always = replace(draw, space=replace(draw.space, probability=1.0)).displacement(data)
    assert always is not None
    return always * displacement.flatten(1).any(1).view(-1, 1, 1, 1, 1)


@dataclass
class AtlasesAndScans:
    """What a student learns from: as many atlases as unlabelled scans with pseudo-labels."""

    scans: list[str]
    atlas: Tensor  # (N, 1, D, H, W)
    label: Tensor  # (N, D, H, W), class indices
    scan: Tensor  # (N, 1, D, H, W)
    pseudo_label: Tensor  # (N, D, H, W)
    trusted: Tensor  # voxels of accepted classes of which the teacher was sure, (N, D, H, W), bool
    accepted: Tensor  # classes of the scan that the screening accepted, (N, C), bool
    other: Tensor  # scans towards which `scan` may be moved, (N, 1, D, H, W)
    moved: Tensor  # which scans are moved, (N,), bool
    around: tuple[Tensor, Tensor] | None  # augmentation of atlases and of scans, (N, 3, D, H, W)
    weights: Tensor  # of the classes, (C,)
    num_classes: int
    draw: Draw  # of the colours and of the dropout


def atlases_and_scans(data: Scans, draw: Draw, *, moved: float = 0.0, weigh_classes: bool = True) -> AtlasesAndScans:
    """Half of the batch (rounded up) atlases, as many unlabelled scans; the augmentation is not yet applied.

    Args:
        moved: probability that a scan is moved towards another one.
        weigh_classes: weigh classes by their frequency in the atlases; off: all equally.
    """
    n, generator = -(-draw.batch_size // 2), draw.generator
    if draw.batch_size % 2 and draw.whole > draw.batch_size:
        raise LrlsError(
            f"a batch of {draw.whole} has no equal shares of atlases and scans for "
            f"{draw.whole // draw.batch_size} processes; set its batch_size to a multiple of twice their number."
        )
    draw = replace(draw, batch_size=n)
    atlases, scans = pick(data.atlases, n, generator), pick(data.unlabeled, n, generator)
    others = pick(data.unlabeled, n, generator)
    labels, trusted, accepted = [], [], []
    for place in scans:
        pseudo = (data.pseudo or {}).get(place)
        if pseudo is None:
            raise LrlsError(f"case {data.names[place]} has no pseudo-label; make them again with `lrls generate`.")
        labels.append(pseudo.label.short())
        trusted.append(pseudo.counted)
        accepted.append(pseudo.accepted)
    around = draw.displacement(data, 2 * n)
    weights = losses.class_weights(data.class_voxels)
    return AtlasesAndScans(
        scans=[data.names[place] for place in (*atlases, *scans, *others)],
        atlas=data.image(atlases),
        label=data.label(atlases),
        scan=data.image(scans),
        pseudo_label=torch.stack(labels),
        trusted=torch.stack(trusted),
        accepted=torch.stack(accepted),
        other=data.image(others),
        moved=rand((n,), generator) < moved,
        around=None if around is None else around.chunk(2),  # type: ignore[arg-type]
        weights=weights if weigh_classes else torch.ones_like(weights),
        num_classes=data.num_classes,
        draw=draw,
    )
