"""Stage 3: write generated data: transformation paths, finished couples, or propagated labels."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from stages.answering.registering import displacements, segment, vote
from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.store import (
    FORMAT_VERSIONS,
    Identity,
    atomic_write_bytes,
    atomic_write_text,
    find_finished,
    new_artifact,
    verify,
)
from stages.artifacts.weights import Registration, Segmentation
from stages.config import Config
from stages.data.faults import disk_fault
from stages.device import Device, choose_device
from stages.errors import LrlsError
from stages.methods import find_method
from stages.methods.recipe import (
    PathBankWriter,
    PropagatedLabels,
    PseudoLabels,
    Recipe,
    SampledScans,
    WarpedAtlases,
)
from stages.parts.losses import lncc
from stages.parts.metrics import folding_fraction, jacobian_determinant
from stages.parts.panels import Panel
from stages.parts.samplers import pick
from stages.parts.self_training import screen
from stages.parts.style import MomentumContrast
from stages.parts.warps import warp, warp_label, warp_one_hot
from stages.progress import Progress
from stages.train_reg import make_recipe, next_stage, stage_config

APPEARANCE = "registration/appearance"  # where the weights of a registration artifact hold its looks
CODES = "registration/style"  # and what finds its codes
QUALITY = ("similarity", "inverse_error_voxels", "folding_fraction")


def generate(
    cohort: Cohort,
    config: Config,
    method_name: str,
    *,
    round: int = 0,
    registration: Registration | None = None,
    segmentation: Segmentation | None = None,
    appearance: Registration | None = None,
    force: bool = False,
) -> Generated:
    """Write what a method's segmentation learns from.

    Args:
        round: 0, or of a method with rounds.
        registration: what was trained on this cohort, for methods that generate by it.
        segmentation: of the round before, for pseudo-labels.
        appearance: what was trained on another cohort, whose looks the samples take instead of this one's.

    Raises:
        LrlsError: the method generates nothing or has no looks to exchange, the disk has no room, or the screening
            accepts nothing.
    """
    method = find_method(method_name)
    recipe = make_recipe(method, cohort, config, round)
    if recipe.generate is None and recipe.last_round:
        raise LrlsError(f"{method.name} generates nothing in round 0; name a later one with --round.")
    if recipe.generate is None:
        raise LrlsError(f"{method.name} generates nothing; go on with `lrls {next_stage(recipe)}`.")
    check_appearance(appearance, recipe, method.name)
    inputs = {"cohort": cohort, "registration": registration, "segmentation": segmentation, "appearance": appearance}
    settings = config.generate.model_dump(mode="json")
    identity = Identity(
        kind=Generated.KIND,
        format_version=FORMAT_VERSIONS[Generated.KIND],
        made_by="generate",
        config=stage_config(method, config, segments=False, round=round, appearance=appearance)
        | {"generate": settings},
        seed=config.seed,
        round=round,
        inputs={role: artifact.manifest.digest for role, artifact in inputs.items() if artifact},
    )
    target = config.workspace / method.name / "generated"
    if not force and (done := find_finished(target, identity)):
        return Generated.open(done)
    for artifact in inputs.values():
        if artifact:
            verify(artifact.folder)
    if registration:
        registration.load(recipe.registration_networks)
    if segmentation:
        segmentation.load(recipe.segmentation_networks)
    if appearance:
        recipe = with_appearance(recipe, appearance)
    device = choose_device(config)
    num_bytes = planned_bytes(cohort, recipe, config)
    print(f"generated.h5 will hold {num_bytes / 1e6:.0f} MB.", flush=True)
    if fault := disk_fault(config.workspace, 2 * num_bytes):
        raise LrlsError(str(fault))
    with new_artifact(target, identity, device=str(device)) as draft:
        writer = {
            PathBankWriter: _write_paths,
            WarpedAtlases: _write_warped,
            PropagatedLabels: _write_propagated,
            SampledScans: _write_sampled,
            PseudoLabels: _write_pseudo,
        }[type(recipe.generate)]
        with h5py.File(draft.folder / "generated.h5", "w") as file:
            writer(file, recipe, cohort, config, device, draft.resume)
        (draft.folder / "qc").mkdir(exist_ok=True)
        _pictures(draft.folder, cohort, recipe, config)
    return Generated.open(draft.result)


def check_appearance(appearance: Registration | None, recipe: Recipe, method: str) -> None:
    """Raises LrlsError where the method or the other artifact has no looks to exchange."""
    if appearance is None:
        return
    if not isinstance(recipe.generate, SampledScans) or recipe.generate.synthesis.appearance is None:
        raise LrlsError(
            f"--appearance-from: {method} with these settings has no appearance model; "
            "leave the option out, or use sst with its setting `appearance`."
        )
    settings = appearance.manifest.identity.config
    found = settings.get("method")
    if found != method:
        raise LrlsError(
            f"--appearance-from: {appearance.folder.name} was trained by {found}, expected {method}; "
            f"name a workspace where `lrls train-reg --method {method}` has run."
        )
    ours = "light" if recipe.generate.synthesis.appearance.light else "published"
    theirs = settings["settings"]
    if theirs["registration_network"] != ours or not theirs["appearance"]:
        kind = f"{theirs['registration_network']} networks" if theirs["appearance"] else "no appearance model"
        raise LrlsError(
            f"--appearance-from: {appearance.folder.name} has {kind}, expected an appearance model of {ours} networks; "
            "train both with the same `registration_network`, and with `appearance`."
        )


def with_appearance(recipe: Recipe, appearance: Registration) -> Recipe:
    """The recipe with another artifact's looks for its samples; its own registration stays as it is."""
    assert isinstance(recipe.generate, SampledScans)
    own = recipe.generate.synthesis
    other, memory = copy.deepcopy(own.appearance), None
    assert other is not None
    if own.memory:
        size = appearance.manifest.identity.config["settings"]["queue"]  # which may be another one there
        memory = MomentumContrast(copy.deepcopy(own.memory.encoder), size=size)
    appearance.load({APPEARANCE: other} | ({CODES: memory} if memory else {}))
    synthesis = replace(own, appearance=other, memory=memory)
    return replace(recipe, generate=replace(recipe.generate, synthesis=synthesis))


