"""Images scaled to mean 0 and standard deviation 1, and a wrapper that scales what a network sees."""

from __future__ import annotations

from torch import Tensor, nn


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
