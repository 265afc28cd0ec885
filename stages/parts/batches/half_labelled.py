"""Batches of labelled and of unlabelled scans, for semi-supervised segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from stages.errors import LrlsError
from stages.parts.batches.drawing import Draw, pick
from stages.parts.batches.labelled import Labelled, labelled_scans
from stages.parts.batches.scans import Scans
from stages.parts.warps import warp


@dataclass
class HalfLabelled(Labelled):
    """Labelled images, as of `Labelled`, and images without labels beside them."""

    unlabeled: Tensor = field(kw_only=True)  # (M, channels, D, H, W)
    draw: Draw = field(kw_only=True)  # of noise and dropout


def labelled_and_unlabeled(data: Scans, draw: Draw) -> HalfLabelled:
    """Half of the batch (rounded up) labelled scans, as many unlabelled ones; each moves and recolours its own way."""
    if draw.batch_size % 2 and draw.whole > draw.batch_size:
        raise LrlsError(
            f"a batch of {draw.whole} has no equal shares of labelled and of unlabelled scans for "
            f"{draw.whole // draw.batch_size} processes; set train_seg.batch_size to a multiple of twice their number."
        )
    half = replace(draw, batch_size=-(-draw.batch_size // 2))
    known, places = labelled_scans(data, half), pick(data.unlabeled, half.batch_size, draw.generator)
    unlabeled, displacement = data.image(places), half.displacement(data)
    if displacement is not None:
        unlabeled = warp(unlabeled, displacement, padding="zeros")
    return HalfLabelled(
        [*known.scans, *(data.names[place] for place in places)],
        known.image,
        known.target,
        missing=known.missing,
        unlabeled=draw.recolour(unlabeled),
        draw=draw,
    )
