"""Stage 5: score a method on held-out scans, in the scans' own space."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch

from stages.answering.answers import Answering, GridScan, atlases_of, registers
from stages.answering.flat_borders import FlatBorder, find_flat_borders
from stages.answering.registering import overlay_row
from stages.artifacts.cohort import Cohort
from stages.artifacts.files import atomic_write_text
from stages.artifacts.generated import Generated
from stages.artifacts.manifest import Artifact, Identity
from stages.artifacts.scores import Scores
from stages.artifacts.store import Draft, find_finished, new_artifact, verify
from stages.config import Config
from stages.data import intake
from stages.data.own_space import as_label_image, classes_in_own_space
from stages.device import Device, choose_device
from stages.errors import LrlsError
from stages.methods import find_method, plan_of, recipe_of, settings_read
from stages.methods.recipe import Recipe
from stages.parts.metrics import folding_fraction, jacobian_determinant, jacobian_std, score_structures, sd_log_jacobian
from stages.parts.statistics import summarize
from stages.parts.warps import one_hot
from stages.progress import Progress

MEASURES = ("folding_fraction", "jacobian_std", "sd_log_jacobian")


def evaluate(
    cohort: Cohort,
    held_out: Cohort,
    config: Config,
    method_name: str,
    *,
    round: int = 0,
    inputs: Mapping[str, Artifact] | None = None,
    pseudo_labels: Sequence[Generated] = (),
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> Scores:
    """Score what a method learned.

    Args:
        cohort: what it learned from; its atlases are propagated.
        held_out: scans of the part to score, on the same grid.
        round: that they were trained in.
        inputs: what was trained, by role; a method without a segmentation network propagates labels.
        pseudo_labels: that led to it, round by round.
        tell: receives lines for the user.

    Raises:
        LrlsError: the part is empty, a label map is faulty, or nothing was trained.
    """
    method = find_method(method_name)
    recipe = plan_of(method, config)
    trained = {role: artifact for role, artifact in (inputs or {}).items() if role != "generated"}
    part = config.eval.part
    cases = held_out.parts[part]
    if not cases:
        raise LrlsError(f"data.{part} lists no case; list labelled scans there, or set eval.part.")
    outputs = ["segmentation"] * ("segmentation" in trained) + ["registration"] * registers(recipe, cohort)
    borders = flat_borders(cohort, config) if recipe.answer.flat_borders else []
    for border in borders:
        names = " and ".join(cohort.structures[c - 1] for c in border.classes)
        tell(f"{names} meet in one plane of voxels in the atlases, so they do in the answers.")
    if "segmentation" in outputs and (borders or (recipe.answer.fuse and "registration" in outputs)):
        outputs.append("network")  # what S says alone
    if not outputs:
        raise LrlsError(f"{method.name} has nothing to score yet; run `lrls train-seg` first.")
    scans = {case: intake.read_scan(config, case, label=True) for case in cases}
    truths = {case: intake.scan_digest(scan) for case, scan in scans.items()}
    made = {"cohort": cohort, "held-out": held_out, **trained}
    asked = bool(pseudo_labels) and config.eval.pseudo_labels
    checked = _unlabeled_with_labels(cohort, config) if asked else {}
    if asked and not checked:
        tell("no unlabelled scan has a label map in data.labels: pseudo-labels are not scored")
    identity = Identity(
        kind=Scores.KIND,
        format_version=Scores.FORMAT,
        made_by="eval",
        config=settings_read(method, config, "eval", round=round) | {"part": part},
        seed=config.seed,
        round=round,
        inputs={role: each.manifest.digest for role, each in made.items()}
        | {f"truth/{case}": digest for case, digest in truths.items()}
        | {f"pseudo-labels/{each.manifest.identity.round}": each.manifest.digest for each in pseudo_labels}
        | {f"scan/{case}": intake.scan_digest(scan) for case, scan in checked.items()},
    )
    target = config.workspace / method.name / "scores"
    if not force and (done := find_finished(target, identity)):
        return Scores.open(done)
    if not any(_classes(config, scan).any() for scan in scans.values()):
        raise LrlsError(f"no label map of data.{part} holds any of the structures; correct their values in structures.")
    for artifact in made.values():
        verify(artifact.folder)
    recipe = recipe_of(method, cohort, config)
    recipe.load(trained.values())
    device = choose_device(config)
    with new_artifact(target, identity) as draft:
        draft.device = str(device)
        files = [".json", ".npy"] if "registration" in outputs else [".json"]
        done_cases = {case for case in cases if all((draft.resume / f"{case}{end}").exists() for end in files)}
        missing = [case for case in cases if case not in done_cases]
        with Progress(f"score {part}", len(cases), start=len(done_cases)) as progress:
            for case, found in _predict(missing, outputs, recipe, borders, cohort, held_out, config, device):
                rows = []
                for output in outputs:
                    classes = found["classes"][output]
                    _write_label(draft.folder / folder_of(output, outputs), case, classes, held_out, config)
                    rows += _score(output, case, scans[case], classes, config)
                if found["field"] is not None:  # for the pictures of the best, median and worst scan
                    np.save(draft.resume / f"{case}.npy", found["field"].astype(np.float16))
                result = {"scores": rows, "registration": found["registration"]}
                atomic_write_text(draft.resume / f"{case}.json", json.dumps(result))
                progress.advance()
        results = [json.loads((draft.resume / f"{case}.json").read_text()) for case in cases]
        table = pd.DataFrame([row for result in results for row in result["scores"]])
        fields = pd.DataFrame([row for result in results for row in result["registration"]])
        table.to_csv(draft.folder / "scores.csv", index=False, float_format="%.6f")
        if len(fields):
            fields.to_csv(draft.folder / "registration.csv", index=False, float_format="%.6f")
        summary = summarize_scores(table, fields, outputs, config, len(cases))
        summary["flat_borders"] = [[cohort.structures[c - 1] for c in border.classes] for border in borders]
        summary["alignment_fell_back"] = sorted({*cohort.fallen_back(), *held_out.fallen_back()})
        atomic_write_text(draft.folder / "summary.json", json.dumps(summary, indent=1))
        if pseudo_labels:
            summary["rounds"] = _rounds(draft, pseudo_labels, checked, cohort, config)
            atomic_write_text(draft.folder / "summary.json", json.dumps(summary, indent=1))
        _pictures(draft, table, outputs, cohort, held_out, config, scans)
    return Scores.open(draft.result)


def flat_borders(cohort: Cohort, config: Config) -> list[FlatBorder]:
    """Borders that all labelled scans of the cohort draw as one plane of voxels."""
    scans = (
        intake.read_scan(config, case, label=True)
        for part in ("atlases", "supervised")
        for case in cohort.parts.get(part, [])
    )
    return find_flat_borders((_classes(config, scan), scan.image.GetDirection()) for scan in scans)


def _unlabeled_with_labels(cohort: Cohort, config: Config) -> dict[str, intake.Scan]:
    """The scans learned from without labels, of those that do have a label map; to score pseudo-labels with."""
    folders, found = intake.sub_folders(config, config.data.labels), {}
    for case in cohort.parts["unlabeled"]:
        try:
            intake.find_file(folders, case, "label map")
        except intake.IntakeError:
            continue
        found[case] = intake.read_scan(config, case, label=True)
    return found


def _rounds(
    draft: Draft, pseudo_labels: Sequence[Generated], scans: dict[str, intake.Scan], cohort: Cohort, config: Config
) -> list[dict[str, float]]:
    """How pseudo-labels changed by round, as table and picture: what was accepted, and the DSC where asked for."""
    from stages.pictures import rounds_page

    rows: list[dict[str, float]] = []
    of_atlas = float(np.mean([(cohort.label(atlas) > 0).sum() for atlas in cohort.parts["atlases"]]))
    for before, generated in zip((None, *pseudo_labels), pseudo_labels, strict=False):
        row = {"round": generated.manifest.identity.round} | generated.screening()
        row["volume_of_atlas"] = row.pop("structure_voxels") / of_atlas
        if before:
            row["changed_voxels"] = generated.changed(before)
        dice = []
        for case, scan in scans.items():
            label = torch.from_numpy(generated.pseudo_label(case).astype(np.int16))
            whole = one_hot(label[None], cohort.num_classes)[0]
            classes = classes_in_own_space(whole, cohort.transform(case), cohort.grid)
            found = [each["dsc"] for each in _score("pseudo-labels", case, scan, classes, config)]
            dice += [float(np.mean(found))] if found else []  # nothing to find in that scan, and nothing found
        rows.append(row | ({"dsc": float(np.mean(dice))} if dice else {}))
    pd.DataFrame(rows).to_csv(draft.folder / "rounds.csv", index=False, float_format="%.6f")
    rounds_page(rows, draft.folder / "rounds.png")
    return rows


def folder_of(output: str, outputs: list[str]) -> str:
    """The main output's label maps are in `labels`."""
    return "labels" if output == outputs[0] else f"labels-{output}"


