"""Images with labels, as segmentation networks see them: scans, or couples that `lrls generate` wrote."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.parts import losses
from stages.parts.batches.drawing import Draw, pick
from stages.parts.batches.scans import Scans, on_training_device
from stages.parts.warps import one_hot, warp, warp_one_hot


@dataclass
class Labelled:
    """Images with soft labels, as a segmentation network sees them."""

    scans: list[str]
    image: Tensor  # (N, channels, D, H, W)
    target: Tensor  # (N, C, D, H, W), sums to 1
    missing: Tensor | None = field(default=None, kw_only=True)  # (N, C): structures that the labels may lack
    weights: Tensor | None = field(default=None, kw_only=True)  # of the classes, (C,); None: all equal


def labelled_scans(data: Scans, draw: Draw, *, weigh_classes: bool = False) -> Labelled:
    """Labelled scans under augmentation.

    Args:
        weigh_classes: the batch says the classes' weights, from their frequency in the labels.
    """
    places = pick(sorted(data.labels), draw.batch_size, draw.generator)
    names = [data.names[place] for place in places]
    batch = _augmented(names, names, data.image(places), data.label(places), data, draw)
    batch.weights = losses.class_weights(data.class_voxels) if weigh_classes else None
    return batch


def _augmented(
    scans: list[str], labelled: list[str], image: Tensor, label: Tensor, data: Scans, draw: Draw
) -> Labelled:
    """A batch; `labelled` names the scans that the labels come from."""
    displacement, missing = draw.displacement(data), data.missing(labelled)
    if displacement is None:
        return Labelled(scans, draw.recolour(image), one_hot(label, data.num_classes), missing=missing)
    image = warp(image, displacement, padding="zeros")
    target = warp_one_hot(label, displacement, data.num_classes)
    return Labelled(scans, draw.recolour(image), target, missing=missing)


def generated_samples(data: Scans, draw: Draw) -> Labelled:
    """Finished couples (image, label) that `lrls generate` wrote, under augmentation."""
    assert data.samples is not None
    couples = [data.samples[c] for c in pick(range(len(data.samples)), draw.batch_size, draw.generator)]
    device = data.images.device
    image = on_training_device([couple.image for couple in couples], device).float()
    label = on_training_device([couple.label for couple in couples], device)
    scans, atlases = [couple.scan for couple in couples], [couple.atlas for couple in couples]
    return _augmented(scans, atlases, image, label, data, draw)


@dataclass
class Triple(Labelled):
    """A generated image with its soft label, and the real scan whose anatomy it imitates."""

    scan: Tensor  # (N, 1, D, H, W)


def triples(data: Scans, draw: Draw, *, real: bool = False) -> Triple:
    """Finished couples with the scans that they imitate; both images move alike, and only the couple's is recoloured.

    The teacher should reconstruct the scan itself, not a random change of it.

    Args:
        real: the scan itself in place of the generated image, under the generated label.
    """
    assert data.samples is not None
    couples = [data.samples[c] for c in pick(range(len(data.samples)), draw.batch_size, draw.generator)]
    device = data.images.device
    scan = data.image([data.names.index(couple.scan) for couple in couples])
    image = scan if real else on_training_device([couple.image for couple in couples], device).float()
    label = on_training_device([couple.label for couple in couples], device)
    displacement = draw.displacement(data)
    images = torch.cat([image, scan])
    if displacement is None:
        target = one_hot(label, data.num_classes)
    else:
        images = warp(images, displacement.repeat(2, 1, 1, 1, 1), padding="zeros")
        target = warp_one_hot(label, displacement, data.num_classes)
    image, scan = images.chunk(2)
    missing = data.missing([couple.atlas for couple in couples])
    return Triple([couple.scan for couple in couples], draw.recolour(image), target, scan, missing=missing)
