"""Training of registration networks: pairs registered one way or both, and their loss terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.batches.pairs import LabelledPairs, Pair, Triplet
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.warps import one_hot, warp, warp_probabilities


class Matched(Protocol):
    """Images that a player brought together, whichever way: what L_sim and L_smooth look at."""

    def compared(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A loss of (warped, fixed) images, summed over the directions."""

    def smoothed(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """A loss of displacements, summed over the directions."""


@dataclass
class Registered:
    """Registered pairs; with both directions, the second half of every tensor is the first with roles swapped."""

    moving: Tensor  # (N or 2N, channels, D, H, W)
    fixed: Tensor
    displacement: Tensor  # (N or 2N, 3, D, H, W), moving to fixed
    directions: int  # 1 or 2
    classes: tuple[Tensor, Tensor] | None = None  # class maps of (moving, fixed) of one direction, (N, C, D, H, W)
    chosen: Tensor | None = None  # the classes that semantic consistency looks at; None: all
    embeddings: tuple[Tensor, Tensor] | None = None  # of (moving, fixed) as a Siamese network sees them, (N, K)

    @property
    def backward(self) -> Tensor:
        """The displacement of the other direction, pair by pair."""
        return self.displacement.roll(len(self.displacement) // 2, 0)

    def compared(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return self.directions * loss(warp(self.moving, self.displacement), self.fixed)

    def smoothed(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        return self.directions * loss(self.displacement)


def register(network: RegistrationNetwork, moving: Tensor, fixed: Tensor, *, both_ways: bool) -> Registered:
    """Register pairs (N, channels, D, H, W); both directions go through the network as one batch."""
    if not both_ways:
        return Registered(moving, fixed, network(moving, fixed), directions=1)
    displacement = network.both_ways(moving, fixed)
    return Registered(torch.cat([moving, fixed]), torch.cat([fixed, moving]), displacement, directions=2)


@dataclass
class RegisterPair:
    """Forward pass of a plain registration player: atlas to scan, or scan to atlas where roles are swapped."""

    network: RegistrationNetwork
    swapped: bool = False

    def __call__(self, batch: Pair) -> Registered:
        pair = (batch.fixed, batch.moving) if self.swapped else (batch.moving, batch.fixed)
        return register(self.network, *pair, both_ways=False)


@dataclass
class RegisterAndEmbed:
    """Forward pass of a contrastive registration player: atlas to scan, and the embeddings of both."""

    network: RegistrationNetwork

    def __call__(self, batch: Pair) -> Registered:
        displacement, of_moving, of_fixed = self.network.with_embeddings(batch.moving, batch.fixed)
        return Registered(batch.moving, batch.fixed, displacement, 1, embeddings=(of_moving, of_fixed))


@dataclass
class RegisterLabelledPairs:
    """Forward pass of a label-constrained player: pairs of atlas and scan, then pairs of atlases with their labels."""

    network: RegistrationNetwork

    def __call__(self, batch: LabelledPairs) -> Registered:
        registered = register(self.network, batch.moving, batch.fixed, both_ways=False)
        registered.classes = labelled_classes(batch)
        return registered


def labelled_classes(batch: LabelledPairs) -> tuple[Tensor, Tensor]:
    """Class maps of the labelled pairs, (moving, fixed), (M, C, D, H, W) each."""
    moving, fixed = (one_hot(label, batch.num_classes) for label in (batch.moving_label, batch.fixed_label))
    return moving, fixed


@dataclass
class RegisterTriplet:
    """Forward pass of KCC: one of (A, U1), (A, U2), (U2, U1), swapped half of the time, registered.

    Args:
        network: R.
        segmentation: S, which gives class maps of unlabelled images, without gradient; None: no class maps.
        both_ways: also register fixed to moving (BiC).
        atlas_label: the atlas's class map is its ground truth; off: S's answer (BRBS Eq. 6 as printed).
        num_chosen: classes drawn for semantic consistency in each step, without bias; None: all.
    """

    network: RegistrationNetwork
    segmentation: nn.Module | None
    both_ways: bool
    atlas_label: bool
    num_chosen: int | None = None

    def __call__(self, batch: Triplet) -> Registered:
        generator = batch.draw.generator
        draw = int(torch.randint(6, (1,), generator=generator, device=generator.device))
        pairs = [(batch.atlas, batch.first), (batch.atlas, batch.second), (batch.second, batch.first)]
        moving, fixed = pairs[draw // 2] if draw % 2 else pairs[draw // 2][::-1]
        registered = register(self.network, moving, fixed, both_ways=self.both_ways)
        if self.segmentation is None:
            return registered
        registered.classes = self._classes(self.segmentation, batch, moving, fixed)
        if self.num_chosen is not None and self.num_chosen < batch.num_classes:
            order = torch.randperm(batch.num_classes, generator=generator, device=generator.device)
            registered.chosen = order[: self.num_chosen]
        return registered

    def _classes(self, network: nn.Module, batch: Triplet, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        known = [image is batch.atlas and self.atlas_label for image in (moving, fixed)]
        unknown = [image for image, label in zip((moving, fixed), known, strict=True) if not label]
        with torch.no_grad():
            maps = list(network(torch.cat(unknown)).float().softmax(1).split(len(moving)))
        first, second = (one_hot(batch.label, batch.num_classes) if label else maps.pop(0) for label in known)
        return first, second


def similarity(pair: Matched) -> Tensor:
    """L_sim: 1 - LNCC of warped and fixed images, summed over the directions."""
    return pair.compared(losses.lncc_loss)


def similarity_of_means(pair: Matched) -> Tensor:
    """L_sim: as `similarity`, with moments that are means over the window, see `lncc_of_means_loss`."""
    return pair.compared(losses.lncc_of_means_loss)


def mutual_information(pair: Matched) -> Tensor:
    """L_sim: minus the mutual information of warped and fixed images, summed over the directions; at most 0."""
    return pair.compared(lambda warped, fixed: -losses.mutual_information(warped, fixed))


def mean_squares(pair: Matched) -> Tensor:
    """L_sim: mean squared difference of warped and fixed images, summed over the directions."""
    return pair.compared(F.mse_loss)


def smoothness(pair: Matched) -> Tensor:
    """L_smooth: diffusion of the displacement, summed over the directions."""
    return pair.smoothed(losses.diffusion_loss)


def bending_energy(pair: Matched) -> Tensor:
    """L_smooth: bending energy of the displacement, summed over the directions."""
    return pair.smoothed(losses.bending_energy_loss)


def contrast(pair: Registered) -> Tensor:
    """L_contrast: each scan close to the atlas that it is registered with, and away from the other scans."""
    assert pair.embeddings is not None
    of_atlas, of_scan = pair.embeddings
    return losses.contrastive_loss(of_scan, of_atlas)


def contrast_all(pair: Registered) -> Tensor:
    """L_contrast as in the published code: partners among all scans and atlases of the batch (NT-Xent)."""
    assert pair.embeddings is not None
    return losses.nt_xent_loss(*pair.embeddings)


def label_overlap(pair: Registered) -> Tensor:
    """Dice loss of warped and fixed labels over the labelled pairs, which are the last ones."""
    assert pair.classes is not None
    moving, fixed = pair.classes
    return losses.dice_loss(warp_probabilities(moving, pair.displacement[-len(moving) :]), fixed)


def inverse_consistency(pair: Registered) -> Tensor:
    """L_I: residual of the two composed displacements, both ways."""
    return pair.directions * losses.inverse_consistency_loss(pair.displacement, pair.backward)


def self_warped_inverse(pair: Registered) -> Tensor:
    """L_I as printed in BRBS Eq. 2, one way."""
    forward, backward = pair.displacement.chunk(2)
    return losses.self_warped_inverse_loss(forward, backward)


def semantic_consistency(pair: Registered) -> Tensor:
    """L_SeC: Dice between warped class maps and the other image's, summed over the directions (BRBS Eq. 6)."""
    assert pair.classes is not None
    moving, fixed = pair.classes
    if pair.directions == 2:
        moving, fixed = torch.cat([moving, fixed]), torch.cat([fixed, moving])
    if pair.chosen is not None:
        fixed = fixed[:, pair.chosen]
    return pair.directions * losses.dice_loss(warp_probabilities(moving, pair.displacement, pair.chosen), fixed)
