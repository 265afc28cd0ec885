"""Warped atlases in the looks of the scans that they are aligned with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.errors import LrlsError
from stages.parts.augmentation import uniform
from stages.parts.batches.drawing import Draw, pick
from stages.parts.batches.labelled import Labelled
from stages.parts.batches.scans import Scans, on_training_device
from stages.parts.fourier import mix_amplitudes
from stages.parts.warps import one_hot, warp, warp_one_hot


@dataclass
class StyledWarps(Labelled):
    """Warped atlases in another look, with their labels; and the real scans with what S said of them."""

    scan: Tensor  # (N, 1, D, H, W)
    pseudo: Tensor | None  # (N, C, D, H, W), sums to 1; None: nothing was said yet


def styled_warps(data: Scans, draw: Draw, *, pseudo: bool = False) -> StyledWarps:
    """Warped atlases with a share of the amplitudes of their scans, drawn from U(0, 1); both images move alike.

    Args:
        pseudo: whether the scans come with their pseudo-labels.
    """
    assert data.samples is not None
    couples = [data.samples[c] for c in pick(range(len(data.samples)), draw.batch_size, draw.generator)]
    device, places = data.images.device, [data.names.index(couple.scan) for couple in couples]
    scan, image = data.image(places), on_training_device([couple.image for couple in couples], device).float()
    label = on_training_device([couple.label for couple in couples], device)
    labels = torch.cat([label, _pseudo_labels(data, places)]) if pseudo else label
    share = uniform((len(couples), 1, 1, 1, 1), 0, 1, draw.generator)
    images = torch.cat([mix_amplitudes(image, scan, share).clamp(0, 1), scan])
    displacement = draw.displacement(data)
    if displacement is None:
        target = one_hot(labels, data.num_classes)
    else:
        twice = displacement.repeat(2, 1, 1, 1, 1)
        images = warp(images, twice, padding="zeros")
        target = warp_one_hot(labels, twice[: len(labels)], data.num_classes)
    styled, scan = draw.recolour(images).chunk(2)
    of_scan = target[len(label) :] if pseudo else None
    scans, missing = [couple.scan for couple in couples], data.missing([couple.atlas for couple in couples])
    return StyledWarps(scans, styled, target[: len(label)], scan, of_scan, missing=missing)


def _pseudo_labels(data: Scans, places: list[int]) -> Tensor:
    known = data.pseudo or {}
    missing = [data.names[place] for place in places if place not in known]
    if missing:
        raise LrlsError(f"case {missing[0]} has no pseudo-label; make them again with `lrls generate`.")
    return torch.stack([known[place].label.short() for place in places])
