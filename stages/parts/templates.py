"""Intermediate templates: shapes between those of a few atlases, each with its known way to the root atlas.

Source: Jia, Yap, Shen, NeuroImage 2012; numbers of the authors' published program (IGR3D_MABMIS).
"""

from __future__ import annotations

import torch
from torch import Tensor

PLACES = (-0.8416, -0.2533, 0.2533, 0.8416)  # standard deviations: they divide a Gaussian into fifths
MOST_COMPONENTS = 4


def num_templates(atlases: int) -> int:
    """Twice as many as atlases, as far as places along the components differ; none of one atlas."""
    if atlases < 2:
        return 0
    return min(2 * atlases, len(PLACES) ** min(MOST_COMPONENTS, atlases - 2))


def template_displacements(to_root: Tensor) -> Tensor:
    """Displacements of templates to the root: the atlases' mean, with multiples of their principal components.

        u = mean + sum_j c_j s_j e_j,  c_j in `PLACES`, counted up with the first component the fastest

    Args:
        to_root: of all atlases but the root, (A - 1, 3, D, H, W), voxels.

    Returns:
        (`num_templates(A)`, 3, D, H, W). Two atlases have one template, in the shape of the other atlas.
    """
    atlases = len(to_root) + 1
    count, components = num_templates(atlases), min(MOST_COMPONENTS, atlases - 2)
    mean = to_root.mean(0, keepdim=True)
    if components < 1:
        return mean.expand(count, -1, -1, -1, -1).clone()
    deviations = (to_root - mean).flatten(1)
    # The components from the small matrix of products, as many as there are atlases: e_j s_j = D' w_j / sqrt(n).
    _, weights = torch.linalg.eigh(deviations @ deviations.T)
    weights = weights.flip(1)[:, :components]
    weights = weights * torch.where(weights.gather(0, weights.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    scaled = (deviations.T @ weights / len(to_root) ** 0.5).T.view(components, *to_root.shape[1:])
    drawn = [[PLACES[number // len(PLACES) ** j % len(PLACES)] for j in range(components)] for number in range(count)]
    return mean + torch.einsum("kj,jcdhw->kcdhw", to_root.new_tensor(drawn), scaled)
