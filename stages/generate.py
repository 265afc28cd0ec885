"""Stage 3: write generated data: transformation paths, finished couples, or propagated labels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from stages import intake
from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.store import (
    FORMAT_VERSIONS,
    Identity,
    atomic_write_bytes,
    find_finished,
    new_artifact,
    verify,
)
from stages.artifacts.weights import Registration
from stages.config import Config
from stages.device import Device, choose_device
from stages.errors import LrlsError
from stages.methods import find_method
from stages.methods.recipe import PathBankWriter, PropagatedLabels, Recipe
from stages.parts.losses import lncc
from stages.parts.metrics import folding_fraction, jacobian_determinant
from stages.parts.warps import one_hot, warp, warp_probabilities
from stages.progress import Progress
from stages.registering import displacements, vote
from stages.train_reg import make_recipe, next_stage, stage_config

QUALITY = ("similarity", "inverse_error_voxels", "folding_fraction")


def generate(
    cohort: Cohort, config: Config, method_name: str, *, registration: Registration | None = None, force: bool = False
) -> Generated:
    """Write what a method's segmentation learns from.

    Raises:
        LrlsError: the method generates nothing, the disk has no room, or the screening accepts nothing.
    """
    method = find_method(method_name)
    recipe = make_recipe(method, cohort, config)
    if recipe.generate is None:
        raise LrlsError(f"{method.name} generates nothing; go on with `lrls {next_stage(recipe)}`.")
    settings = config.generate.model_dump(mode="json")
    identity = Identity(
        kind=Generated.KIND,
        format_version=FORMAT_VERSIONS[Generated.KIND],
        made_by="generate",
        config=stage_config(method, config) | {"generate": settings},
        seed=config.seed,
        inputs={"cohort": cohort.manifest.digest}
        | ({"registration": registration.manifest.digest} if registration else {}),
    )
    target = config.workspace / method.name / "generated"
    if not force and (done := find_finished(target, identity)):
        return Generated.open(done)
    verify(cohort.folder)
    if registration:
        verify(registration.folder)
        registration.load(recipe.registration_networks)
    device = choose_device(config)
    num_bytes = planned_bytes(cohort, recipe, config)
    print(f"generated.h5 will hold {num_bytes / 1e6:.0f} MB.", flush=True)
    if fault := intake.disk_fault(config.workspace, 2 * num_bytes):
        raise LrlsError(str(fault))
    with new_artifact(target, identity, device=str(device)) as draft:
        writer = _write_paths if isinstance(recipe.generate, PathBankWriter) else _write_propagated
        with h5py.File(draft.folder / "generated.h5", "w") as file:
            writer(file, recipe, cohort, config, device, draft.resume)
        (draft.folder / "qc").mkdir(exist_ok=True)
        _pictures(draft.folder, cohort, recipe, config)
    return Generated.open(draft.result)


def planned_bytes(cohort: Cohort, recipe: Recipe, config: Config) -> int:
    """Size of `generated.h5`."""
    voxels = int(np.prod(cohort.grid.shape))
    label = 1 if cohort.num_classes <= 256 else 2
    if isinstance(recipe.generate, PropagatedLabels):
        return len(cohort.parts["unlabeled"]) * voxels * (2 + label)
    couples = len(cohort.parts["atlases"]) * len(cohort.parts["unlabeled"])
    return voxels * (couples * 8 + config.generate.samples * (2 + label))


def _couples(cohort: Cohort) -> list[tuple[str, str]]:
    return [(atlas, scan) for atlas in cohort.parts["atlases"] for scan in cohort.parts["unlabeled"]]


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


def _write_paths(file: h5py.File, recipe: Recipe, cohort: Cohort, config: Config, device: Device, resume: Path) -> None:
    couples = _couples(cohort)
    images = {case: cohort.image(case) for case in cohort.cases}
    missing = [i for i in range(len(couples)) if not _stored(resume, i).exists()]
    with Progress("generate paths", len(couples), start=len(couples) - len(missing)) as progress:
        for i in missing:
            atlas, scan = (images[case].astype(np.float32) for case in couples[i])
            both = displacements(
                recipe,
                [(atlas, scan), (scan, atlas)],
                [couples[i][1]] * 2,
                spacing_mm=cohort.grid.spacing_mm,
                device=device,
                config=config,
            )
            fields = dict(both)
            path, back = (torch.from_numpy(fields[k])[None] for k in (0, 1))
            moving, fixed = (torch.from_numpy(each)[None, None] for each in (atlas, scan))
            style = warp(fixed, back) - moving
            quality = measure(moving, fixed, path, back)
            _remember(resume, i, {"displacement": path[0].half(), "style": style[0].half(), **quality})
            progress.advance()
    shape = cohort.grid.shape
    group = file.create_group("paths")
    displacement = group.create_dataset("displacement", (len(couples), 3, *shape), "f2", chunks=(1, 3, *shape))
    styles = group.create_dataset("style", (len(couples), 1, *shape), "f2", chunks=(1, 1, *shape))
    rows = []
    for i, (atlas_case, scan_case) in enumerate(couples):
        with np.load(_stored(resume, i)) as stored:
            displacement[i], styles[i] = stored["displacement"], stored["style"]
            rows.append({"atlas": atlas_case, "scan": scan_case} | {name: float(stored[name]) for name in QUALITY})
    _table(file, "paths", rows, config)
    if config.generate.samples:
        finished = list(draw_samples(file, recipe, cohort, config, config.generate.samples))
        group = file.create_group("samples")
        group.create_dataset("image", data=np.stack([s.pop("image") for s in finished]), chunks=(1, 1, *shape))
        group.create_dataset("label", data=np.stack([s.pop("label") for s in finished]), chunks=(1, *shape))
        _table(file, "samples", finished, config)


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
        alpha, beta = (degree(1, generator) for degree in (recipe.generate.space, recipe.generate.style))
        way = alpha * torch.from_numpy(paths["displacement"][space]).float()[None]
        image = torch.from_numpy(cohort.image(atlases[space]).astype(np.float32))[None, None]
        image = warp(image + beta * torch.from_numpy(paths["style"][style]).float(), way)
        label = torch.from_numpy(cohort.label(atlases[space]).astype(np.int16))[None]
        classes = warp_probabilities(one_hot(label, cohort.num_classes), way).argmax(1)
        yield {
            "image": image[0].half().numpy(),
            "label": classes[0].numpy().astype(np.min_scalar_type(cohort.num_classes - 1)),
            "atlas": atlases[space],
            "space": scans[space],
            "style": scans[style],
            "alpha": float(alpha),
            "beta": float(beta),
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
            label = vote(atlases, [fields[k] for k in mine], scan, cohort.num_classes).argmax(0).numpy()
            fixed = torch.from_numpy(scan.astype(np.float32))[None, None]
            qualities = []
            for k in mine:
                moving = torch.from_numpy(pairs[k][0].astype(np.float32))[None, None]
                qualities.append(measure(moving, fixed, torch.from_numpy(fields.pop(k))[None], None))
            quality = {name: float(np.mean([q[name] for q in qualities])) for name in QUALITY}
            label = label.astype(np.min_scalar_type(cohort.num_classes - 1))
            _remember(resume, missing[turn], {"image": scan[None], "label": label, **quality})
            progress.advance()
    group = file.create_group("samples")
    shape = cohort.grid.shape
    rows = []
    images = group.create_dataset("image", (len(scans), 1, *shape), "f2", chunks=(1, 1, *shape))
    labels = group.create_dataset(
        "label", (len(scans), *shape), np.min_scalar_type(cohort.num_classes - 1), chunks=(1, *shape)
    )
    for i, case in enumerate(scans):
        with np.load(_stored(resume, i)) as stored:
            images[i], labels[i] = stored["image"], stored["label"]
            quality = {name: float(stored[name]) for name in QUALITY}
        origin = {"atlas": "+".join(atlas_cases), "space": case, "style": case, "alpha": 1.0, "beta": 1.0}
        rows.append(origin | {"seed": config.seed} | quality)
    _table(file, "samples", rows, config)


def _pictures(folder: Path, cohort: Cohort, recipe: Recipe, config: Config) -> None:
    from stages.pictures import couples_page

    with h5py.File(folder / "generated.h5") as file:
        if isinstance(recipe.generate, PathBankWriter):
            couples = list(draw_samples(file, recipe, cohort, config, 16))
        else:
            stored = file["samples"]
            couples = [
                {"image": stored["image"][i], "label": stored["label"][i], "space": stored["space"].asstr()[i]}
                for i in range(min(16, len(stored["image"])))
            ]
    for couple in couples:
        couple["image"] = couple["image"][0].astype(np.float32)
    couples_page(
        couples, folder / "qc" / "couples.png", structures=cohort.structures, spacing_mm=cohort.grid.spacing_mm
    )
