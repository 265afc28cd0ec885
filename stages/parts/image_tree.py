"""Atlases, templates between them and scans on one tree: images are registered through it, and segment one another.

Source: Jia, Yap, Shen, "Iterative multi-atlas-based multi-image segmentation with tree-based registration", NeuroImage
2012; order of the steps and numbers as in the authors' published program (IGR3D_MABMIS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.parts.demons import Demons, inverse
from stages.parts.templates import num_templates, template_displacements
from stages.parts.trees import by_depth, centre, distances, grown, spanning_tree
from stages.parts.voting_by_patches import patch_distances, patch_vote
from stages.parts.warps import compose, one_hot, warp, warp_probabilities

LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class TreeRegistration:
    """How images on the tree are registered.

    Args:
        coarse: atlases to the root, for the templates.
        along: a node to the root, beginning with its parent's displacement.
        refine: what was inverted or composed.
    """

    coarse: Demons
    along: Demons
    refine: Demons


class ImageTree(nn.Module):
    """Answers as a segmentation network does, though nothing is learned by gradients: `fill` keeps a group of images.

    Nodes are the atlases, then the templates, then the scans. A new image becomes a leaf at the node that resembles it
    most. It is registered to the root through that node, the way is inverted and refined, and composed with the ways of
    all others to the root, refined again. The images vote by `patch_vote`, the scans with the labels that the group
    gave them. Images, displacements and labels are buffers, so they are stored and exported like weights.

    Args:
        shape: grid (D, H, W).
        channels: of the images.
        num_classes: background included.
        atlases: how many.
        most_scans: room for scans; how many there are, `fill` is told. The sizes of buffers do not depend on it.
        registration: of the nodes.
        iterations: of labelling the scans: first the atlases vote, then all other images. 1: atlases alone.
    """

    images: Tensor
    to_root: Tensor
    labels: Tensor
    parents: Tensor
    filled: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        num_classes: int,
        *,
        atlases: int,
        most_scans: int,
        registration: TreeRegistration,
        iterations: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes, self.atlases, self.most_scans = num_classes, atlases, most_scans
        self.registration, self.iterations = registration, iterations
        self.first_scan = atlases + num_templates(atlases)
        nodes = self.first_scan + most_scans
        self.register_buffer("images", _packed(torch.zeros(nodes, channels, *shape)))
        self.register_buffer("to_root", _packed(torch.zeros(nodes, 3, *shape)))
        self.register_buffer("labels", torch.zeros(nodes, *shape, dtype=torch.int16))  # of templates: unused
        self.register_buffer("parents", torch.zeros(nodes, dtype=torch.int64))
        self.register_buffer("filled", torch.tensor(self.first_scan))  # nodes that there are

    @torch.no_grad()
    def fill(self, images: Tensor, labels: Tensor) -> None:
        """Build the tree, register along it, and label the scans.

        Args:
            images: atlases, then at most `most_scans` scans, (atlases + scans, C, D, H, W) in [0, 1].
            labels: of the atlases, class indices, (atlases, D, H, W).
        """
        self.to(images.device)
        images = images.float()
        atlases, scans = images[: self.atlases], images[self.atlases :]
        root = centre(distances(atlases, atlases))
        templates, known = self._templates(atlases, root)
        nodes = torch.cat([atlases, templates, scans])
        lengths, first = distances(nodes, nodes), range(self.first_scan)
        parents = spanning_tree(lengths[: self.first_scan, : self.first_scan], root)
        parents = grown(lengths, [*parents, *[root] * len(scans)], first)
        to_root = torch.zeros(len(nodes), 3, *images.shape[2:], device=images.device)
        to_root[self.atlases : self.first_scan] = known
        for node in by_depth(parents):
            if not self.atlases <= node < self.first_scan:  # a template's way is known
                moving, start = nodes[node : node + 1], to_root[parents[node]][None]
                to_root[node] = self.registration.along(moving, nodes[root][None], start)[0]
        n = len(nodes)
        self.images[:n], self.to_root[:n], self.parents[:n] = _packed(nodes), _packed(to_root), torch.tensor(parents)
        self.filled.fill_(n)
        self.labels[: self.atlases] = labels.to(torch.int16)
        self._label(scans)

    def _templates(self, atlases: Tensor, root: int) -> tuple[Tensor, Tensor]:
        """Images between the atlases, and their displacements to the root."""
        if len(atlases) < 2:
            return atlases[:0], torch.zeros(0, 3, *atlases.shape[2:], device=atlases.device)
        fixed = atlases[root][None]
        others = [self.registration.coarse(atlas[None], fixed) for k, atlas in enumerate(atlases) if k != root]
        known = template_displacements(torch.cat(others))
        return torch.cat([warp(fixed, inverse(one[None])) for one in known]), known

    def _label(self, scans: Tensor) -> None:
        """Let images vote on each scan, again and again."""
        votes = []
        for node, scan in enumerate(scans, start=self.first_scan):
            voters = [voter for voter in self._voters() if voter != node]
            ways = self._ways(scan[None], _unpacked(self.to_root[node]), voters)
            votes.append((voters, ways.half(), self._apart(scan[None], ways, voters)))
        for iteration in range(self.iterations):
            before = self.labels.clone()
            for node, (voters, ways, apart) in enumerate(votes, start=self.first_scan):
                n = len(voters) if iteration else self.atlases
                self.labels[node] = self._fused(before[voters[:n]], ways[:n], apart[:n]).argmax(0)

    def forward(self, image: Tensor) -> Tensor:
        """Images (N, C, D, H, W) in [0, 1] -> logarithms of class probabilities (N, num_classes, D, H, W), float32."""
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            return torch.stack([self._answer(one[None].float()) for one in image])

    def _answer(self, image: Tensor) -> Tensor:
        nodes = _unpacked(self.images[: self._filled()])
        nearest = int(distances(image, nodes)[0].argmin())
        start = _unpacked(self.to_root[nearest])[None]
        to_root = self.registration.along(image, nodes[self._root()][None], start)[0]
        voters = self._voters() if self.iterations > 1 else list(range(self.atlases))
        ways = self._ways(image, to_root, voters)
        probabilities = self._fused(self.labels[voters], ways, self._apart(image, ways, voters))
        return probabilities.clamp(min=LEAST_PROBABILITY).log()

    def _voters(self) -> list[int]:
        """Atlases, then scans."""
        return [*range(self.atlases), *range(self.first_scan, self._filled())]

    def _filled(self) -> int:
        return max(self.first_scan, min(int(self.filled), len(self.images)))  # whatever a file says

    def _root(self) -> int:
        """The node that is its own parent."""
        return int((self.parents == torch.arange(len(self.parents), device=self.parents.device)).int().argmax())

    def _ways(self, image: Tensor, to_root: Tensor, voters: Sequence[int]) -> Tensor:
        """Displacements of voters to an image (1, C, D, H, W), whose own to the root is given; (voters, 3, D, H, W)."""
        root, refine = self._root(), self.registration.refine
        from_root = refine(_unpacked(self.images[root])[None], image, inverse(to_root[None]))
        ways = []
        for voter in voters:
            start = compose(_unpacked(self.to_root[voter])[None], from_root)
            moving = _unpacked(self.images[voter])[None]
            ways.append(from_root if voter == root else refine(moving, image, start))
        return torch.cat(ways)

    def _apart(self, image: Tensor, ways: Tensor, voters: Sequence[int]) -> Tensor:
        """Patch distances of the voters, (voters, D, H, W)."""
        return patch_distances(warp(_unpacked(self.images[list(voters)]), ways), image)

    def _fused(self, labels: Tensor, ways: Tensor, apart: Tensor) -> Tensor:
        """Class probabilities (C, D, H, W)."""
        warped = [
            warp_probabilities(one_hot(label[None], self.num_classes), way[None].float())
            for label, way in zip(labels, ways, strict=True)
        ]
        return patch_vote(torch.cat(warped), apart)


def _packed(values: Tensor) -> Tensor:
    """Half floats by their bits: files of weights hold floats in full length, and this many would be too long."""
    return values.half().view(torch.int16)


def _unpacked(bits: Tensor) -> Tensor:
    return bits.view(torch.float16).float().nan_to_num()