def _predict(
    cases: list[str],
    outputs: list[str],
    recipe: Recipe,
    borders: list[FlatBorder],
    cohort: Cohort,
    held_out: Cohort,
    config: Config,
    device: Device,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(case, {"classes": {output: label map in own space}, "registration": measures, "field": of the first atlas})."""
    answer_by = recipe.answer if "segmentation" in outputs else replace(recipe.answer, network=None)
    answering = Answering(
        answer_by,
        cohort.grid,
        cohort.num_classes,
        atlases_of(cohort),
        borders,
        "registration" in outputs,
        config,
        device,
    )
    scans = [GridScan(case, held_out.image(case), held_out.transform(case)) for case in cases]
    for scan, answer in zip(scans, answering.answers(scans), strict=True):
        classes = {}
        if "segmentation" in outputs:
            classes["segmentation"] = answering.in_own_space(answer, scan.record)
        if answer.votes is not None:
            classes["registration"] = classes_in_own_space(answer.votes, scan.record, cohort.grid)
        if "network" in outputs:
            assert answer.network is not None
            classes["network"] = classes_in_own_space(answer.network, scan.record, cohort.grid)
        measures = []
        for atlas, field in zip(answering.atlases, answer.fields, strict=False):
            jacobian = jacobian_determinant(torch.from_numpy(field)[None])
            values = (folding_fraction(jacobian), jacobian_std(jacobian), sd_log_jacobian(jacobian))
            measured = {name: float(value[0]) for name, value in zip(MEASURES, values, strict=True)}
            measures.append({"case": scan.case, "atlas": atlas.case} | measured)
        first = answer.fields[0] if answer.fields else None
        yield scan.case, {"classes": classes, "registration": measures, "field": first}


def _write_label(folder: Path, case: str, classes: np.ndarray, held_out: Cohort, config: Config) -> None:
    folder.mkdir(exist_ok=True)
    image = as_label_image(intake.label_values(classes, config), held_out.transform(case))
    sitk.WriteImage(image, str(folder / f"{case}.nii.gz"), useCompression=True)


def _classes(config: Config, scan: intake.Scan) -> np.ndarray:
    assert scan.label is not None
    return intake.class_indices(sitk.GetArrayViewFromImage(scan.label), config, scan.case)


def _score(output: str, case: str, scan: intake.Scan, classes: np.ndarray, config: Config) -> list[dict[str, Any]]:
    truth = _classes(config, scan)
    names = list(config.structures)
    found = score_structures(truth, classes, num_classes=len(names) + 1, spacing_mm=scan.image.GetSpacing()[::-1])
    return [
        {"output": output, "case": case, "structure": names[s.class_index - 1], "dsc": s.dice, "hd95_mm": s.hd95_mm,
         "assd_mm": s.assd_mm, "missed": int(s.missed)}
        for s in found
    ]  # fmt: skip


def summarize_scores(
    table: pd.DataFrame, fields: pd.DataFrame, outputs: list[str], config: Config, num_scans: int
) -> dict[str, Any]:
    """A scan's score is the mean of its structures, a method's the mean of its scans."""
    summary: dict[str, Any] = {"part": config.eval.part, "scans": num_scans, "outputs": {}}
    for output in outputs:
        rows = table[table["output"] == output]
        by_scan = rows.groupby("case", sort=False)[["dsc", "hd95_mm", "assd_mm"]].mean()
        per_structure = {
            name: {"dsc": float(own["dsc"].mean()), "hd95_mm": float(own["hd95_mm"].mean()),
                   "assd_mm": float(own["assd_mm"].mean()), "missed": int(own["missed"].sum()), "scored": len(own)}
            for name in config.structures
            if len(own := rows[rows["structure"] == name])
        }  # fmt: skip
        summary["outputs"][output] = {
            **{column: summarize(by_scan[column].tolist()) for column in by_scan},
            "worst_scan": str(by_scan["dsc"].idxmin()),
            "missed": int(rows["missed"].sum()),
            "absent_in_both": len(config.structures) * num_scans - len(rows),
            "structures": per_structure,
        }
    if len(fields):
        summary["registration"] = {name: summarize(fields[name].tolist()) for name in MEASURES}
    return summary


def _pictures(
    draft: Draft, table: pd.DataFrame, outputs: list[str], cohort: Cohort, held_out: Cohort,
    config: Config, scans: dict[str, intake.Scan],
) -> None:  # fmt: skip
    from stages.pictures import best_median_worst, predictions_page, registration_overlay, score_boxes

    folder = draft.folder
    main = table[table["output"] == outputs[0]]
    score_boxes(
        {name: main[main["structure"] == name]["dsc"].tolist() for name in config.structures}, folder / "dsc.png"
    )
    dice = {str(case): float(value) for case, value in main.groupby("case", sort=False)["dsc"].mean().items()}
    chosen = best_median_worst(dice)
    rows = []
    for rank, case in chosen.items():
        scan = scans[case]
        stored = sitk.ReadImage(str(folder / "labels" / f"{case}.nii.gz"))
        oriented = [sitk.DICOMOrient(each, "LPS") for each in (scan.image, scan.label, stored)]
        image, truth, prediction = (sitk.GetArrayFromImage(each) for each in oriented)
        rows.append(
            {
                "case": case,
                "dice": dice[case],
                "image": image,
                "truth": intake.class_indices(truth, config, case),
                "prediction": intake.class_indices(prediction, config, case),
                "spacing_mm": oriented[0].GetSpacing()[::-1],
                "rank": rank,
            }
        )
    predictions_page(rows, folder / "predictions.png", structures=list(config.structures))
    if "registration" in outputs:
        atlas = cohort.parts["atlases"][0]
        moving = (cohort.image(atlas), cohort.label(atlas))
        overlay = []
        for case in chosen.values():
            field = np.load(draft.resume / f"{case}.npy").astype(np.float32)
            overlay.append(overlay_row(case, moving, held_out.image(case), field, cohort))
        registration_overlay(overlay, folder / "registration.png", structures=cohort.structures)
