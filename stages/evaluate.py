"""Stage 5: score a method on held-out scans, in the scans' own space."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch

from stages.answering.answers import AT_ONCE, Answer, Answering, GridScan, atlases_of, registers
from stages.answering.pairs import pairs_asked, score_pairs
from stages.answering.registering import overlay_row, warped_and_change
from stages.answering.scoring import measures_of, reported_as, score, summarize_scores
from stages.artifacts.checked import is_sound, read_checked, read_record, say_damaged, write_checked, write_record
from stages.artifacts.cohort import Cohort, FlatBorder
from stages.artifacts.digests import file_digest
from stages.artifacts.draft import Draft
from stages.artifacts.files import atomic_write_text, fsync
from stages.artifacts.generated import Generated
from stages.artifacts.manifest import Artifact
from stages.artifacts.scores import Scores
from stages.artifacts.sheets import write_sheet
from stages.artifacts.store import make
from stages.config import Config
from stages.data import intake
from stages.data.checks import examine_all, has_label
from stages.data.facts import Known, ScanFacts, decode_label, faults_of, spacing_mm
from stages.data.faults import refuse
from stages.data.labels import class_indices, label_values
from stages.data.own_space import as_label_image, classes_in_own_space
from stages.data.writers import colours_of, write_image
from stages.device import Device, choose_device
from stages.errors import LrlsError
from stages.methods import find_method, plan_of, recipe_of, settings_read
from stages.methods.recipe import Answer as AnswerBy
from stages.parts.colors import chosen_colors
from stages.parts.warps import one_hot
from stages.progress import Progress


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
        round: the round in which the inputs were trained.
        inputs: what was trained, by role; a method without a segmentation network propagates labels.
        pseudo_labels: those that led to the trained network, round by round.
        tell: receives lines for the user.

    Raises:
        LrlsError: the part is empty, a label map is faulty, or nothing was trained.
    """
    method = find_method(method_name)
    answer_by = plan_of(method, config, cohort).answer
    trained = {role: artifact for role, artifact in (inputs or {}).items() if role != "generated"}
    part = config.eval.part
    cases = held_out.parts[part]
    if not cases:
        raise LrlsError(f"data.{part} lists no case; list labelled scans there, or set eval.part.")
    outputs = ["segmentation"] * ("segmentation" in trained) + ["registration"] * registers(answer_by, cohort)
    borders = cohort.flat_borders if answer_by.flat_borders else ()
    for border in borders:
        names = " and ".join(cohort.structures[c - 1] for c in border.classes)
        tell(f"{names} meet in one plane of voxels in the atlases, so they do in the answers.")
    if "segmentation" in outputs and (borders or (answer_by.fuse and "registration" in outputs)):
        outputs.append("network")  # what S says alone
    if not outputs:
        raise LrlsError(f"{method.name} has nothing to score yet; run `lrls train-seg` first.")
    pairs = pairs_asked(config, cases) if "registration" in outputs else {}
    truths = _facts(config, dict.fromkeys(cases, True))
    asked = bool(pseudo_labels) and config.eval.pseudo_labels
    with_labels = [case for case in cohort.parts["unlabeled"] if has_label(config, case)] if asked else []
    checked = _facts(config, dict.fromkeys(with_labels, True))
    if asked and not checked:
        tell("no unlabelled scan has a label map in data.labels: pseudo-labels are not scored")

    def ready() -> None:
        if not any(any(facts.label.classes) for facts in truths.values() if facts.label):
            raise LrlsError(
                f"no label map of data.{part} holds any of the structures; correct their values in structures."
            )

    def write(draft: Draft) -> None:
        device = choose_device(config)
        draft.device = str(device)
        recipe = recipe_of(method, cohort, config)
        recipe.load(trained.values())
        _score_all(draft, cases, truths, outputs, recipe.answer, borders, cohort, held_out, config, device)
        results = [_finished(draft, case) for case in cases]
        draft.scan_s = float(np.mean([result["seconds"] for result in results]).round(4))
        table = pd.DataFrame([row for result in results for row in result["scores"]])
        fields = pd.DataFrame([row for result in results for row in result["registration"]])
        table.to_csv(draft.folder / "scores.csv", index=False, float_format="%.6f")
        if len(fields):
            fields.to_csv(draft.folder / "registration.csv", index=False, float_format="%.6f")
        summary = summarize_scores(table, fields, outputs, config, len(cases))
        summary["flat_borders"] = [[cohort.structures[c - 1] for c in border.classes] for border in borders]
        summary["alignment_fell_back"] = sorted({*cohort.fallen_back(), *held_out.fallen_back()})
        if pairs:
            summary["pairs"] = score_pairs(draft, config, cohort, held_out, recipe.answer, device, truths)
        if pseudo_labels:
            summary["rounds"] = _rounds(draft, pseudo_labels, checked, cohort, config)
        atomic_write_text(draft.folder / "summary.json", json.dumps(summary, indent=1))
        _pictures(draft, table, outputs, cohort, held_out, config)

    return make(
        Scores,
        config.workspace / method.name / Scores.KIND,
        write,
        made_by="eval",
        settings=settings_read(method, config, "eval", round=round) | {"part": part} | reported_as(config) | pairs,
        seed=config.seed,
        round=round,
        inputs={
            "cohort": cohort,
            "held-out": held_out,
            **trained,
            **{f"truth/{case}": facts.digest for case, facts in truths.items()},
            **{f"pseudo-labels/{generated.manifest.identity.round}": generated for generated in pseudo_labels},
            **{f"scan/{case}": facts.digest for case, facts in checked.items()},
        },
        force=force,
        ready=ready,
    )


