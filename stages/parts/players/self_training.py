"""Self-training on screened pseudo-labels: registration of partly labelled pairs, and a student led by a teacher.

Source: Shi et al., "JRSS".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.batches.partly_labelled import AtlasesAndScans, PartlyLabelledPair
from stages.parts.networks.dropout import channels_dropped, statistics_kept
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.standardised import standardise
from stages.parts.players.registering import Registered
from stages.parts.warps import one_hot, warp, warp_label, warp_one_hot

SMOOTH = 1e-6  # of JRSS's soft Dice


@dataclass
class PartlyLabelled(Registered):
    """Registered pairs, with their labels as far as known."""

    labels: tuple[Tensor, Tensor] | None = None  # of (moving, fixed), (N, D, H, W)
    counts: Tensor | None = None  # classes that count in both, (N, C)


@dataclass
class RegisterPartlyLabelled:
    """Forward pass of JRSS's registration player.

    Args:
        network: sees images of mean 0 and standard deviation 1, whatever it is given.
        standardised: such images are also compared; off: those from 0 to 1, as LNCC and mutual information need them.
    """

    network: RegistrationNetwork
    standardised: bool = True

    def __call__(self, batch: PartlyLabelledPair) -> PartlyLabelled:
        moving, fixed = batch.moving, batch.fixed
        if self.standardised:
            moving, fixed = standardise(moving), standardise(fixed)
        return PartlyLabelled(
            moving, fixed, self.network(moving, fixed), 1,
            labels=(batch.moving_label, batch.fixed_label), counts=batch.moving_counts & batch.fixed_counts,
        )  # fmt: skip


def accepted_overlap(pair: PartlyLabelled) -> Tensor:
    """L_d: soft Dice loss of warped and fixed labels over the classes that count in both (JRSS Eq. 7); 0 if none."""
    assert pair.labels is not None and pair.counts is not None
    rows = pair.counts.any(1).nonzero()[:, 0]
    if not len(rows):
        return 0 * pair.displacement.sum()
    counts, (moving, fixed) = pair.counts[rows], (label[rows] for label in pair.labels)
    num_classes = counts.shape[1]
    warped = warp_one_hot(moving, pair.displacement[rows], num_classes)
    loss = losses.counted_dice_loss(warped, one_hot(fixed, num_classes), counts, smooth=SMOOTH)
    return loss * len(rows) / len(pair.counts)


@dataclass
class Taught:
    """The student's answers for atlases and scans, and its targets."""

    of_atlas: Tensor  # logits, (N, C, D, H, W)
    of_scan: Tensor
    label: Tensor  # (N, D, H, W)
    pseudo_label: Tensor
    trusted: Tensor  # voxels that L_c looks at, (N, D, H, W), bool
    weights: Tensor  # (C,)
    teacher: Tensor | None  # logits of the teacher, of the scan, (N, C, D, H, W)
    carried: Tensor | None  # the atlas's label, carried over to the scan by R, (N, C, D, H, W)


@dataclass
class Teach:
    """Forward pass of the student: noise on its input and inside it; teacher and R stand still, in evaluation mode.

    The student's running statistics, which its average and the next teacher inherit, come from a pass without dropout.
    With dropout BatchNorm would see a larger variance than the teacher, which has no dropout, ever meets.

    Args:
        student: learns.
        teacher: labels the scan as the student sees it, without dropout. None: the loss needs no teacher.
        registration: R: atlas to scan, and scan to another scan for noise; sees images that are not recoloured.
        carries: whether the atlas's label is carried over to the scan.
        dropout: rate of `channels_dropped`.
        spares_missing: L_c leaves out the voxels where the carried label has a class that was not accepted in the scan.
            What a teacher never predicts it labels as its neighbours, and is sure of it.
    """

    student: nn.Module
    teacher: nn.Module | None
    registration: RegistrationNetwork
    carries: bool
    dropout: float
    spares_missing: bool = False

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
                if self.spares_missing:
                    here = carried.argmax(1).flatten(1)
                    trusted = trusted & batch.accepted.gather(1, here).view(trusted.shape)
            images = batch.draw.recolour(torch.cat([atlas, scan]))
            teacher = None if self.teacher is None else self.teacher.eval()(images[len(atlas) :])
            noisy = self.dropout > 0 and any(isinstance(layer, nn.BatchNorm3d) for layer in self.student.modules())
            if noisy:
                self.student(images)
        with channels_dropped(self.student, self.dropout, batch.draw.generator), statistics_kept(self.student, noisy):
            of_atlas, of_scan = self.student(images).chunk(2)
        return Taught(of_atlas, of_scan, label, pseudo_label, trusted, batch.weights, teacher, carried)

    def _register(self, batch: AtlasesAndScans) -> tuple[Tensor | None, Tensor | None]:
        """Displacements atlas to scan, and scan to the other one (0 where it is not moved); None: not needed."""
        n, moved = len(batch.atlas), bool(batch.moved.any())
        carries = self.carries or self.spares_missing
        moving = [batch.atlas] * carries + [batch.scan] * moved
        fixed = [batch.scan] * carries + [batch.other] * moved
        if not moving:
            return None, None
        displacements = self.registration.eval()(torch.cat(moving), torch.cat(fixed))
        noise = displacements[-n:] * batch.moved.view(-1, 1, 1, 1, 1) if moved else None
        return (displacements[:n] if carries else None), noise


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
