"""Drawing synthetic labelled scans: an atlas in a shape and a look from the prior.

Source: Tomar et al., "SST", WACV 2022, section 3.6.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from stages.errors import LrlsError
from stages.parts.batches.drawing import pick
from stages.parts.batches.scans import Scans
from stages.parts.networks.appearance import AppearanceModel
from stages.parts.networks.flow_autoencoder import FlowAutoencoder
from stages.parts.networks.style import MomentumContrast, style_prior
from stages.parts.warps import warp


@dataclass
class Drawn:
    """A drawn scan; its label is the atlas's under the same displacement."""

    image: Tensor  # (1, 1, D, H, W) in [0, 1]
    plain: Tensor  # the same shape in the atlas's own look
    displacement: Tensor  # (1, 3, D, H, W), voxels
    space: str  # what the shape was drawn from
    style: str  # what the look was drawn from


@dataclass
class Synthesis:
    """X = G_flow(n_flow) o A(atlas, n_style), n_style = n / |n|, n and n_flow ~ N(0, I) (Eq. 12).

    Args:
        registration: gives the displacements to mix; not needed for the prior.
        autoencoder: its decoder is G_flow.
        appearance: A; None: the atlas keeps its look.
        interpolate: a shape's code mixes the codes of three scans, (c_1 + m_2 c_2 + m_3 c_3) / (1 + m_2 + m_3) with
            m ~ U(0, 0.3), as in the published code.
        memory: looks come from what it remembers of scans instead of the prior.
    """

    registration: nn.Module
    autoencoder: FlowAutoencoder
    appearance: AppearanceModel | None
    interpolate: bool = False
    memory: MomentumContrast | None = None
    _codes: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # of (atlas, scan)

    @property
    def networks(self) -> list[nn.Module]:
        """All networks that it uses."""
        optional = (self.registration, self.autoencoder, self.appearance, self.memory)
        return [network for network in optional if network is not None]

    def check(self) -> None:
        """Raises LrlsError where the memory holds no look."""
        if self.memory is not None and not self.memory.known.any():
            raise LrlsError(
                "the style encoder remembers no scan; raise train_reg.steps, or draw looks from the prior "
                "(methods.<name>.looks=prior)."
            )

    def __call__(self, data: Scans, atlas: int, generator: Generator) -> Drawn:
        """One scan.

        Args:
            data: the cohort.
            atlas: place of the atlas.
            generator: of the CPU, so that all devices draw the same.
        """
        image = data.image([atlas])
        device = image.device
        style = (self.memory.remembered if self.memory else style_prior)(1, generator).to(device)
        if self.interpolate:
            scans = pick(data.unlabeled, 3, generator)
            shares = torch.tensor([1.0, *(0.3 * torch.rand(2, generator=generator)).tolist()])
            codes = [
                share * self._code(data, atlas, scan) for share, scan in zip(shares / shares.sum(), scans, strict=True)
            ]
            code, space = torch.stack(codes).sum(0), "+".join(data.names[scan] for scan in scans)
        else:
            code = torch.randn((1, *self.autoencoder.code_shape), generator=generator).to(device)
            space = "prior"
        displacement = self.autoencoder.outside(self.autoencoder.decode(code))
        plain = warp(image, displacement)
        if self.appearance is None:
            return Drawn(plain, plain, displacement, space, data.names[atlas])
        look = "memory" if self.memory else "prior"
        return Drawn(warp(self.appearance(image, style), displacement), plain, displacement, space, look)

    def _code(self, data: Scans, atlas: int, scan: int) -> Tensor:
        if (atlas, scan) not in self._codes:
            displacement = self.registration(data.image([atlas]), data.image([scan])).float()
            self._codes[atlas, scan] = self.autoencoder.encode(self.autoencoder.inside(displacement))
        return self._codes[atlas, scan]