def _score_all(
    draft: Draft, cases: Sequence[str], truths: Mapping[str, ScanFacts], outputs: list[str], answer_by: AnswerBy,
    borders: Sequence[FlatBorder], cohort: Cohort, held_out: Cohort, config: Config, device: Device,
) -> None:  # fmt: skip
    """Write every scan's label maps, and a record of its scores and files; a resumed run keeps what is as written."""
    missing = [case for case in cases if _left_by_stopped_run(draft, case, "registration" in outputs) is None]
    with Progress(f"score {config.eval.part}", len(cases), start=len(cases) - len(missing)) as progress:
        for case, answered in _predict(missing, outputs, answer_by, borders, cohort, held_out, config, device):
            rows, truth = [], decode_label(config, case, truths[case])
            written = {}
            for output in outputs:
                classes = answered["classes"][output]
                path = _write_label(draft.folder / folder_of(output, outputs), case, classes, held_out, config)
                written[path.relative_to(draft.folder).as_posix()] = file_digest(path)
                rows += score(output, case, truth, classes, spacing_mm(truths[case]), config)
            if answered["field"] is not None:  # for the pictures of the best, median and worst scan
                field = io.BytesIO()
                np.save(field, answered["field"].astype(np.float16))
                write_checked(draft.resume / f"{case}.npy", field.getbuffer())
            result = {"scores": rows, "files": written} | {key: answered[key] for key in ("registration", "seconds")}
            write_record(draft.resume / f"{case}.json", result)
            progress.advance()


def _left_by_stopped_run(draft: Draft, case: str, registers: bool) -> dict[str, Any] | None:
    """The record of a scan; None: it, or a file that it names, is missing or damaged."""
    result = read_record(draft.resume / f"{case}.json", f"case {case}")
    if result is None or "seconds" not in result:  # which earlier versions did not write
        return None
    if registers and not is_sound(draft.resume / f"{case}.npy", f"case {case}"):
        return None
    for name, digest in result["files"].items():
        file = draft.folder / name
        if not file.is_file() or file_digest(file) != digest:
            say_damaged(f"case {case}")
            return None
    return result


def _finished(draft: Draft, case: str) -> dict[str, Any]:
    result = read_record(draft.resume / f"{case}.json", f"case {case}")
    assert result is not None
    return result


