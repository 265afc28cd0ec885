"""Registration of what a segmentation network sees: each structure is an image of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.warps import one_hot


class PerceivingRegistration(nn.Module):
    """Two networks: one perceives the structures of both images, the other finds correspondence within these alone.

    No gradient reaches the first one from here. Where it sees no structure, the second one sees 0.

    Args:
        perception: S, image (N, channels, D, H, W) -> logits (N, C, D, H, W).
        correspondence: R, over (C - 1) channels images.
        hard: a voxel belongs to its likeliest structure; off: to every one by its probability.

    Source: He et al., "PC-Reg-RT", JBHI 2022 (perception-correspondence decoupling).
    """

    def __init__(self, perception: nn.Module, correspondence: RegistrationNetwork, *, hard: bool = True) -> None:
        super().__init__()
        self.perception, self.correspondence = perception, correspondence
        self.hard = hard

    def regions(self, image: Tensor) -> Tensor:
        """(N, channels, D, H, W) -> the image under the mask of each structure, (N, (C - 1) channels, D, H, W)."""
        with torch.no_grad():
            logits = self.perception(image).float()
            masks = one_hot(logits.argmax(1), logits.shape[1]) if self.hard else logits.softmax(1)
            return (masks[:, 1:, None] * image.float()[:, None]).flatten(1, 2)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (N, channels, D, H, W) -> displacement (N, 3, D, H, W), voxels, float32."""
        return self.correspondence(*self.regions(torch.cat([moving, fixed])).chunk(2))