def planned_bytes(cohort: Cohort, recipe: Recipe, config: Config) -> int:
    """Size of `generated.h5`."""
    voxels = int(np.prod(cohort.grid.shape))
    label = 1 if cohort.num_classes <= 256 else 2
    if isinstance(recipe.generate, PseudoLabels):
        return len(cohort.parts["unlabeled"]) * voxels * (2 + 1 + label)
    if isinstance(recipe.generate, PropagatedLabels):
        return len(cohort.parts["unlabeled"]) * voxels * (2 + label)
    if isinstance(recipe.generate, SampledScans):
        return recipe.generate.count * voxels * (2 + label)
    if isinstance(recipe.generate, WarpedAtlases):
        return len(couples(cohort, recipe.generate)) * voxels * (2 + label)
    assert isinstance(recipe.generate, PathBankWriter)
    per_couple = 8 if recipe.generate.style else 6
    return voxels * (len(couples(cohort, recipe.generate)) * per_couple + config.generate.samples * (2 + label))


def couples(cohort: Cohort, writer: PathBankWriter | WarpedAtlases) -> list[tuple[str, str]]:
    """(atlas, scan) of every path or warped atlas that is written."""
    atlases, scans = cohort.parts["atlases"], cohort.parts["unlabeled"]
    found = [
        (atlases[(turn + place) % len(atlases)], scan)
        for turn in range(len(atlases))
        for place, scan in enumerate(scans)
    ]
    return found[: writer.most]


def _table(file: h5py.File, name: str, rows: list[dict[str, Any]], config: Config) -> h5py.Group:
    """A group with one column per key, and the screening's verdict."""
    group = file[name]
    for column in rows[0]:
        values = [row[column] for row in rows]
        if isinstance(values[0], str):
            group.create_dataset(column, data=values, dtype=h5py.string_dtype())
        else:
            group[column] = np.array(values, np.int64 if isinstance(values[0], int) else np.float32)
    limits = config.generate
    good = np.ones(len(rows), bool)
    if limits.max_folding is not None:
        good &= group["folding_fraction"][()] <= limits.max_folding
    if limits.min_similarity is not None:
        good &= group["similarity"][()] >= limits.min_similarity
    if not good.any():
        raise LrlsError(
            f"the screening accepts none of {len(rows)} couples "
            f"(best similarity {max(row['similarity'] for row in rows):.3f}, "
            f"lowest folding {min(row['folding_fraction'] for row in rows):.4f}); "
            "loosen generate.min_similarity or generate.max_folding."
        )
    group["accepted"] = good
    return group