def _facts(config: Config, labelled: dict[str, bool]) -> dict[str, ScanFacts]:
    """Facts of scans with label maps; unknown scans are decoded, one at a time.

    Raises:
        LrlsError: the first fault, with the number of further ones.
    """
    facts = dict(examine_all(config, Known(config).look(labelled)))
    refuse([fault for case in labelled for fault in faults_of(config, facts[case])])
    return facts


def _rounds(
    draft: Draft, pseudo_labels: Sequence[Generated], scans: dict[str, ScanFacts], cohort: Cohort, config: Config
) -> list[dict[str, float]]:
    """How pseudo-labels changed from round to round, as table and picture: acceptance, and DSC where asked for."""
    from stages.pictures import rounds_page

    rows: list[dict[str, float]] = []
    of_atlas = float(np.mean([(cohort.label(atlas) > 0).sum() for atlas in cohort.parts["atlases"]]))
    dice = _pseudo_dice(pseudo_labels, scans, cohort, config)
    for place, generated in enumerate(pseudo_labels):
        row = {"round": generated.manifest.identity.round} | generated.screening()
        row["volume_of_atlas"] = row.pop("structure_voxels") / of_atlas
        if place:
            row["changed_voxels"] = generated.changed(pseudo_labels[place - 1])
        rows.append(row | ({"dsc": float(np.mean(dice[place]))} if dice[place] else {}))
    pd.DataFrame(rows).to_csv(draft.folder / "rounds.csv", index=False, float_format="%.6f")
    rounds_page(rows, draft.folder / "rounds.png")
    return rows


def _pseudo_dice(
    pseudo_labels: Sequence[Generated], scans: dict[str, ScanFacts], cohort: Cohort, config: Config
) -> list[list[float]]:
    """DSC of every round's pseudo-labels by scan; scans without structures in truth and pseudo-label are left out."""
    dice: list[list[float]] = [[] for _ in pseudo_labels]
    for case, facts in scans.items():
        truth = decode_label(config, case, facts)
        for place, generated in enumerate(pseudo_labels):
            label = torch.from_numpy(generated.pseudo_label(case).astype(np.int16))
            whole = one_hot(label[None], cohort.num_classes)[0]
            classes = classes_in_own_space(whole, cohort.transform(case), cohort.grid)
            rows = score("pseudo-labels", case, truth, classes, spacing_mm(facts), config)
            dice[place] += [float(np.mean([row["dsc"] for row in rows]))] if rows else []
    return dice


def folder_of(output: str, outputs: list[str]) -> str:
    """The main output's label maps are in `labels`."""
    return "labels" if output == outputs[0] else f"labels-{output}"


