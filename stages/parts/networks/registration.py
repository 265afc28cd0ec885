"""A registration network: any network over an image pair, read as a displacement or as a velocity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.parts.warps import halved, integrate, rescale


class RegistrationNetwork(nn.Module):
    """A network over [fixed, moving] as a map of image pairs to displacements.

    Args:
        body: (N, 2 C, D, H, W) -> (N, 3, D, H, W), for images of C channels.
        diffeomorphic: the body's output is a stationary velocity field, integrated at half resolution in 7 steps.
        antisymmetric: the output is half the difference of the body's outputs for the pair and for the swapped pair, so
            that it changes sign when the roles are swapped. The body then cannot learn shifts that are the same for
            every pair. With `diffeomorphic` the two directions are inverses of each other.
    """

    def __init__(self, body: nn.Module, *, diffeomorphic: bool = False, antisymmetric: bool = False) -> None:
        super().__init__()
        self.body = body
        self.diffeomorphic = diffeomorphic
        self.antisymmetric = antisymmetric

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (N, C, D, H, W) -> displacement (N, 3, D, H, W), voxels, float32."""
        if self.antisymmetric:
            return self._displacement(self._half_difference(moving, fixed))
        return self._displacement(self.body(torch.cat([fixed, moving], 1)))

    def with_embeddings(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The displacement, and the embeddings (N, K) of the moving and of the fixed image; of a Siamese body."""
        raw, of_fixed, of_moving = self.body.with_embeddings(torch.cat([fixed, moving], 1))  # type: ignore[operator]
        return self._displacement(raw), of_moving, of_fixed

    def both_ways(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacements of both directions, (2N, 3, D, H, W), voxels: moving to fixed, then fixed to moving."""
        if self.antisymmetric:
            raw = self._half_difference(moving, fixed)
            return self._displacement(torch.cat([raw, -raw]))
        return self(torch.cat([moving, fixed]), torch.cat([fixed, moving]))

    def _half_difference(self, moving: Tensor, fixed: Tensor) -> Tensor:
        pairs = torch.cat([torch.cat([fixed, moving], 1), torch.cat([moving, fixed], 1)])
        forward, backward = self.body(pairs).chunk(2)
        return (forward - backward) / 2

    def _displacement(self, raw: Tensor) -> Tensor:
        if not self.diffeomorphic:
            return raw
        with torch.autocast(raw.device.type, enabled=False):
            shape = tuple(raw.shape[2:])
            return rescale(integrate(rescale(raw, halved(shape))), shape)
