"""Semi-supervised segmentation: a student and its mean teacher, two networks label for each other, two decoders."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Generator, Tensor, nn

from stages.parts import losses
from stages.parts.batches.half_labelled import HalfLabelled
from stages.parts.networks.dropout import channels_dropped
from stages.parts.networks.mean_teacher import MeanTeacher
from stages.parts.networks.reconstruction import ReconstructionDecoder
from stages.parts.networks.unet import FeatureNetwork
from stages.parts.players.segmenting import Segmented, merged
from stages.parts.together import randn

NOISE_AT_MOST = 2.0  # standard deviations of the noise


@dataclass
class TaughtUnsurely(Segmented):
    """The student's answers for labelled and unlabelled scans, and what the teacher says of the latter."""

    student: Tensor = field(kw_only=True)  # logits of the unlabelled scans, (M, C, D, H, W)
    teacher: Tensor | None = field(kw_only=True)  # probabilities of the same, (M, C, D, H, W)
    entropy: Tensor | None = field(kw_only=True)  # of the teacher's mean answer, in nats, (M, D, H, W)


@dataclass
class TeachWhereSure:
    """Forward pass of a student whose teacher answers several times, each time with other noise and dropout.

    Args:
        networks: student and teacher.
        passes: answers of the teacher that its uncertainty is taken from; 0: the loss needs no teacher.
        noise: standard deviation of the noise on the teacher's images, in standard deviations of the image.
        dropout: rate of `channels_dropped` in both.
    """

    networks: MeanTeacher
    passes: int
    noise: float
    dropout: float

    def __call__(self, batch: HalfLabelled) -> TaughtUnsurely:
        generator = batch.draw.generator
        self.networks.follow()
        teacher = uncertainty = None
        if self.passes:
            with torch.no_grad(), channels_dropped(self.networks.teacher, self.dropout, generator):
                teacher = self._teacher(batch.unlabeled, generator)
                mean = sum(self._teacher(batch.unlabeled, generator) for _ in range(self.passes)) / self.passes
                uncertainty = losses.entropy(cast(Tensor, mean))
        with channels_dropped(self.networks.student, self.dropout, generator):
            logits = self.networks.student(torch.cat([batch.image, batch.unlabeled]))
        known, unknown = logits.split([len(batch.image), len(batch.unlabeled)])
        return TaughtUnsurely(
            batch.target, merged(known, batch.missing), student=unknown, teacher=teacher, entropy=uncertainty
        )

    def _teacher(self, image: Tensor, generator: Generator) -> Tensor:
        return self.networks.teacher(noisy(image, self.noise, generator)).float().softmax(1)


def noisy(image: Tensor, noise: float, generator: Generator) -> Tensor:
    """An image with normal noise, cut off at twice its standard deviation.

    Args:
        image: (N, C, D, H, W).
        noise: standard deviation, in those of each image and channel.
    """
    drawn = randn(image.shape, generator).clamp(-NOISE_AT_MOST, NOISE_AT_MOST)
    return image + noise * image.float().std((2, 3, 4), keepdim=True) * drawn


def certain_consistency(result: TaughtUnsurely, threshold: float) -> Tensor:
    """L_c: student and teacher agree where the teacher's entropy is under a share of the largest one, ln C."""
    assert result.teacher is not None and result.entropy is not None
    certain = result.entropy < threshold * math.log(result.student.shape[1])
    return losses.certain_consistency_loss(result.student, result.teacher, certain)


@dataclass
class Crossed:
    """The answers of two networks."""

    labelled: tuple[Segmented, Segmented]
    logits: tuple[Tensor, Tensor]  # of labelled and unlabelled scans, (N + M, C, D, H, W)


@dataclass
class SegmentTwice:
    """Forward pass of two networks that see the same images."""

    first: nn.Module
    second: nn.Module

    def __call__(self, batch: HalfLabelled) -> Crossed:
        images = torch.cat([batch.image, batch.unlabeled])
        first, second = self.first(images), self.second(images)
        known = [Segmented(batch.target, merged(each[: len(batch.image)], batch.missing)) for each in (first, second)]
        return Crossed((known[0], known[1]), (first, second))


def of_both(term: Callable[[Segmented], Tensor]) -> Callable[[Crossed], Tensor]:
    """L_s: a term of labelled scans, summed over the two networks."""

    def summed(result: Crossed) -> Tensor:
        return term(result.labelled[0]) + term(result.labelled[1])

    return summed


def cross_pseudo(result: Crossed) -> Tensor:
    """L_cps: each network learns from the other one's hard labels, on labelled and unlabelled scans."""
    first, second = result.logits
    return losses.pseudo_label_loss(first, second) + losses.pseudo_label_loss(second, first)


@dataclass
class Reconstructed:
    """An unlabelled scan, its reconstruction by parts, and the attention that says what each part covers."""

    image: Tensor  # (M, channels, D, H, W)
    parts: Tensor  # (M, C, channels, D, H, W)
    attention: Tensor  # (M, C, D, H, W)


@dataclass
class ReconstructParts:
    """Forward pass of the reconstruction of unlabelled scans: what S says of them is the attention.

    Args:
        network: S, whose encoder is shared; its decoder stands still.
        decoder: reconstructs what each class covers, channel by channel.
        attends: off: the whole image is one part.
    """

    network: nn.Module
    decoder: ReconstructionDecoder
    attends: bool = True

    def __call__(self, batch: HalfLabelled) -> Reconstructed:
        image, S = batch.unlabeled, cast(FeatureNetwork, self.network)
        features = S.features(image)
        parts = self.decoder(features[0], image.shape[2:]).unflatten(1, (-1, image.shape[1]))
        if self.attends:
            attention = S.answer(features[-1], image.shape[2:]).softmax(1)
        else:
            attention = torch.ones_like(image[:, :1])
        return Reconstructed(image, parts, attention)


def reconstruction(result: Reconstructed) -> Tensor:
    """L_R, each class weighed by its share of the attention."""
    return losses.attended_reconstruction_loss(result.parts, result.image, result.attention)


def reconstruction_of_equal_parts(result: Reconstructed) -> Tensor:
    """L_R, all classes weighed alike."""
    return losses.attended_reconstruction_loss(result.parts, result.image, result.attention, by_share=False)
