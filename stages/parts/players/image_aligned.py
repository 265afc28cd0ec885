"""Players of image-aligned style transformation: R compares features, S sees styled warps and, a little, the scans."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from stages.parts import losses
from stages.parts.batches.pairs import LabelledPair
from stages.parts.batches.styled import StyledWarps
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.siamese import PooledSiameseUNet
from stages.parts.networks.sizes import pad_to_multiple, space_to_depth
from stages.parts.players.registering import Registered, register
from stages.parts.players.segmenting import Segmented
from stages.parts.warps import one_hot, warp


@dataclass
class Compared(Registered):
    """Registered pairs, with R's first features of the warped and of the fixed image."""

    features: tuple[Tensor, Tensor] | None = None  # (N, K, D', H', W')


@dataclass
class RegisterAndCompare:
    """Forward pass of R: atlas to scan, and what its first level says of both once they are aligned.

    Args:
        network: R, whose body is a `PooledSiameseUNet`.
        segmentation: S, which says what is where in the scan; it stands still. None: nobody asks.
    """

    network: RegistrationNetwork
    segmentation: nn.Module | None = None

    def __call__(self, batch: LabelledPair) -> Compared:
        pair = register(self.network, batch.moving, batch.fixed, both_ways=False)
        classes = None
        if self.segmentation is not None:
            with torch.no_grad():
                said = self.segmentation.eval()(batch.fixed).float().softmax(1)
            classes = (one_hot(batch.label, batch.num_classes), said)
        warped = warp(batch.moving, pair.displacement)
        features = first_features(self.network, torch.cat([warped, batch.fixed])).chunk(2)
        return Compared(pair.moving, pair.fixed, pair.displacement, 1, classes=classes, features=features)  # type: ignore[arg-type]


def first_features(network: RegistrationNetwork, images: Tensor) -> Tensor:
    """What the first level of R's encoder says of images, (N, 1, D, H, W) -> (N, K, D', H', W').

    Its weights stand still here: they could agree by saying nothing.
    """
    body = network.body
    assert isinstance(body, PooledSiameseUNet)
    level = body.encoder[0]
    x = space_to_depth(pad_to_multiple(images, 2)) if body.light else images
    return functional_call(level, {name: weight.detach() for name, weight in level.named_parameters()}, (x,))


def content(pair: Compared) -> Tensor:
    """Feature-aware content consistency: 1 - cosine of the features of warped and fixed image, mean over voxels.

    0: the features point the same way everywhere; at most 2.
    """
    assert pair.features is not None
    warped, fixed = (features.float() for features in pair.features)
    return 1 - F.cosine_similarity(warped, fixed, dim=1).mean()


@dataclass
class SegmentStyled:
    """Forward pass of S: styled warps, and the scans where they have pseudo-labels, in one pass."""

    network: nn.Module

    def __call__(self, batch: StyledWarps) -> StyledSegmented:
        if batch.pseudo is None:
            return StyledSegmented(batch.target, self.network(batch.image))
        styled, scan = self.network(torch.cat([batch.image, batch.scan])).chunk(2)
        return StyledSegmented(batch.target, styled, of_scan=scan, pseudo=batch.pseudo)


@dataclass
class StyledSegmented(Segmented):
    """Logits of styled warps and of scans."""

    of_scan: Tensor | None = None  # (N, C, D, H, W)
    pseudo: Tensor | None = None  # (N, C, D, H, W), sums to 1


def pseudo_overlap_and_cross_entropy(result: StyledSegmented) -> Tensor:
    """Dice and cross-entropy of what S says of the scans, and what it said in the round before."""
    assert result.of_scan is not None and result.pseudo is not None
    return losses.dice_cross_entropy_loss(result.of_scan, result.pseudo)
