"""Training of the style encoder, the appearance model and registration in another scan's style.

Source: Tomar et al., "SST", WACV 2022, section 3; equations are numbered as there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.parts import losses
from stages.parts.batches.pairs import TwoScans
from stages.parts.networks.discriminators import LatentDiscriminator
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.style import Contrasted, MomentumContrast
from stages.parts.networks.styled_registration import StyledRegistration
from stages.parts.players.judging import Own
from stages.parts.players.registering import Registered
from stages.parts.warps import warp


@dataclass
class Encoded:
    """Codes of scans, and the discriminator's verdicts on them."""

    contrasted: Contrasted
    judged: Tensor | None = None  # (N, 1)


@dataclass
class ContrastStyles:
    """Forward pass of style pre-training: scans and the same scans warped to others, by a fixed registration.

    Args:
        style: learns.
        transformer: T, the pre-trained registration.
        discriminator: D_style; None: no discriminator.
    """

    style: MomentumContrast
    transformer: RegistrationNetwork
    discriminator: LatentDiscriminator | None

    def __call__(self, batch: TwoScans) -> Encoded:
        with torch.no_grad():
            moved = warp(batch.moving, self.transformer(batch.moving, batch.fixed))
        contrasted = self.style(
            batch.moving, moved, batch.owner
        )  # remembers no looks: A will see the codes of a later encoder
        return Encoded(contrasted, self.discriminator(contrasted.query) if self.discriminator else None)


@dataclass(kw_only=True)
class Transferred(Registered):
    """A scan in another one's style (`moving`), registered to it (`fixed`), and on its way back to its own style."""

    source: Tensor  # s, (N, 1, D, H, W)
    rebuilt: Tensor  # A(A(s, E(t)), E(s))
    own: Tensor  # the scan whose code is the query: s, or t
    same: Tensor  # A(own, E(own))
    encoded: Encoded


@dataclass
class Transfer:
    """Forward pass of the joint phase.

    The positive keys are the scans warped to the shapes of the others of their pairs: by T, or by this step's
    displacements.

    Args:
        registration: all networks.
        discriminator: D_style; None: no discriminator.
        registers: the gradient of the registration reaches all networks; off: F registers scans in their own style,
            for the keys alone, and gets no gradient.
        own: which scan of a pair is the query and is redrawn in its own style (L_id).
    """

    registration: StyledRegistration
    discriminator: LatentDiscriminator | None
    registers: bool = True
    own: Own = "moving"

    def __call__(self, batch: TwoScans) -> Transferred:
        R, source, target = self.registration, batch.moving, batch.fixed
        of_source, of_target = R.code(source), R.code(target)
        styled = R.appearance(source, of_target)
        with torch.set_grad_enabled(self.registers and torch.is_grad_enabled()):
            displacement = R.flow(styled if self.registers else source, target)
        if self.own == "moving":
            own, other, of_own, owner, plain = source, target, of_source, batch.owner, batch.plain
        else:
            own, other, of_own, owner, plain = target, source, of_target, batch.fixed_owner, batch.fixed_plain
        with torch.no_grad():
            if R.transformer is not None:
                way = R.transformer(own, other)
            else:
                way = displacement if own is source else R.flow(own, other)
            moved = warp(own, way)
        contrasted = R.style(own, moved, owner, plain)
        rebuilt, same = R.appearance(torch.cat([styled, own]), torch.cat([of_source, of_own])).chunk(2)
        judged = self.discriminator(contrasted.query) if self.discriminator else None
        return Transferred(
            styled, target, displacement, 1, source=source, rebuilt=rebuilt, own=own, same=same,
            encoded=Encoded(contrasted, judged),
        )  # fmt: skip


@dataclass
class RegisterStyled:
    """Forward pass of F alone: scans in the style of others, which get no gradient, registered to them."""

    registration: StyledRegistration

    def __call__(self, batch: TwoScans) -> Registered:
        with torch.no_grad():
            styled = self.registration.restyled(batch.moving, batch.fixed)
        return Registered(styled, batch.fixed, self.registration.flow(styled, batch.fixed), 1)


@dataclass
class Contrast:
    """L_vol.cl (Eq. 1)."""

    temperature: float

    def __call__(self, state: Encoded | Transferred) -> Tensor:
        codes = _encoded(state).contrasted
        return losses.info_nce_loss(codes.query, codes.key, codes.negatives, codes.own, temperature=self.temperature)


def adversarial(state: Encoded | Transferred) -> Tensor:
    """The encoder's share of L_adv: 0 where the discriminator takes its codes for the prior's."""
    judged = _encoded(state).judged
    assert judged is not None
    return losses.least_squares_gan_loss(judged, 1.0)


def _encoded(state: Encoded | Transferred) -> Encoded:
    return state.encoded if isinstance(state, Transferred) else state


def style_cycle(state: Transferred) -> Tensor:
    """L_cycle: the scan that went to another style and back is the scan (Eq. 3)."""
    return losses.structural_loss(state.source, state.rebuilt)


def style_identity(state: Transferred) -> Tensor:
    """L_id: in its own style the scan is itself (Eq. 5)."""
    return losses.structural_loss(state.own, state.same)


def reconstruction(pair: Registered) -> Tensor:
    """L_recon: the warped moving image is the fixed one (Eq. 8)."""
    return losses.structural_loss(pair.fixed, warp(pair.moving, pair.displacement))


def gradient(pair: Registered) -> Tensor:
    """L_reg: mean absolute difference of neighbouring displacements (Eq. 9)."""
    return losses.absolute_gradient_loss(pair.displacement)
