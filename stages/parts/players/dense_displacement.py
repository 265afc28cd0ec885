"""Training of PDD-Net: losses of what all displacements together bring to a control point.

Source: Heinrich, MICCAI 2019, and its published code; the self-similarities in the place of labels as in the code of
its successor, PDD 2.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts import losses
from stages.parts.batches.partly_labelled import PartlyLabelledPair
from stages.parts.discrete import mind_ssc
from stages.parts.networks.dense_displacement import DenseDisplacements, interpolated
from stages.parts.together import summed
from stages.parts.warps import one_hot, resize, warp

BACKGROUND_WEIGHT = 0.15  # of the non-local label loss


@dataclass
class DenselyRegistered:
    """Pairs, and the probabilities of the displacements at each control point."""

    network: DenseDisplacements
    batch: PartlyLabelledPair
    probabilities: Tensor  # (N, d, h, w, K)
    displacement: Tensor  # their mean, (N, 3, d, h, w), voxels

    def compared(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A loss of the image warped by the mean displacement, and the fixed one."""
        displacement = resize(self.displacement, tuple(self.batch.fixed.shape[2:]))
        return loss(warp(self.batch.moving, displacement), self.batch.fixed)

    def smoothed(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """A loss of the control points' mean displacements, in units of half of the grid."""
        halves = [(n - 1) / 2 for n in self.batch.fixed.shape[2:]]
        return loss(self.displacement / torch.tensor(halves, device=self.displacement.device).view(1, 3, 1, 1, 1))

    def at_points(self, image: Tensor) -> Tensor:
        """Values of an image (N, C, D, H, W) at the control points, (N, C, d, h, w)."""
        return interpolated(image, self.network.points(image.shape[2:], image))


@dataclass
class RegisterDensely:
    """Forward pass of PDD-Net's player."""

    network: DenseDisplacements

    def __call__(self, batch: PartlyLabelledPair) -> DenselyRegistered:
        probabilities = self.network.probabilities(batch.moving, batch.fixed)
        displacement = self.network.mean(probabilities, batch.fixed.shape[2:])
        return DenselyRegistered(self.network, batch, probabilities, displacement)


def non_local_similarity(pair: DenselyRegistered) -> Tensor:
    """L_sim: mean square between the self-similarities (MIND-SSC) of the fixed image at the control points, and those
    of the moving image that all displacements bring there on average."""
    with torch.no_grad():
        of_moving, of_fixed = mind_ssc(pair.batch.moving.float()), mind_ssc(pair.batch.fixed.float())
    return F.mse_loss(pair.network.expected(pair.probabilities, of_moving), pair.at_points(of_fixed))


def non_local_labels(pair: DenselyRegistered) -> Tensor:
    """L_label: the same of one-hot labels, over the pairs in which both are known, 0 if none is.

    Classes weigh inversely to the square root of their frequency in these pairs, with mean 1, the background 0.15.
    """
    batch = pair.batch
    rows = (batch.moving_counts & batch.fixed_counts).all(1).nonzero()[:, 0]
    moving, fixed = (one_hot(label[rows], batch.num_classes) for label in (batch.moving_label, batch.fixed_label))
    voxels = summed(fixed.sum((0, 2, 3, 4)))  # before any process returns: the others wait for it here
    if not len(rows):
        return 0 * pair.displacement.sum()
    weights = losses.class_weights(voxels)
    weights[0] = BACKGROUND_WEIGHT
    apart = pair.network.expected(pair.probabilities[rows], moving) - pair.at_points(fixed)
    loss = (apart.square() * weights.view(1, -1, 1, 1, 1)).mean()
    return loss * len(rows) / len(batch.moving)