def _stored(resume: Path, place: int) -> Path:
    return resume / f"{place:06d}.npz"


def _remember(resume: Path, place: int, values: dict[str, Any]) -> None:
    """A finished couple, whole or absent, so that a killed run goes on behind it."""
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    atomic_write_bytes(_stored(resume, place), buffer.getvalue())


Finish = Callable[[str, torch.Tensor, torch.Tensor, list[torch.Tensor]], dict[str, Any]]
"""(atlas, its image and the scan's (1, 1, D, H, W), displacements there and perhaps back) -> what to store."""


def _register_couples(
    pairs: list[tuple[str, str]],
    finish: Finish,
    recipe: Recipe,
    cohort: Cohort,
    config: Config,
    device: Device,
    resume: Path,
    *,
    title: str,
    back: bool = False,
) -> None:
    """Register every couple (atlas, scan) that is not stored in `resume` yet, and store it with its quality there.

    Args:
        back: also register the scan to the atlas.
    """
    missing = [i for i in range(len(pairs)) if not _stored(resume, i).exists()]
    ways = 2 if back else 1
    images = {case: cohort.image(case) for case in cohort.cases}
    queue = [(images[a], images[b]) for i in missing for a, b in (pairs[i], pairs[i][::-1])[:ways]]
    cases = [pairs[i][1] for i in missing for _ in range(ways)]
    fields: dict[int, torch.Tensor] = {}
    found = displacements(recipe, queue, cases, spacing_mm=cohort.grid.spacing_mm, device=device, config=config)
    with Progress(title, len(pairs), start=len(pairs) - len(missing)) as progress:
        for place, field in found:
            fields[place] = torch.from_numpy(field)[None]
            turn = place // ways
            mine = range(turn * ways, (turn + 1) * ways)
            if not all(k in fields for k in mine):
                continue
            ours = [fields.pop(k) for k in mine]
            moving, fixed = (torch.from_numpy(each.astype(np.float32))[None, None] for each in queue[mine[0]])
            values = finish(pairs[missing[turn]][0], moving, fixed, ours)
            quality = measure(moving, fixed, ours[0], ours[1] if back else None)
            _remember(resume, missing[turn], values | quality)
            progress.advance()


def _write_paths(file: h5py.File, recipe: Recipe, cohort: Cohort, config: Config, device: Device, resume: Path) -> None:
    assert isinstance(recipe.generate, PathBankWriter)
    pairs = couples(cohort, recipe.generate)
    with_style, style_map = recipe.generate.style is not None, recipe.generate.style_map
    back = with_style and style_map is None
    if style_map is not None:
        style_map.to(device.torch).eval()

    def finish(_: str, moving: torch.Tensor, fixed: torch.Tensor, ways: list[torch.Tensor]) -> dict[str, Any]:
        values = {"displacement": ways[0][0].half()}
        if back:
            values["style"] = (warp(fixed, ways[1]) - moving)[0].half()
        elif style_map is not None:
            with torch.inference_mode(), device.autocast():
                values["style"] = style_map(moving.to(device.torch), fixed.to(device.torch))[0].cpu().half()
        return values

    _register_couples(pairs, finish, recipe, cohort, config, device, resume, title="generate paths", back=back)
    shape = cohort.grid.shape
    group = file.create_group("paths")
    displacement = group.create_dataset("displacement", (len(pairs), 3, *shape), "f2", chunks=(1, 3, *shape))
    if with_style:
        styles = group.create_dataset("style", (len(pairs), 1, *shape), "f2", chunks=(1, 1, *shape))
    rows = []
    for i, (atlas_case, scan_case) in enumerate(pairs):
        with np.load(_stored(resume, i)) as stored:
            displacement[i] = stored["displacement"]
            if with_style:
                styles[i] = stored["style"]
            rows.append({"atlas": atlas_case, "scan": scan_case} | {name: float(stored[name]) for name in QUALITY})
    _table(file, "paths", rows, config)
    if config.generate.samples:
        finished = list(draw_samples(file, recipe, cohort, config, config.generate.samples))
        group = file.create_group("samples")
        group.create_dataset("image", data=np.stack([s.pop("image") for s in finished]), chunks=(1, 1, *shape))
        group.create_dataset("label", data=np.stack([s.pop("label") for s in finished]), chunks=(1, *shape))
        _table(file, "samples", finished, config)


