"""Trees over images that are alike: who is registered through whom. Nodes are numbers, a tree is each node's parent.

The root is its own parent.

Source: Jia, Yap, Shen, NeuroImage 2012; the authors' published program (IGR3D_MABMIS).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def distances(images: Tensor, others: Tensor) -> Tensor:
    """Root mean squared differences of images, (N, C, D, H, W) and (M, C, D, H, W) -> (N, M)."""
    rows = [(one.float() - others.float()).square().flatten(1).mean(1).sqrt() for one in images]
    return torch.stack(rows) if rows else images.new_zeros(0, len(others))


def spanning_tree(lengths: Tensor, root: int) -> list[int]:
    """The tree of the least total length (Prim), by its parents.

    Args:
        lengths: of the edges, (N, N), symmetric.
    """
    parents = [root] * len(lengths)
    return grown(lengths, parents, [root])


def grown(lengths: Tensor, parents: Sequence[int], inside: Sequence[int]) -> list[int]:
    """A tree to which all other nodes are attached: always the one that is nearest to any node of the tree, to that.

    Args:
        lengths: (N, N).
        parents: of the nodes; only those of the tree count.
        inside: nodes of the tree.
    """
    tree, parents = list(inside), list(parents)
    outside = [node for node in range(len(lengths)) if node not in tree]
    while outside:
        among = lengths[outside][:, tree]
        node, parent = divmod(int(among.argmin()), len(tree))
        parents[outside[node]] = tree[parent]
        tree.append(outside.pop(node))
    return parents


def centre(lengths: Tensor) -> int:
    """The node from which the paths along the tree of the least total length are the shortest, all together."""
    parents = spanning_tree(lengths, 0)
    paths = torch.full_like(lengths, torch.inf)
    for node, parent in enumerate(parents):
        paths[node, node] = 0.0
        if node != parent:
            paths[node, parent] = paths[parent, node] = lengths[node, parent]
    for via in range(len(paths)):
        paths = torch.minimum(paths, paths[:, via, None] + paths[None, via])
    return int(paths.sum(1).argmin())


def by_depth(parents: Sequence[int]) -> list[int]:
    """All nodes but the root, parents before their children."""

    def depth(node: int) -> int:
        return 0 if parents[node] == node else 1 + depth(parents[node])

    return sorted((node for node, parent in enumerate(parents) if node != parent), key=depth)
