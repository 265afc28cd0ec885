"""Pictures of SST's training: style codes, scans in other looks, the atlas in other shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.parts.batches.scans import Scans
from stages.parts.metrics import jacobian_determinant
from stages.parts.networks.flow_autoencoder import FlowAutoencoder
from stages.parts.networks.style import style_prior
from stages.parts.networks.styled_registration import StyledRegistration
from stages.parts.panels import Panel, Points, in_main_directions, spread
from stages.parts.warps import warp, warp_label


def show_codes(R: StyledRegistration, data: Scans) -> Points:
    """Style codes of every scan, and of the same scan in the shapes of four others, in their two main directions."""
    places = [*data.atlases, *data.unlabeled]
    codes = []
    for i, place in enumerate(places):
        image = data.image([place])
        others = [places[(i + k) % len(places)] for k in range(1, min(5, len(places)))]
        codes.append(torch.cat([R.code(image), *(R.code(warp(image, R.flow(image, data.image([o])))) for o in others)]))
    flat, axes = in_main_directions(codes)
    return Points(
        "style codes: every scan (large), and the same scan in other shapes (small)",
        {data.names[place]: points for place, points in zip(places, flat, strict=True)},
        axes,
    )


def show_styles(R: StyledRegistration, data: Scans) -> list[tuple[str, list[Panel]]]:
    """The first atlas and two scans, each in its own look and in the looks of five scans, which stand above.

    The five are spread over the list, so that scans of a second site, which come later, are among them.
    """
    looks = spread(data.unlabeled, 5)
    headings = [f"in the look of {data.names[look]}" for look in looks]
    givers = [Panel(heading, data.image([look])[0, 0]) for heading, look in zip(headings, looks, strict=True)]
    atlas = data.atlases[0]
    rows = [("source of the look", [Panel("as it is", data.image([atlas])[0, 0], data.labels[atlas]), *givers])]
    for place in [atlas, *spread(data.unlabeled, 2)]:
        image = data.image([place])
        panels = [Panel("as it is", image[0, 0], data.labels.get(place))]
        panels += [
            Panel(heading, R.restyled(image, data.image([look]))[0, 0])
            for heading, look in zip(headings, looks, strict=True)
        ]
        rows.append((data.names[place], panels))
    return rows


def folds(field: Tensor) -> Tensor:
    """Where a displacement (1, 3, D, H, W), voxels, folds, (D, H, W)."""
    return ~(jacobian_determinant(field)[0] > 0)


def show_shapes(G_flow: FlowAutoencoder, data: Scans) -> list[tuple[str, list[Panel]]]:
    """The first atlas under displacements that are drawn from the prior."""
    place = data.atlases[0]
    atlas, label, generator = data.image([place]), data.label([place]), torch.Generator().manual_seed(0)
    rows = []
    for draw in range(4):
        code = torch.randn((1, *G_flow.code_shape), generator=generator).to(atlas.device)
        field = G_flow.outside(G_flow.decode(code))
        panels = [
            Panel("atlas", atlas[0, 0], label[0]),
            Panel("in a drawn shape", warp(atlas, field)[0, 0], warp_label(label, field)[0]),
            Panel("folds red; displacement, voxels", field[0].norm(dim=0), shows="error", folds=folds(field)),
        ]
        rows.append((f"draw {draw + 1}", panels))
    return rows


def show_codes_together(R: StyledRegistration, G_flow: FlowAutoencoder, data: Scans) -> list[tuple[str, list[Panel]]]:
    """The first atlas, one look a row and one shape a column, both drawn from their priors (Fig. 8 of the paper)."""
    place = data.atlases[0]
    atlas, label, generator = data.image([place]), data.label([place]), torch.Generator().manual_seed(0)
    codes = [torch.randn((1, *G_flow.code_shape), generator=generator).to(atlas.device) for _ in range(5)]
    fields = [G_flow.outside(G_flow.decode(code)) for code in codes]
    rows = []
    for look in range(1, 5):
        styled = R.appearance(atlas, style_prior(1, generator).to(atlas.device))
        panels = [Panel("atlas in a drawn look", styled[0, 0], label[0])]
        panels += [
            Panel(f"drawn shape {number}", warp(styled, field)[0, 0], warp_label(label, field)[0])
            for number, field in enumerate(fields, start=1)
        ]
        rows.append((f"look {look}", panels))
    return rows