def _write_warped(
    file: h5py.File, recipe: Recipe, cohort: Cohort, config: Config, device: Device, resume: Path
) -> None:
    assert isinstance(recipe.generate, WarpedAtlases)
    pairs = couples(cohort, recipe.generate)
    kind = np.min_scalar_type(cohort.num_classes - 1)

    def finish(atlas: str, moving: torch.Tensor, _: torch.Tensor, ways: list[torch.Tensor]) -> dict[str, Any]:
        label = torch.from_numpy(cohort.label(atlas).astype(np.int16))[None]
        return {"image": warp(moving, ways[0])[0].half(), "label": warp_label(label, ways[0])[0].numpy().astype(kind)}

    _register_couples(pairs, finish, recipe, cohort, config, device, resume, title="warp atlases")
    origins = [
        {"atlas": atlas, "space": scan, "style": atlas, "alpha": 1.0, "beta": 0.0, "seed": config.seed}
        for atlas, scan in pairs
    ]
    _write_samples(file, origins, cohort, config, resume)


def _write_sampled(
    file: h5py.File, recipe: Recipe, cohort: Cohort, config: Config, device: Device, resume: Path
) -> None:
    """Drawn scans; sample i depends on the seed and i alone. Their similarity is to the atlas in the same shape."""
    assert isinstance(recipe.generate, SampledScans)
    synthesis, count = recipe.generate.synthesis, recipe.generate.count
    if synthesis.memory and not synthesis.memory.known.any():
        raise LrlsError(
            "the style encoder remembers no scan; raise train_reg.steps, or set methods.sst.looks to prior."
        )
    for network in (*recipe.registration_networks.values(), synthesis.appearance, synthesis.memory):
        if network is not None:
            network.to(device.torch).eval()
    data = cohort.scans(device.torch)
    kind = np.min_scalar_type(cohort.num_classes - 1)
    origins = []
    with Progress("draw scans", count) as progress:
        for i in range(count):
            seed = config.seed * 1_000_003 + i
            generator = torch.Generator().manual_seed(seed)
            (atlas,) = pick(data.atlases, 1, generator)
            if not _stored(resume, i).exists():
                with torch.inference_mode(), device.autocast():
                    drawn = synthesis(data, atlas, generator)
                label = warp_one_hot(data.label([atlas]), drawn.displacement, cohort.num_classes).argmax(1)
                quality = {
                    "similarity": float(lncc(drawn.image, drawn.plain).mean()),
                    "inverse_error_voxels": float("nan"),
                    "folding_fraction": float(folding_fraction(jacobian_determinant(drawn.displacement))[0]),
                }
                values = {"image": drawn.image[0].cpu().half().numpy(), "label": label[0].cpu().numpy().astype(kind)}
                _remember(resume, i, values | quality | {"space": drawn.space, "style": drawn.style})
            with np.load(_stored(resume, i)) as stored:
                origin = {"space": str(stored["space"]), "style": str(stored["style"])}
            origins.append({"atlas": data.names[atlas], **origin, "alpha": 1.0, "beta": 1.0, "seed": seed})
            progress.advance()
    _write_samples(file, origins, cohort, config, resume)


def _write_samples(
    file: h5py.File, origins: list[dict[str, Any]], cohort: Cohort, config: Config, resume: Path
) -> None:
    """The stored couples, image and label, as the table `samples`."""
    group = file.create_group("samples")
    count, shape = len(origins), cohort.grid.shape
    images = group.create_dataset("image", (count, 1, *shape), "f2", chunks=(1, 1, *shape))
    labels = group.create_dataset(
        "label", (count, *shape), np.min_scalar_type(cohort.num_classes - 1), chunks=(1, *shape)
    )
    rows = []
    for i, origin in enumerate(origins):
        with np.load(_stored(resume, i)) as stored:
            images[i], labels[i] = stored["image"], stored["label"]
            rows.append(origin | {name: float(stored[name]) for name in QUALITY})
    _table(file, "samples", rows, config)


def measure(
    moving: torch.Tensor, fixed: torch.Tensor, path: torch.Tensor, back: torch.Tensor | None
) -> dict[str, float]:
    """Quality columns of a couple; without a backward field its inverse error is not known (nan)."""
    residual = float("nan") if back is None else float((path + warp(back, path)).norm(dim=1).mean())
    return {
        "similarity": float(lncc(warp(moving, path), fixed).mean()),
        "inverse_error_voxels": residual,
        "folding_fraction": float(folding_fraction(jacobian_determinant(path))[0]),
    }


