"""Distillation by reconstruction: a student segments generated images, led by a teacher that sees real scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.parts import losses
from stages.parts.batches.labelled import Triple
from stages.parts.batches.scans import Scans
from stages.parts.networks.teacher_student import TeacherAndStudent
from stages.parts.networks.unet import FeatureNetwork
from stages.parts.panels import Panel
from stages.parts.players.segmenting import Segmented, merged

Detach = Literal["teacher", "none", "both"]
HintFrom = Literal["code", "figure"]


def hinting(features: list[Tensor], layers: int, hint_from: HintFrom) -> list[Tensor]:
    """The features that give hints, from the coarsest on.

    Args:
        features: the decoder's, from the coarsest to the one that the head reads.
        layers: how many give hints.
        hint_from: code: the last ones. With two layers these are RCB(32) at half and RCB(16) at full resolution.
            figure: those before the last one, RCB(64) at a quarter and RCB(32) at half resolution, as in Fig. 3.
    """
    end = len(features) - (hint_from == "figure")
    return features[end - layers : end]


@dataclass
class Reconstructed:
    """A scan, and the teacher's reconstruction of it, (N, 1, D, H, W) both."""

    scan: Tensor
    reconstruction: Tensor


@dataclass
class Reconstruct:
    """Forward pass of the teacher alone."""

    teacher: nn.Module

    def __call__(self, batch: Triple) -> Reconstructed:
        return Reconstructed(batch.scan, self.teacher(batch.scan))


@dataclass
class Distilled(Segmented):
    """Student's and teacher's outputs for a batch."""

    reconstructed: Reconstructed | None = None  # None: the teacher stands still
    hints: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ())  # features (of the student, of the teacher), by layer


@dataclass
class Distil:
    """Forward pass: the student sees the generated image, the teacher the real scan that it imitates.

    Args:
        networks: teacher and student.
        layers: how many of the decoder's last layers give hints.
        detach: whose features the hints' gradient does not reach.
        hint_from: which layers, see `hinting`.
        still: the teacher has already learned and only gives hints.
    """

    networks: TeacherAndStudent
    layers: int
    detach: Detach
    hint_from: HintFrom = "code"
    still: bool = False

    def __call__(self, batch: Triple) -> Distilled:
        student, teacher = (cast(FeatureNetwork, n) for n in (self.networks.student, self.networks.teacher))
        shape = batch.image.shape[2:]
        learned = student.features(batch.image)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.still):
            taught = teacher.features(batch.scan)
        logits = student.answer(learned[-1], shape)
        reconstructed = None if self.still else Reconstructed(batch.scan, teacher.answer(taught[-1], shape))
        learned, taught = (hinting(features, self.layers, self.hint_from) for features in (learned, taught))
        if self.detach != "none":
            taught = [feature.detach() for feature in taught]
        if self.detach == "both":
            learned = [feature.detach() for feature in learned]
        logits = merged(logits, batch.missing)
        return Distilled(batch.target, logits, reconstructed=reconstructed, hints=(learned, taught))


def reconstruction(result: Distilled | Reconstructed) -> Tensor:
    """L_recon: mean squared difference of the scan and the teacher's reconstruction (OS-MedSeg Eq. 10)."""
    reconstructed = result.reconstructed if isinstance(result, Distilled) else result
    assert reconstructed is not None
    return F.mse_loss(reconstructed.reconstruction.float(), reconstructed.scan)


def cosine_hint(result: Distilled) -> Tensor:
    """L_hint: the student's features have the direction of the teacher's (OS-MedSeg Eqs. 3-4)."""
    return losses.cosine_hint_loss(*result.hints)


def l2_hint(result: Distilled) -> Tensor:
    """L_hint by squared differences, the comparison of OS-MedSeg's Table V."""
    return losses.l2_hint_loss(*result.hints)


@torch.no_grad()
def look_inside(
    networks: TeacherAndStudent, layers: int, hint_from: HintFrom, data: Scans, *, most: int = 3
) -> list[tuple[str, list[Panel]]]:
    """What both networks see, the reconstruction, and a channel of each layer that gives hints, side by side.

    The channel is the one that varies most in the teacher; coarse layers are stretched onto the image's grid.

    Returns:
        (case, panels) of the first couples.
    """
    assert data.samples is not None
    networks.eval()
    student, teacher = (cast(FeatureNetwork, n) for n in (networks.student, networks.teacher))
    rows = []
    for number in range(min(most, len(data.samples))):
        couple = data.samples[number]
        scan = data.image([data.names.index(couple.scan)])
        image = couple.image[None].to(scan)
        shape = scan.shape[2:]
        learned, taught = student.features(image), teacher.features(scan)
        seen = {"student sees": image, "teacher sees": scan, "reconstruction": teacher.answer(taught[-1], shape)}
        panels = [Panel(heading, volume[0, 0].float().cpu()) for heading, volume in seen.items()]
        panels[0] = replace(panels[0], label=couple.label)
        nearest = 1 + (hint_from == "figure")  # layers from the head
        for place in range(nearest, nearest + layers):
            channel = int(taught[-place][0].float().var((1, 2, 3)).argmax())
            for name, features in (("teacher", taught), ("student", learned)):
                feature = features[-place][:, channel : channel + 1].float()
                feature = F.interpolate(feature, size=tuple(shape), mode="nearest")[0, 0].cpu()
                panels.append(Panel(f"{name}, layer -{place}", feature, shows="feature"))
        rows.append((couple.scan, panels))
    return rows
