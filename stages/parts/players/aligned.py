"""Registration, segmentation and a judge of their alignment, which train one another (DeepRS).

    R   maps atlas x_m and scan x_f to a displacement phi
    S   segments
    D   says at each voxel how well an image is aligned with the scan, in [0, 1]

The displacement's degree alpha is random, so that the atlas stops somewhere on its way to the scan: x_w = x_m o alpha
phi, and its label y_w = y_m o alpha phi.

Source: He et al., "DeepRS", ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.batches.pairs import LabelledPair
from stages.parts.batches.space_style import Degree
from stages.parts.networks.discriminators import AlignmentDiscriminator
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.players.judging import Judged
from stages.parts.players.segmenting import merged
from stages.parts.warps import warp, warp_one_hot


@dataclass
class Aligned:
    """Atlases on their way to scans, and what the other networks say of them; what is not asked for is None."""

    warped: Tensor  # x_w, (N, channels, D, H, W)
    fixed: Tensor  # x_f
    displacement: Tensor  # phi, (N, 3, D, H, W), voxels
    judged: Tensor | None = None  # D's verdict on (x_w, x_f), logits, (N, 1, D, H, W)
    answers: tuple[Tensor, Tensor] | None = None  # S's probabilities for x_w and x_f, (N, C, D, H, W)

    def compared(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return loss(self.warped, self.fixed)

    def smoothed(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        return loss(self.displacement)


def _moved(network: RegistrationNetwork, batch: LabelledPair, degree: Degree) -> tuple[Tensor, Tensor]:
    """phi, and alpha phi."""
    assert batch.draw is not None
    displacement = network(batch.moving, batch.fixed)
    return displacement, degree(len(displacement), batch.draw.generator) * displacement


@dataclass
class RegisterAndAsk:
    """Forward pass of R, which also learns from what S and D say of the warped atlas; both stand still.

    Args:
        network: R.
        segmentation: S; None: it is not asked.
        discriminator: D; None: it is not asked.
        degree: alpha.
    """

    network: RegistrationNetwork
    segmentation: nn.Module | None
    discriminator: AlignmentDiscriminator | None
    degree: Degree

    def __call__(self, batch: LabelledPair) -> Aligned:
        displacement, moved = _moved(self.network, batch, self.degree)
        result = Aligned(warp(batch.moving, moved), batch.fixed, displacement)
        if self.discriminator is not None:
            result.judged = self.discriminator(torch.cat([result.warped, batch.fixed], 1))
        if self.segmentation is not None:
            with torch.no_grad():
                of_fixed = self.segmentation(batch.fixed).float().softmax(1)
            result.answers = self.segmentation(result.warped).float().softmax(1), of_fixed
        return result


def convincing(result: Aligned) -> Tensor:
    """L_adv: -log D(x_w, x_f); 0 where D takes the warped atlas for aligned."""
    assert result.judged is not None
    return losses.cross_entropy_gan_loss(result.judged, 1.0)


def region_constraint(result: Aligned) -> Tensor:
    """L_drc: mean squared difference of S's probabilities for the warped atlas and for the scan."""
    assert result.answers is not None
    return F.mse_loss(*result.answers)


@dataclass
class Supervised:
    """S's answers for warped atlases and for scans."""

    target: Tensor  # y_w, (N, C, D, H, W), sums to 1
    of_warped: Tensor  # logits, (N, C, D, H, W)
    of_fixed: Tensor | None = None  # likewise; None: scans are not looked at
    trust: Tensor | None = None  # D's confidence that y_w fits the scan, (N, 1, D, H, W), in [0, 1]


@dataclass
class SegmentAligned:
    """Forward pass of S: warped atlases, and scans by the warped atlases' labels; R and D stand still.

    R and D see the images as they are, S sees them recoloured.

    Args:
        network: S.
        registration: R.
        discriminator: D; None: every voxel is trusted.
        degree: alpha.
        scans: S also sees the scans.
    """

    network: nn.Module
    registration: RegistrationNetwork
    discriminator: AlignmentDiscriminator | None
    degree: Degree
    scans: bool = True

    def __call__(self, batch: LabelledPair) -> Supervised:
        assert batch.draw is not None
        with torch.no_grad():
            _, moved = _moved(self.registration, batch, self.degree)
            warped = warp(batch.moving, moved)
            target = warp_one_hot(batch.label, moved, batch.num_classes)
            trust = torch.ones_like(target[:, :1])
            if self.scans and self.discriminator is not None:
                trust = self.discriminator(torch.cat([warped, batch.fixed], 1)).sigmoid()
        if not self.scans:
            return Supervised(target, merged(self.network(batch.draw.recolour(warped)), batch.missing))
        answers = self.network(batch.draw.recolour(torch.cat([warped, batch.fixed]))).chunk(2)
        of_warped, of_fixed = (merged(logits, batch.missing) for logits in answers)
        return Supervised(target, of_warped, of_fixed, trust)


def warped_cross_entropy(result: Supervised) -> Tensor:
    """L_ce: cross-entropy of S's answer for the warped atlas and the warped label."""
    return losses.cross_entropy_loss(result.of_warped, result.target)


def warped_overlap_and_cross_entropy(result: Supervised) -> Tensor:
    """L_ce with Dice, as nnU-Net trains."""
    return losses.dice_cross_entropy_loss(result.of_warped, result.target)


def trusted_cross_entropy(result: Supervised) -> Tensor:
    """L_acm: cross-entropy of S's answer for the scan and the warped label, as far as that one is trusted."""
    assert result.of_fixed is not None and result.trust is not None
    return losses.trusted_cross_entropy_loss(result.of_fixed, result.target, result.trust)


@dataclass
class JudgeAlignment:
    """Forward pass of D: the scan with a little of the atlas in it, which is aligned, and the warped atlas.

    R stands still.

    Args:
        registration: R.
        discriminator: D.
        degree: alpha.
        share: beta, of the atlas in the aligned image x_r = beta x_m + (1 - beta) x_f.
    """

    registration: RegistrationNetwork
    discriminator: AlignmentDiscriminator
    degree: Degree
    share: float

    def __call__(self, batch: LabelledPair) -> Judged:
        with torch.no_grad():
            warped = warp(batch.moving, _moved(self.registration, batch, self.degree)[1])
        reference = self.share * batch.moving + (1 - self.share) * batch.fixed
        pairs = torch.cat([torch.cat([image, batch.fixed], 1) for image in (reference, warped)])
        return Judged(*self.discriminator(pairs).chunk(2))


def aligned(judged: Judged) -> Tensor:
    """D's share of L_D on aligned pairs: -log D(x_r, x_f)."""
    return losses.cross_entropy_gan_loss(judged.real, 1.0)


def misaligned(judged: Judged) -> Tensor:
    """D's share of L_D on warped atlases: -log(1 - D(x_w, x_f))."""
    return losses.cross_entropy_gan_loss(judged.fake, 0.0)