def draw_samples(
    file: h5py.File, recipe: Recipe, cohort: Cohort, config: Config, count: int
) -> Iterator[dict[str, Any]]:
    """Finished couples from the accepted paths, drawn as S3P does; sample i depends on the seed and i alone."""
    assert isinstance(recipe.generate, PathBankWriter)
    paths = file["paths"]
    rows = np.flatnonzero(paths["accepted"][()])
    atlases, scans = (paths[column].asstr()[()] for column in ("atlas", "scan"))
    for i in range(count):
        seed = config.seed * 1_000_003 + i
        generator = torch.Generator().manual_seed(seed)
        space = int(rows[int(torch.randint(len(rows), (1,), generator=generator))])
        of_atlas = [int(row) for row in rows if atlases[row] == atlases[space]]
        style = of_atlas[int(torch.randint(len(of_atlas), (1,), generator=generator))]
        style = space if recipe.generate.coupled else style
        alpha = recipe.generate.space(1, generator)
        way = alpha * torch.from_numpy(paths["displacement"][space]).float()[None]
        image = torch.from_numpy(cohort.image(atlases[space]).astype(np.float32))[None, None]
        beta = 0.0
        if recipe.generate.style:
            degree = recipe.generate.style(1, generator)
            image, beta = image + degree * torch.from_numpy(paths["style"][style]).float(), float(degree)
        image = warp(image, way)
        label = torch.from_numpy(cohort.label(atlases[space]).astype(np.int16))[None]
        classes = warp_one_hot(label, way, cohort.num_classes).argmax(1)
        yield {
            "image": image[0].half().numpy(),
            "label": classes[0].numpy().astype(np.min_scalar_type(cohort.num_classes - 1)),
            "atlas": atlases[space],
            "space": scans[space],
            "style": scans[style] if recipe.generate.style else atlases[space],
            "alpha": float(alpha),
            "beta": beta,
            "seed": seed,
            **{name: float(paths[name][space]) for name in QUALITY},
        }


def _write_propagated(
    file: h5py.File, recipe: Recipe, cohort: Cohort, config: Config, device: Device, resume: Path
) -> None:
    atlas_cases, scans = cohort.parts["atlases"], cohort.parts["unlabeled"]
    atlases = [(cohort.image(case), cohort.label(case)) for case in atlas_cases]
    missing = [i for i in range(len(scans)) if not _stored(resume, i).exists()]
    pairs = [(image, cohort.image(scans[i])) for i in missing for image, _ in atlases]
    fields: dict[int, np.ndarray] = {}
    with Progress("propagate labels", len(scans), start=len(scans) - len(missing)) as progress:
        cases = [scans[i] for i in missing for _ in atlases]
        found = displacements(recipe, pairs, cases, spacing_mm=cohort.grid.spacing_mm, device=device, config=config)
        for place, field in found:
            fields[place] = field
            turn = place // len(atlases)
            mine = range(turn * len(atlases), (turn + 1) * len(atlases))
            if not all(k in fields for k in mine):
                continue
            scan = pairs[place][1]
            here = [fields[k] for k in mine]
            votes = vote(atlases, here, scan, cohort.num_classes)
            label = votes.argmax(0).numpy()
            fixed = torch.from_numpy(scan.astype(np.float32))[None, None]
            qualities = []
            for k in mine:
                moving = torch.from_numpy(pairs[k][0].astype(np.float32))[None, None]
                qualities.append(measure(moving, fixed, torch.from_numpy(fields.pop(k))[None], None))
            quality = {name: float(np.mean([q[name] for q in qualities])) for name in QUALITY}
            label = label.astype(np.min_scalar_type(cohort.num_classes - 1))
            _remember(resume, missing[turn], {"image": scan[None], "label": label, **quality})
            progress.advance()
    voters = "+".join(atlas_cases)
    origins = [
        {"atlas": voters, "space": case, "style": case, "alpha": 1.0, "beta": 1.0, "seed": config.seed}
        for case in scans
    ]
    _write_samples(file, origins, cohort, config, resume)


