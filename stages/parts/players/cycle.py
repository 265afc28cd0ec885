"""Training of a forward-backward cycle: the atlas warped to a scan and back, and its loss terms.

    forward    u_F = G_F(x, y), on the scan's grid:   warped   x o u_F, the atlas in the scan's shape
    backward   u_B = G_B(warped, x), on the atlas's:  rebuilt  x o (u_F o u_B), the atlas again

The rebuilt atlas of Eq. 5 is warped o u_B (`twice`), which is the same for continuous images. But sampling twice blurs
twice, and true inverses can then cost more than fields of 0: see "LT-Net's losses" in docs/benchmarks/LOG.md.

Source: Wang et al., "LT-Net", CVPR 2020; equations are numbered as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from stages.parts import losses
from stages.parts.batches.pairs import LabelledPair
from stages.parts.networks.discriminators import PatchDiscriminator
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.warps import compose, one_hot, warp, warp_one_hot, warp_probabilities


@dataclass
class Cycle:
    """Atlases on their way to a scan and back; parts that are not asked for are None."""

    atlas: Tensor  # x, (N, 1, D, H, W)
    scan: Tensor  # y
    forward: Tensor  # u_F, (N, 3, D, H, W), voxels
    warped: Tensor  # x o u_F
    backward: Tensor | None = None  # u_B
    rebuilt: Tensor | None = None  # x o (u_F o u_B)
    label: Tensor | None = None  # x_s, one-hot, (N, C, D, H, W)
    warped_label: Tensor | None = None  # x_s o u_F
    rebuilt_label: Tensor | None = None  # x_s o (u_F o u_B)
    judged: Tensor | None = None  # the discriminator's verdict on the warped atlas, (N, 1, d, h, w)

    def compared(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A loss of (warped atlas, scan): L_sim looks at the way there alone."""
        return loss(self.warped, self.scan)

    def smoothed(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """A loss of displacements, summed over the directions (Eq. 6)."""
        return loss(self.forward) if self.backward is None else loss(self.forward) + loss(self.backward)


@dataclass
class RegisterCycle:
    """Forward pass of the generators.

    Args:
        there: G_F.
        back: G_B; its gradient reaches G_F through the warped atlas. None: one way only.
        discriminator: D; None: no discriminator.
        labels: carry the atlas's soft label along.
        twice: rebuild image and label by sampling the warped ones, instead of the atlas's.
    """

    there: RegistrationNetwork
    back: RegistrationNetwork | None = None
    discriminator: PatchDiscriminator | None = None
    labels: bool = False
    twice: bool = False

    def __call__(self, batch: LabelledPair) -> Cycle:
        forward = self.there(batch.moving, batch.fixed)
        cycle = Cycle(batch.moving, batch.fixed, forward, warp(batch.moving, forward))
        if self.discriminator is not None:
            cycle.judged = self.discriminator(cycle.warped)
        if self.labels:
            cycle.label = one_hot(batch.label, batch.num_classes)
            cycle.warped_label = warp_one_hot(batch.label, forward, batch.num_classes)
        if self.back is None:
            return cycle
        cycle.backward = self.back(cycle.warped, cycle.atlas)
        if self.twice:
            cycle.rebuilt = warp(cycle.warped, cycle.backward)
            if cycle.warped_label is not None:
                cycle.rebuilt_label = warp_probabilities(cycle.warped_label, cycle.backward)
            return cycle
        there_and_back = compose(forward, cycle.backward)
        cycle.rebuilt = warp(batch.moving, there_and_back)
        if self.labels:
            cycle.rebuilt_label = warp_one_hot(batch.label, there_and_back, batch.num_classes)
        return cycle


def adversarial(cycle: Cycle) -> Tensor:
    """The generator's share of L_GAN: 0 where the discriminator takes the warped atlas for a scan."""
    assert cycle.judged is not None
    return losses.least_squares_gan_loss(cycle.judged, 1.0)


def image_cycle(cycle: Cycle) -> Tensor:
    """L_cyc: mean |x - rebuilt x| (Eq. 7)."""
    assert cycle.rebuilt is not None
    return (cycle.rebuilt - cycle.atlas).abs().mean()


def anatomy_cycle(cycle: Cycle) -> Tensor:
    """L_anatomy_cyc: Dice between the atlas's label and the rebuilt one, mean over structures (Eq. 9)."""
    assert cycle.label is not None and cycle.rebuilt_label is not None
    return losses.dice_loss(cycle.rebuilt_label[:, 1:], cycle.label[:, 1:])


def transformation_cycle(cycle: Cycle) -> Tensor:
    """L_trans: robust penalty of the composed displacements' residual (Eq. 8), in coordinates from -1 to 1."""
    assert cycle.backward is not None
    return losses.robust_inverse_loss(cycle.forward, cycle.backward, of_grid=True)


def transformation_cycle_in_voxels(cycle: Cycle) -> Tensor:
    """L_trans with the residual in voxels."""
    assert cycle.backward is not None
    return losses.robust_inverse_loss(cycle.forward, cycle.backward)


def difference_cycle(cycle: Cycle) -> Tensor:
    """L_diff_cyc: on the way back the label changes by as much as on the way there (Eq. 10)."""
    assert cycle.label is not None and cycle.warped_label is not None and cycle.rebuilt_label is not None
    return losses.anatomy_difference_loss(cycle.label, cycle.warped_label, cycle.rebuilt_label)
