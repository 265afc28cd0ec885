"""Learning what a method's measures of quality say of DSC, on generated couples; see `stages.answering.quality`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

from stages.answering.answers import GridScan, atlases_of
from stages.answering.model import Model, model_of
from stages.answering.quality import LIKE_ANATOMY, LIKE_SCANS, Damage, fit, folding_of, measure
from stages.artifacts.calibration import Calibrated
from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.store import FORMAT_VERSIONS, Identity, atomic_write_text, find_finished, latest, new_artifact
from stages.config import Config
from stages.errors import LrlsError
from stages.generate import draw_samples
from stages.methods import find_method
from stages.methods.recipe import PathBankWriter, Recipe, SampledScans, WarpedAtlases
from stages.parts.batches.space_style import Always
from stages.parts.metrics import dice_per_class
from stages.parts.warps import warp, warp_label
from stages.progress import Progress
from stages.train_reg import make_recipe, stage_config
from stages.workflow import Made

COUPLES = 30  # a third of them as they are, the others damaged


def calibrate(
    made: Made,
    config: Config,
    method_name: str,
    *,
    network_only: bool = False,
    couples: int = COUPLES,
    force: bool = False,
) -> Calibrated:
    """Answer couples whose label is known, sound and damaged ones, and learn what the measures say of their DSC.

    Args:
        made: see `workflow.trained`.
        network_only: as of `model_of`: the answer, and so what tells of its quality, is another one.
        couples: how many; up to half as many unlabelled scans say what is typical of scans.
    """
    method, cohort = find_method(method_name), made.cohort
    recipe = make_recipe(method, cohort, config)
    inputs = {"registration": made.registration, "generated": made.generated, "segmentation": made.segmentation}
    identity = Identity(
        kind=Calibrated.KIND,
        format_version=FORMAT_VERSIONS[Calibrated.KIND],
        made_by="calibrate",
        config=stage_config(method, config, answers=True) | {"couples": couples, "network_only": network_only},
        seed=config.seed,
        round=made.round,
        inputs={"cohort": cohort.manifest.digest}
        | {role: each.manifest.digest for role, each in inputs.items() if each},
    )
    target = config.workspace / method.name / "calibration"
    if not force and (done := find_finished(target, identity)):
        return Calibrated.open(done)
    model = model_of(made, config, method_name, network_only=network_only)
    with new_artifact(target, identity, device=str(model.answering().device)) as draft:
        _calibrate(model, cohort, made_couples(cohort, recipe, made.generated, config, couples), draft.folder)
    return Calibrated.open(draft.result)


def newest_calibration(
    made: Made, config: Config, method_name: str, *, network_only: bool = False
) -> Calibrated | None:
    """The newest calibration of what was trained, of however many couples; None: there is none."""
    settings = stage_config(find_method(method_name), config, answers=True) | {"network_only": network_only}
    made_from = {"cohort": made.cohort.manifest}
    for role, each in (("registration", made.registration), ("segmentation", made.segmentation)):
        if each:
            made_from[role] = each.manifest
    try:
        folder = config.workspace / method_name / "calibration"
        found = latest(folder, kind=Calibrated.KIND, made_from=made_from, settings=settings, round=made.round)
        return Calibrated.open(found)
    except LrlsError:
        return None


def calibrated_model(made: Made, config: Config, method_name: str, *, network_only: bool = False) -> Model:
    """`model_of`, with the newest calibration where there is one."""
    model = model_of(made, config, method_name, network_only=network_only)
    found = newest_calibration(made, config, method_name, network_only=network_only)
    return replace(model, calibration=found.read()) if found else model


Couple = tuple[np.ndarray, np.ndarray]


def made_couples(
    cohort: Cohort, recipe: Recipe, generated: Generated | None, config: Config, count: int
) -> list[Couple]:
    """Images (D, H, W) in [0, 1] with true labels (class indices): what the method generates, else augmented atlases.

    Scans with propagated labels or pseudo-labels are left out: those labels are no truth.
    """
    if generated and isinstance(recipe.generate, PathBankWriter):
        # All the way to the scans' shapes: what stays near the atlas is easier than any scan is.
        there = replace(recipe, generate=replace(recipe.generate, space=Always(1.0)))
        with h5py.File(generated.folder / "generated.h5") as file:
            drawn = list(draw_samples(file, there, cohort, config, count))
        return [(each["image"][0].astype(np.float32), each["label"]) for each in drawn]
    if generated and isinstance(recipe.generate, WarpedAtlases | SampledScans) and (stored := generated.samples()):
        places = np.arange(count) % len(stored)
        return [(stored[int(k)].image[0].float().numpy(), stored[int(k)].label.numpy()) for k in places]
    labelled = atlases_of(cohort) or atlases_of(cohort, "supervised")
    assert LIKE_ANATOMY is not None
    generator = torch.Generator().manual_seed(config.seed)
    found = []
    for k in range(count):
        atlas = labelled[k % len(labelled)]
        field = LIKE_ANATOMY.displacement(1, cohort.grid.shape, cohort.grid.spacing_mm, generator)
        moved = warp(torch.from_numpy(atlas.image.astype(np.float32))[None, None], field)[0, 0].numpy()
        classes = warp_label(torch.from_numpy(atlas.label.astype(np.int16))[None], field)[0].numpy()
        found.append((moved, classes))
    return found


def _calibrate(model: Model, cohort: Cohort, couples: list[Couple], folder: Path) -> None:
    answering, template, spacing_mm = model.answering(), model.template(), model.grid.spacing_mm
    num_classes = answering.num_classes
    scans, labels, about = [], [], []
    for k, (made, classes) in enumerate(couples):
        generator = torch.Generator().manual_seed(model.config.seed * 1_000_003 + k)
        image = LIKE_SCANS(torch.from_numpy(made)[None, None], generator).clamp(0, 1)
        label = torch.from_numpy(classes.astype(np.int16))[None]
        kind, severity = "none", 0.0
        if k % 3:
            kind = Damage.KINDS[k // 3 * 2 % 4 + k % 3 - 1]
            severity = float(torch.rand(1, generator=generator)) * 0.8 + 0.2
            image, label = Damage(kind, severity)(image, label, spacing_mm, generator)
        case = f"couple_{k:03d}"
        scans.append(GridScan(case, image[0, 0].numpy().astype(np.float16), {}))
        labels.append(label[0].long())
        about.append({"couple": case, "damage": kind, "severity": severity})
    unlabeled = cohort.parts.get("unlabeled", [])
    step = max(1, -(-len(unlabeled) // max(1, len(couples) // 2)))
    real = [GridScan(case, cohort.image(case), {}) for case in unlabeled[::step]]
    undamaged = [row["damage"] == "none" for row in about]
    counts = [torch.bincount(t.flatten(), minlength=num_classes)[1:].double().numpy() for t in labels]
    volumes = np.median([c for c, good in zip(counts, undamaged, strict=True) if good], axis=0).tolist()
    measures, dice, foldings = [], [], []
    with Progress("calibrate", len(scans) + len(real)) as progress:
        for k, answer in enumerate(answering.answers([*scans, *real])):
            scan = [*scans, *real][k]
            measures.append(measure(answering, scan, answer, template, volumes))
            if k < len(scans):
                found = dice_per_class(answer.probabilities.argmax(0).cpu(), labels[k], num_classes)
                dice.append(float(found[~found.isnan()].mean()) if not found.isnan().all() else 0.0)
            elif (folding := folding_of(answer)) is not None:
                foldings.append(folding)
            progress.advance()
    sound = [scan.image for scan, good in zip(scans, undamaged, strict=True) if good]
    calibration = fit(
        measures[: len(scans)], dice, undamaged, measures[len(scans) :],
        [scan.image for scan in real] or sound, foldings, volumes,
    )  # fmt: skip
    rows = [row | found | {"dsc": d} for row, found, d in zip(about, measures, dice, strict=False)]
    pd.DataFrame(rows).to_csv(folder / "couples.csv", index=False, float_format="%.6f")
    atomic_write_text(folder / "calibration.json", json.dumps(calibration.model_dump(mode="json"), indent=1))