def _write_pseudo(
    file: h5py.File, recipe: Recipe, cohort: Cohort, config: Config, device: Device, resume: Path
) -> None:
    assert isinstance(recipe.generate, PseudoLabels) and recipe.segmentation is not None
    scans, shape = cohort.parts["unlabeled"], cohort.grid.shape
    kind = np.min_scalar_type(cohort.num_classes - 1)
    network = recipe.segmentation.to(device.torch).eval()
    group = file.create_group("pseudo")
    volumes = {
        name: group.create_dataset(name, (len(scans), *shape), dtype, chunks=(1, *shape))
        for name, dtype in (("label", kind), ("certainty", "f2"), ("trusted", "?"))
    }
    columns: dict[str, list[Any]] = {"class_voxels": [], "class_confidence": [], "class_accepted": []}
    with Progress("pseudo-labels", len(scans)) as progress:
        for place, scan in enumerate(scans):
            found = screen(segment(network, cohort.image(scan), device), recipe.generate.threshold)
            volumes["label"][place] = found.label.cpu().numpy().astype(kind)
            volumes["certainty"][place] = found.certainty.half().cpu().numpy()
            volumes["trusted"][place] = found.trusted.cpu().numpy()
            for name, column in columns.items():
                column.append(getattr(found, name.removeprefix("class_")).cpu().numpy())
            progress.advance()
    group.create_dataset("scan", data=scans, dtype=h5py.string_dtype())
    for name, column in columns.items():
        group[name] = np.stack(column)
    group["accepted"] = group["class_accepted"][:, 1:].any(1)
    labelled = int(group["accepted"][()].sum())
    trusted = float(np.mean([rows.mean() for rows in group["trusted"]]))
    print(
        f"{labelled} of {len(scans)} scans have a structure that the network is sure of "
        f"(threshold {recipe.generate.threshold}); {100 * trusted:.0f} % of all voxels are trusted.",
        flush=True,
    )
    if not labelled:
        print(
            "Warning: this round has no pseudo-label and learns from the atlases alone; train longer before it "
            "(train_seg.steps), or lower `threshold`.",
            flush=True,
        )


def _pseudo_pictures(folder: Path, cohort: Cohort, file: h5py.File) -> None:
    """The first scans with their pseudo-labels, and a table of the screening."""
    from stages.pictures import panels_page

    group = file["pseudo"]
    scans = group["scan"].asstr()[()]
    rows = []
    for place, scan in enumerate(scans[:4]):
        image = torch.from_numpy(cohort.image(scan).astype(np.float32))
        label = torch.from_numpy(group["label"][place].astype(np.int16))
        counts = (
            torch.from_numpy(group["trusted"][place]) & torch.from_numpy(group["class_accepted"][place])[label.long()]
        )
        doubt = 1 - torch.from_numpy(group["certainty"][place].astype(np.float32))
        panels = [
            Panel("pseudo-label", image, label),
            Panel("accepted structures, trusted voxels", image, label * counts),
            Panel("1 - certainty", doubt, shows="error"),
        ]
        rows.append((str(scan), panels))
    panels_page(rows, folder / "pseudo-labels.png", structures=cohort.structures, spacing_mm=cohort.grid.spacing_mm)
    lines = ["scan,structure,voxels,confidence,accepted"]
    for place, scan in enumerate(scans):
        for c, name in enumerate(("background", *cohort.structures)):
            confidence = group["class_confidence"][place, c]
            shown = "" if np.isnan(confidence) else f"{confidence:.4f}"
            accepted = int(group["class_accepted"][place, c])
            lines.append(f"{scan},{name},{group['class_voxels'][place, c]},{shown},{accepted}")
    atomic_write_text(folder / "pseudo-labels.csv", "\n".join(lines) + "\n")


def _pictures(folder: Path, cohort: Cohort, recipe: Recipe, config: Config) -> None:
    from stages.pictures import couples_page

    if isinstance(recipe.generate, PseudoLabels):
        with h5py.File(folder / "generated.h5") as file:
            _pseudo_pictures(folder / "qc", cohort, file)
        return
    with h5py.File(folder / "generated.h5") as file:
        if isinstance(recipe.generate, PathBankWriter):
            drawn = list(draw_samples(file, recipe, cohort, config, 16))
            if recipe.generate.style is None:
                for couple in drawn:
                    couple["style"] = None
        else:
            stored = file["samples"]
            drawn = [
                {name: stored[name][i] for name in ("image", "label")}
                | {name: stored[name].asstr()[i] for name in ("atlas", "space", "style")}
                for i in range(min(16, len(stored["image"])))
            ]
    for couple in drawn:
        couple["image"] = couple["image"][0].astype(np.float32)
    couples_page(drawn, folder / "qc" / "couples.png", structures=cohort.structures, spacing_mm=cohort.grid.spacing_mm)
