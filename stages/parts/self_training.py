"""Self-training of segmentation and registration on each other's answers (JRSS): screening, batches, players, terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Generator, Tensor, nn

from stages.errors import LrlsError
from stages.parts import losses
from stages.parts.consistency import Registered, register
from stages.parts.networks import RegistrationNetwork
from stages.parts.samplers import Draw, Pair, Scans, pick
from stages.parts.warps import one_hot, warp, warp_label, warp_one_hot, warp_probabilities

SMOOTH = 1e-6  # of JRSS's soft Dice


class Standardised(nn.Module):
    """A network that sees images of mean 0 and standard deviation 1, as `standardise` makes them."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(standardise(x))


def standardise(image: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the voxels of each image and channel; (N, C, D, H, W), float32; flat: 0."""
    image = image.float()
    centred = image - image.mean((2, 3, 4), keepdim=True)
    return centred / centred.square().mean((2, 3, 4), keepdim=True).sqrt().clamp(min=1e-6)


@dataclass
class Screened:
    """What a network says of a scan, and how sure it is.

    `voxels` and `confidence` are of the classes: voxels that are predicted so, and the class's mean probability there
    (nan: none).
    """

    label: Tensor  # most probable class, (D, H, W)
    certainty: Tensor  # its probability, (D, H, W)
    trusted: Tensor  # whether that exceeds the threshold, (D, H, W), bool
    voxels: Tensor  # (C,)
    confidence: Tensor  # (C,)
    accepted: Tensor  # whether that exceeds the threshold, (C,), bool


def screen(probabilities: Tensor, threshold: float) -> Screened:
    """Keep the voxels, and the classes, that a network is sure of.

    Args:
        probabilities: of a scan, (C, D, H, W).
        threshold: tau.

    Source: JRSS section 3.3 says max(P_c) > tau "class-level"; read as: a voxel counts in cross-entropy where its
    largest probability exceeds tau, a class counts in Dice where its mean probability over its voxels does.
    """
    certainty, label = probabilities.float().max(0)
    flat = label.flatten()
    voxels = torch.bincount(flat, minlength=len(probabilities))
    sums = torch.zeros(len(probabilities), device=label.device, dtype=torch.float64)
    confidence = (sums.index_add(0, flat, certainty.flatten().double()) / voxels).float()  # 0 / 0: nan
    return Screened(label, certainty, certainty > threshold, voxels, confidence, confidence > threshold)


# Batches


@dataclass
class PartlyLabelledPair(Pair):
    """Two images to register, with what is known of their labels; every class counts or not, image by image."""

    moving_label: Tensor  # (N, D, H, W), class indices
    fixed_label: Tensor
    moving_counts: Tensor  # (N, C), bool
    fixed_counts: Tensor
    num_classes: int
    draw: Draw  # S sees the images recoloured by it; R sees them as they are


def known_labels(data: Scans, places: list[int]) -> tuple[Tensor, Tensor]:
    """Label maps (N, D, H, W) and the classes that count in them (N, C): all, what the screening left, or none."""
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


def any_pair(data: Scans, draw: Draw, *, with_atlas: float = 0.0) -> PartlyLabelledPair:
    """Two different scans, atlases among them, under the same random displacement.

    Args:
        with_atlas: share of the pairs of which one, either of the two, is an atlas; the others are any two scans.
    """
    n, generator = draw.batch_size, draw.generator
    everyone = [*data.atlases, *data.unlabeled]
    moving, fixed = [], []
    for _ in range(n):
        first, second = pick(everyone, 1, generator)[0], None
        if with_atlas and float(torch.rand((), generator=generator, device=generator.device)) < with_atlas:
            first = pick(data.atlases, 1, generator)[0]
        second = pick([scan for scan in everyone if scan != first], 1, generator)[0]
        ways = int(torch.randint(2, (1,), generator=generator, device=generator.device))
        moving.append((first, second)[ways])
        fixed.append((second, first)[ways])
    images, (labels, counts) = data.image([*moving, *fixed]), known_labels(data, [*moving, *fixed])
    displacement = draw.displacement(data)
    if displacement is not None:
        both = displacement.repeat(2, 1, 1, 1, 1)
        images, labels = warp(images, both, padding="zeros"), warp_label(labels, both)
    names = [data.names[place] for place in (*moving, *fixed)]
    pairs = (each.chunk(2) for each in (images, labels, counts))
    (a, b), (label_a, label_b), (counts_a, counts_b) = pairs
    return PartlyLabelledPair(names, a, b, label_a, label_b, counts_a, counts_b, data.num_classes, draw)


@dataclass
class AtlasesAndScans:
    """What a student learns from: as many atlases as unlabelled scans with pseudo-labels."""

    scans: list[str]
    atlas: Tensor  # (N, 1, D, H, W)
    label: Tensor  # (N, D, H, W), class indices
    scan: Tensor  # (N, 1, D, H, W)
    pseudo_label: Tensor  # (N, D, H, W)
    trusted: Tensor  # (N, D, H, W), bool
    other: Tensor  # further scans, that the scan may be moved towards, (N, 1, D, H, W)
    moved: Tensor  # which of the scans are, (N,), bool
    around: tuple[Tensor, Tensor] | None  # displacement of the augmentation, (N, 3, D, H, W), of atlases and of scans
    weights: Tensor  # of the classes, (C,)
    num_classes: int
    draw: Draw  # of the colours and of the dropout


def atlases_and_scans(data: Scans, draw: Draw, *, moved: float = 0.0, weigh_classes: bool = True) -> AtlasesAndScans:
    """Half of the batch (rounded up) atlases, as many unlabelled scans; the augmentation is still to be done.

    Args:
        moved: probability that a scan is seen moved towards another one.
        weigh_classes: by their frequency in the atlases; off: all alike.
    """
    n, generator = -(-draw.batch_size // 2), draw.generator
    atlases, scans = pick(data.atlases, n, generator), pick(data.unlabeled, n, generator)
    others = pick(data.unlabeled, n, generator)
    labels, counts, trusted = [], [], []
    for place in scans:
        pseudo = (data.pseudo or {}).get(place)
        if pseudo is None:
            raise LrlsError(f"case {data.names[place]} has no pseudo-label; make them again with `lrls generate`.")
        labels.append(pseudo.label.short())
        trusted.append(pseudo.trusted)
        counts.append(pseudo.counts)
    around = draw.displacement(data, 2 * n)
    weights = losses.class_weights(data.class_voxels)
    return AtlasesAndScans(
        scans=[data.names[place] for place in (*atlases, *scans, *others)],
        atlas=data.image(atlases),
        label=data.label(atlases),
        scan=data.image(scans),
        pseudo_label=torch.stack(labels),
        trusted=torch.stack(trusted) & torch.tensor(counts, device=data.images.device).view(-1, 1, 1, 1),
        other=data.image(others),
        moved=torch.rand(n, generator=generator, device=generator.device) < moved,
        around=None if around is None else around.chunk(2),  # type: ignore[arg-type]
        weights=weights if weigh_classes else torch.ones_like(weights),
        num_classes=data.num_classes,
        draw=draw,
    )


# Registration


@dataclass
class PartlyLabelled(Registered):
    """Registered pairs, with what is known of their labels."""

    labels: tuple[Tensor, Tensor] | None = None  # of (moving, fixed), (N, D, H, W)
    counts: Tensor | None = None  # classes that count in both, (N, C)


@dataclass
class RegisterPartlyLabelled:
    """Forward pass of JRSS's registration player; its images have mean 0 and standard deviation 1."""

    network: RegistrationNetwork

    def __call__(self, batch: PartlyLabelledPair) -> PartlyLabelled:
        moving, fixed = standardise(batch.moving), standardise(batch.fixed)
        return PartlyLabelled(
            moving, fixed, self.network(moving, fixed), 1,
            labels=(batch.moving_label, batch.fixed_label), counts=batch.moving_counts & batch.fixed_counts,
        )  # fmt: skip


def accepted_overlap(pair: PartlyLabelled) -> Tensor:
    """L_d: soft Dice loss of warped and fixed labels over the classes that count in both (JRSS Eq. 7); 0 where none."""
    assert pair.labels is not None and pair.counts is not None
    rows = pair.counts.any(1).nonzero()[:, 0]
    if not len(rows):
        return 0 * pair.displacement.sum()
    counts, (moving, fixed) = pair.counts[rows], (label[rows] for label in pair.labels)
    num_classes = counts.shape[1]
    warped = warp_one_hot(moving, pair.displacement[rows], num_classes)
    loss = losses.counted_dice_loss(warped, one_hot(fixed, num_classes), counts, smooth=SMOOTH)
    return loss * len(rows) / len(pair.counts)


# The student


@contextmanager
def channels_dropped(network: nn.Module, rate: float, generator: Generator) -> Iterator[None]:
    """Within, the last layers of a U-Net on its way down and on its way up lose each channel with this probability.

    Args:
        network: has `down` and `up` (finest first), or is wrapped round one that has.
    """
    body = network.body if isinstance(network, Standardised) else network

    def drop(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept = torch.rand((*output.shape[:2], 1, 1, 1), generator=generator, device=output.device) >= rate
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
    """Within, the running statistics of BatchNorm stay as they are, though every batch is normalised by its own."""
    norms = [layer for layer in network.modules() if kept and isinstance(layer, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@dataclass
class Taught:
    """What the student says of atlases and scans, and what it is to say."""

    of_atlas: Tensor  # logits, (N, C, D, H, W)
    of_scan: Tensor
    label: Tensor  # (N, D, H, W)
    pseudo_label: Tensor
    trusted: Tensor  # (N, D, H, W), bool
    weights: Tensor  # (C,)
    teacher: Tensor | None  # logits of the teacher, of the scan, (N, C, D, H, W)
    carried: Tensor | None  # the atlas's label, carried over to the scan by R, (N, C, D, H, W)


@dataclass
class Teach:
    """Forward pass of the student: noise on its input and inside it; teacher and R stand still, in evaluation mode.

    Running statistics of the student, which are its average's and so the next teacher's, come from a pass without
    dropout: behind it the variance of what BatchNorm sees is larger than a teacher ever meets, who has none.

    Args:
        student: learns.
        teacher: says what the scan is; sees what the student sees, without dropout. None: nobody asks.
        registration: R: atlas to scan, and scan to another one for noise; sees no recolouring.
        carries: whether the atlas's label is carried over to the scan.
        dropout: rate of `channels_dropped`.
    """

    student: nn.Module
    teacher: nn.Module | None
    registration: RegistrationNetwork
    carries: bool
    dropout: float

    def __call__(self, batch: AtlasesAndScans) -> Taught:
        atlas, label = batch.atlas, batch.label
        scan, pseudo_label, trusted = batch.scan, batch.pseudo_label, batch.trusted
        with torch.no_grad():
            to_scan, noise = self._register(batch)
            way = noise
            if batch.around is not None:
                of_atlas, of_scan = batch.around
                atlas, label = warp(atlas, of_atlas, padding="zeros"), warp_label(label, of_atlas)
                way = of_scan if noise is None else of_scan + warp(noise, of_scan)
            if way is not None:
                scan, pseudo_label = warp(scan, way, padding="zeros"), warp_label(pseudo_label, way)
                trusted = warp_label(trusted.byte(), way).bool()
            carried = None
            if to_scan is not None:
                onto = to_scan if way is None else way + warp(to_scan, way)
                carried = warp_one_hot(batch.label, onto, batch.num_classes)
            images = batch.draw.recolour(torch.cat([atlas, scan]))
            teacher = None if self.teacher is None else self.teacher.eval()(images[len(atlas) :])
            noisy = self.dropout > 0 and any(isinstance(layer, nn.BatchNorm3d) for layer in self.student.modules())
            if noisy:
                self.student(images)
        with channels_dropped(self.student, self.dropout, batch.draw.generator), statistics_kept(self.student, noisy):
            of_atlas, of_scan = self.student(images).chunk(2)
        return Taught(of_atlas, of_scan, label, pseudo_label, trusted, batch.weights, teacher, carried)

    def _register(self, batch: AtlasesAndScans) -> tuple[Tensor | None, Tensor | None]:
        """Displacements atlas to scan, and scan to the other one (0 where it is not moved); None: nobody asks."""
        n, moved = len(batch.atlas), bool(batch.moved.any())
        moving = [batch.atlas] * self.carries + [batch.scan] * moved
        fixed = [batch.scan] * self.carries + [batch.other] * moved
        if not moving:
            return None, None
        found = self.registration.eval()(torch.cat(moving), torch.cat(fixed))
        noise = found[-n:] * batch.moved.view(-1, 1, 1, 1, 1) if moved else None
        return (found[:n] if self.carries else None), noise


def weighted_cross_entropy(result: Taught) -> Tensor:
    """L_c: mean over the atlases plus mean over the trusted voxels of the scans (JRSS Eq. 4)."""
    of_scans = losses.weighted_cross_entropy_loss(result.of_scan, result.pseudo_label, result.weights, result.trusted)
    return losses.weighted_cross_entropy_loss(result.of_atlas, result.label, result.weights) + of_scans


def uncertainty(result: Taught) -> Tensor:
    """L_u: how far student and teacher are apart on the scans (JRSS Eq. 5)."""
    assert result.teacher is not None
    return losses.symmetric_divergence_loss(result.teacher, result.of_scan)


def carried_overlap(result: Taught) -> Tensor:
    """L_d: soft Dice loss of the student's answer for a scan and the atlas's label carried over to it (JRSS Eq. 6)."""
    assert result.carried is not None
    return losses.dice_loss(result.of_scan.softmax(1), result.carried, smooth=SMOOTH)


# Joint training without screening: DeepAtlas, RSegNet


@dataclass
class RegisterByAnswers:
    """Forward pass of a registration player that looks at S's answer wherever there is no label; S stands still.

    Args:
        both_ways: register the pair both ways.
    """

    network: RegistrationNetwork
    segmentation: nn.Module
    both_ways: bool = False

    def __call__(self, batch: PartlyLabelledPair) -> Registered:
        registered = register(self.network, batch.moving, batch.fixed, both_ways=self.both_ways)
        with torch.no_grad():
            answers = self.segmentation(torch.cat([batch.moving, batch.fixed])).float().softmax(1).chunk(2)
        known = (batch.moving_counts.all(1), batch.fixed_counts.all(1))
        labels = (batch.moving_label, batch.fixed_label)
        moving, fixed = (
            torch.where(there.view(-1, 1, 1, 1, 1), one_hot(label, batch.num_classes), answer)
            for there, label, answer in zip(known, labels, answers, strict=True)
        )
        registered.classes = (moving, fixed)
        return registered


@dataclass
class Anatomies:
    """S's answers for a pair, its labels, and the displacements between them."""

    logits: tuple[Tensor, Tensor]  # of (moving, fixed), (N, C, D, H, W)
    labels: tuple[Tensor, Tensor]  # one-hot, (N, C, D, H, W)
    known: tuple[Tensor, Tensor]  # whether there is one, (N,), bool
    displacements: tuple[Tensor, ...]  # moving to fixed, and perhaps back, (N, 3, D, H, W)


@dataclass
class SegmentPair:
    """Forward pass of a segmentation player that learns through R's displacement, on recoloured images; R stands still.

    Args:
        both_ways: also through the displacement from fixed to moving.
    """

    network: nn.Module
    registration: RegistrationNetwork
    both_ways: bool = False

    def __call__(self, batch: PartlyLabelledPair) -> Anatomies:
        with torch.no_grad():
            if self.both_ways:
                ways = self.registration.both_ways(batch.moving, batch.fixed).chunk(2)
            else:
                ways = (self.registration(batch.moving, batch.fixed),)
        first, second = self.network(batch.draw.recolour(torch.cat([batch.moving, batch.fixed]))).chunk(2)
        labels = (one_hot(batch.moving_label, batch.num_classes), one_hot(batch.fixed_label, batch.num_classes))
        return Anatomies((first, second), labels, (batch.moving_counts.all(1), batch.fixed_counts.all(1)), ways)


def supervised_overlap(result: Anatomies) -> Tensor:
    """Soft Dice loss of S's answers over the images of the batch that have a label; 0 where none has."""
    logits, labels, known = (torch.cat(each) for each in (result.logits, result.labels, result.known))
    return _where_known(lambda rows: losses.dice_loss(logits[rows].softmax(1), labels[rows]), known, logits)


def carried_anatomy(result: Anatomies) -> Tensor:
    """Soft Dice loss of one image's classes, warped to the other, and the other's: its label, or else S's answer.

    A pair with no label teaches S nothing, and one of two labels has nothing to be predicted. Mean over the directions.

    Source: DeepAtlas, Eqs. 4 and 5 (the anatomy loss of S).
    """
    first, second = (
        torch.where(known.view(-1, 1, 1, 1, 1), label, logits.float().softmax(1))
        for known, label, logits in zip(result.known, result.labels, result.logits, strict=True)
    )
    one_known = result.known[0] ^ result.known[1]
    pairs = zip(((first, second), (second, first)), result.displacements, strict=False)
    total = torch.zeros((), device=first.device)
    for (moving, fixed), displacement in pairs:
        total = total + _where_known(_overlap_of(moving, fixed, displacement), one_known, result.logits[0])
    return total / len(result.displacements)


def _overlap_of(moving: Tensor, fixed: Tensor, displacement: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: losses.dice_loss(warp_probabilities(moving[rows], displacement[rows]), fixed[rows])


def _where_known(loss: Callable[[Tensor], Tensor], known: Tensor, like: Tensor) -> Tensor:
    """The loss of the rows that are known; without any, 0, with a gradient of 0."""
    rows = known.nonzero()[:, 0]
    return loss(rows) if len(rows) else 0 * like.float().sum()