def _predict(
    cases: list[str],
    outputs: list[str],
    answer_by: AnswerBy,
    borders: Sequence[FlatBorder],
    cohort: Cohort,
    held_out: Cohort,
    config: Config,
    device: Device,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(case, {"classes": {output: label map in own space}, "registration": measures, "field": of the first atlas,
    "seconds": wall time of the answer, from the scan on the grid to label maps at its own voxels})."""
    if "segmentation" not in outputs:
        answer_by = replace(answer_by, network=None)
    answering = Answering(
        answer_by, cohort.grid, cohort.num_classes, atlases_of(cohort), borders, "registration" in outputs, config,
        device,
    )  # fmt: skip
    began = time.monotonic()
    for scan, answer in _answers(cases, answering, held_out):
        classes = {}
        if "segmentation" in outputs:
            classes["segmentation"] = answering.in_own_space(answer, scan.record)
        if answer.votes is not None:
            classes["registration"] = classes_in_own_space(answer.votes, scan.record, cohort.grid)
        if "network" in outputs:
            assert answer.network is not None
            classes["network"] = classes_in_own_space(answer.network, scan.record, cohort.grid)
        seconds, measures = time.monotonic() - began, []
        for atlas, field in zip(answering.atlases, answer.fields, strict=False):
            measures.append({"case": scan.case, "atlas": atlas.case} | measures_of(field))
        first = answer.fields[0] if answer.fields else None
        yield scan.case, {"classes": classes, "registration": measures, "field": first, "seconds": seconds}
        began = time.monotonic()


def _answers(cases: Sequence[str], answering: Answering, held_out: Cohort) -> Iterator[tuple[GridScan, Answer]]:
    """Scans and answers in order, `AT_ONCE` at a time, so that memory does not grow with their number."""
    for start in range(0, len(cases), AT_ONCE):
        some = cases[start : start + AT_ONCE]
        scans = [GridScan(case, held_out.image(case), held_out.transform(case)) for case in some]
        yield from zip(scans, answering.answers(scans), strict=True)


def _write_label(folder: Path, case: str, classes: np.ndarray, held_out: Cohort, config: Config) -> Path:
    """Write a label map, and wait until it is on the disk: the record that comes next says that it is."""
    folder.mkdir(exist_ok=True)
    image, path = as_label_image(label_values(classes, config), held_out.transform(case)), folder / f"{case}.nii.gz"
    write_image(image, path)
    fsync(folder)
    return path


def _pictures(
    draft: Draft, table: pd.DataFrame, outputs: list[str], cohort: Cohort, held_out: Cohort, config: Config
) -> None:
    from stages.pictures import best_median_worst, predictions_page, registration_overlay, score_boxes

    folder = draft.folder
    main = table[table["output"] == outputs[0]]
    score_boxes(
        {name: main[main["structure"] == name]["dsc"].tolist() for name in config.reported()}, folder / "dsc.png"
    )
    dice = {str(case): float(value) for case, value in main.groupby("case", sort=False)["dsc"].mean().items()}
    chosen = best_median_worst(dice)
    rows = []
    for rank, case in chosen.items():
        scan = intake.read_scan(config, case, label=True)
        stored = intake.read_voxels(folder / "labels" / f"{case}.nii.gz")
        oriented = [sitk.DICOMOrient(volume, "LPS") for volume in (scan.image, scan.label, stored)]
        image, truth, prediction = (sitk.GetArrayFromImage(volume) for volume in oriented)
        rows.append(
            {
                "case": case,
                "dice": dice[case],
                "image": image,
                "truth": class_indices(truth, config, case),
                "prediction": class_indices(prediction, config, case),
                "spacing_mm": oriented[0].GetSpacing()[::-1],
                "rank": rank,
            }
        )
    with chosen_colors(colours_of(config.structures, config.colours)):
        predictions_page(rows, folder / "predictions.png", structures=list(config.structures))
    if "registration" in outputs:
        atlas = cohort.parts["atlases"][0]
        moving = (cohort.image(atlas), cohort.label(atlas))
        overlay = []
        for case in chosen.values():
            data = read_checked(draft.resume / f"{case}.npy")
            assert data is not None
            field = np.load(io.BytesIO(data)).astype(np.float32)
            overlay.append(overlay_row(case, moving, held_out.image(case), field, cohort))
        with chosen_colors(colours_of(config.structures, config.colours)):
            registration_overlay(overlay, folder / "registration.png", structures=cohort.structures)
        _sheets(draft, cohort, held_out.parts[config.eval.part])


def _sheets(draft: Draft, cohort: Cohort, cases: Sequence[str]) -> None:
    """The first atlas warped to every scan, and how its volume changes, for `lrls report`; pictures, not data."""
    atlas = cohort.image(cohort.parts["atlases"][0])
    for case in cases:
        if (data := read_checked(draft.resume / f"{case}.npy")) is not None:
            warped, volume_change = warped_and_change(atlas, np.load(io.BytesIO(data)).astype(np.float32))
            write_sheet(draft.folder / "warped" / f"{case}.png", warped)
            write_sheet(draft.folder / "volume-change" / f"{case}.png", volume_change)
