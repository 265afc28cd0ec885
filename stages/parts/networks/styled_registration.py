"""Registration of a moving image in the look of the fixed one.

Source: Tomar et al., "SST", WACV 2022, section 3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from stages.parts.networks.appearance import AppearanceModel
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.style import MomentumContrast


class StyledRegistration(nn.Module):
    """Registers a moving image in the look of the fixed one: F(A(moving, E(fixed)), fixed).

    Args:
        flow: F.
        appearance: A.
        style: E, the encoder with its momentum copy and queue.
        code_of: which codes A sees: the encoder's, or its slow copy's, through which no gradient goes.
        transformer: T, a registration network of its own that makes positive keys; None: F makes them.
    """

    def __init__(
        self,
        flow: RegistrationNetwork,
        appearance: AppearanceModel,
        style: MomentumContrast,
        *,
        code_of: Literal["query", "key"] = "query",
        transformer: RegistrationNetwork | None = None,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.flow, self.appearance, self.style, self.code_of = flow, appearance, style, code_of

    def code(self, image: Tensor) -> Tensor:
        """Style codes, (N, CODE)."""
        if self.code_of == "query":
            return self.style.encoder(image)
        with torch.no_grad():
            return self.style.key_encoder(image)

    def restyled(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The moving image in the look of the fixed one, (N, 1, D, H, W) in [0, 1]."""
        return self.appearance(moving, self.code(fixed))

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (N, 1, D, H, W) -> displacement (N, 3, D, H, W), voxels, float32."""
        return self.flow(self.restyled(moving, fixed), fixed)
