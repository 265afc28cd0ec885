"""Registration scored pair by pair, as the papers do, beside the vote of all atlases.

pairs.csv             moving, fixed, dsc, hd95_mm, assd_mm, missed, folding_fraction, jacobian_std, sd_log_jacobian
pair-structures.csv   moving, fixed, structure, dsc, hd95_mm, assd_mm, missed

The moving scan's label map is warped as probabilities and compared with the fixed scan's at its own voxels, as votes
are: with one atlas, its pairs have the scores of the vote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from stages.answering.answers import Atlas, atlases_of
from stages.answering.registering import displacements
from stages.answering.scoring import MEASURES, measures_of, score
from stages.artifacts.checked import read_record, write_record
from stages.artifacts.cohort import Cohort
from stages.artifacts.draft import Draft
from stages.config import Config
from stages.data.facts import ScanFacts, decode_label, spacing_mm
from stages.data.grid import label_to_grid
from stages.data.own_space import as_label_image, classes_in_own_space
from stages.device import Device
from stages.errors import LrlsError
from stages.methods.recipe import Answer as AnswerBy
from stages.parts.statistics import crossed_interval, summarize
from stages.parts.warps import one_hot, warp_probabilities
from stages.progress import Progress

DISTANCES = ("dsc", "hd95_mm", "assd_mm")


def pairs_asked(config: Config, cases: Sequence[str]) -> dict[str, Any]:
    """What scores depend on where pairs are asked for; empty: they are not.

    Args:
        cases: of the part that is scored.

    Raises:
        LrlsError: there is nothing to pair, or fewer scans than should stand still.
    """
    moving, fixed = config.eval.registration_pairs, config.eval.fixed_scans
    if moving == "none":
        return {}
    part = f"data.{config.eval.part} lists {len(cases)}"
    if moving == "test" and len(cases) < 2:
        raise LrlsError(f"eval.registration_pairs: test pairs scans with one another, and {part}; list more.")
    if fixed is not None and fixed > len(cases):
        raise LrlsError(f"eval.fixed_scans: found {fixed}, but {part}; list more, or set it lower.")
    return {"registration_pairs": moving, "fixed_scans": fixed}


def score_pairs(
    draft: Draft, config: Config, cohort: Cohort, held_out: Cohort, answer_by: AnswerBy, device: Device,
    truths: Mapping[str, ScanFacts],
) -> dict[str, Any]:  # fmt: skip
    """Register and score every pair, write both tables, and return their summary; a resumed run keeps finished scans.

    Args:
        answer_by: its trained networks, or classical method, register.
        truths: facts of the label maps of the held-out scans.
    """
    cases = list(truths)
    fixed = cases[: config.eval.fixed_scans]
    records = draft.resume / "pairs"
    records.mkdir(exist_ok=True)
    missing = [case for case in fixed if read_record(records / f"{case}.json", f"the pairs of case {case}") is None]
    with Progress("score pairs", len(fixed), start=len(fixed) - len(missing)) as progress:
        moving = _moving(config, cohort, held_out, truths) if missing else []
        for case in missing:
            rows = list(_rows(case, moving, config, cohort, held_out, answer_by, device, truths[case]))
            write_record(records / f"{case}.json", rows)
            progress.advance()
    rows = [row for case in fixed for row in read_record(records / f"{case}.json", f"the pairs of case {case}") or []]
    keys = ["moving", "fixed"]
    structures = pd.DataFrame(
        [dict(zip(keys, row["pair"], strict=True)) | s for row in rows for s in row["structures"]],
        columns=[*keys, "structure", *DISTANCES, "missed"],
    )
    structures.to_csv(draft.folder / "pair-structures.csv", index=False, float_format="%.6f")
    fields = pd.DataFrame([dict(zip(keys, row["pair"], strict=True)) | row["measures"] for row in rows])
    means = structures.groupby(keys, sort=False)[[*DISTANCES, "missed"]].agg(
        dict.fromkeys(DISTANCES, "mean") | {"missed": "sum"}
    )
    table = fields.join(means, on=keys)[[*keys, *DISTANCES, "missed", *MEASURES]]
    table.to_csv(draft.folder / "pairs.csv", index=False, float_format="%.6f")
    return _summary(table, config)


def _moving(
    config: Config, cohort: Cohort, held_out: Cohort, truths: Mapping[str, ScanFacts]
) -> Sequence[Atlas]:  # fmt: skip
    """The scans that move, with labels on the grid."""
    if config.eval.registration_pairs == "atlases":
        return atlases_of(cohort)
    scans = []
    for case, facts in truths.items():
        classes, record = decode_label(config, case, facts), held_out.transform(case)
        label = label_to_grid(as_label_image(classes, record), classes, cohort.num_classes, record, cohort.grid)
        scans.append(Atlas(case, held_out.image(case), label))
    return scans


def _rows(
    case: str, moving: Sequence[Atlas], config: Config, cohort: Cohort, held_out: Cohort, answer_by: AnswerBy,
    device: Device, facts: ScanFacts,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The scores of every scan that moves to a fixed one, in order."""
    others = [scan for scan in moving if scan.case != case]
    image, record, truth = held_out.image(case), held_out.transform(case), decode_label(config, case, facts)
    fields: dict[int, np.ndarray] = dict(
        displacements(
            answer_by.registers, [(scan.image, image) for scan in others], [case] * len(others),
            spacing_mm=cohort.grid.spacing_mm, device=device, config=config,
        )
    )  # fmt: skip
    for place, scan in enumerate(others):
        label = torch.from_numpy(scan.label.astype(np.int16))[None]
        field = torch.from_numpy(fields[place])[None]
        warped = warp_probabilities(one_hot(label, cohort.num_classes), field)[0]
        classes = classes_in_own_space(warped, record, cohort.grid)
        scores = score("pair", case, truth, classes, spacing_mm(facts), config)
        yield {
            "pair": [scan.case, case],
            "structures": [{key: row[key] for key in ("structure", *DISTANCES, "missed")} for row in scores],
            "measures": measures_of(fields[place]),
        }


def _summary(table: pd.DataFrame, config: Config) -> dict[str, Any]:
    """Means over pairs; the interval of the DSC draws moving and fixed scans anew."""
    low, high = crossed_interval(table.pivot(index="moving", columns="fixed", values="dsc").to_numpy())
    numbers = {name: summarize(table[name].dropna().tolist()) for name in (*DISTANCES, *MEASURES)}
    numbers["dsc"] |= {"low": low, "high": high}
    return {"moving": config.eval.registration_pairs, "pairs": len(table), **numbers}
