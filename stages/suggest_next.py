"""Which of the unlabelled scans to label, or whose answer to correct, next.

A trained method answers every unlabelled scan. A label of scan i helps scans that are like it, and each further label
helps them less:

    gain(i) = sum_{j != i} w_j log((c_j + s_ij) / c_j) / sum_j w_j,    c_j = 1/2 + sum_{l labelled} s_lj

    s_ij  likeness of two scans, exp(-d_ij)
    d_ij  their distance: of their label maps (1 - soft DSC) and of their images (1 - correlation) on the coarse grid,
          each divided by its mean
    w_j   expected error of the answer: 1 - estimated DSC, without a calibration 1 - the mean of the measures that need
          none (agreement of network and registration, stability, confidence)

Scans are chosen greedily, each as if those before it were labelled, so that a batch does not repeat itself. The scan
itself is left out of its sum: what is wanted are answers for other scans. So typical scans come first, as Hacohen et
al., "Active learning on a budget", ICML 2022, found for few labels, and not those that are farthest from all labels
(core-sets, Sener and Savarese, ICLR 2018). What either is worth: docs/benchmarks/results/labels.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.answering.answers import AT_ONCE, Answer, GridScan, atlases_of
from stages.answering.quality import estimated_dsc, measure
from stages.artifacts.draft import Draft
from stages.artifacts.files import atomic_write_text
from stages.artifacts.made import Made
from stages.artifacts.next_scans import NextScans
from stages.artifacts.store import make
from stages.calibrate import calibrated_model, newest_calibration
from stages.config import Config
from stages.errors import LrlsError, plural
from stages.methods import find_method, settings_read
from stages.parts.channels import first_channel
from stages.progress import Progress

COARSE_VOXELS = 2**15  # of the grid on which scans are compared
FREE = ("agreement", "stability", "confidence")  # measures that say without a calibration how bad an answer is
MOST_SHOWN = 6  # scans in the picture
FLOOR = 0.5  # of c_j: what a scan is worth that nothing labelled is like
NOTABLE = 2 / 3  # share of the other scans that a scan must exceed for a reason


def suggest_next(made: Made, config: Config, method_name: str, *, count: int = 5, force: bool = False) -> NextScans:
    """Rank the unlabelled scans by what labelling them would bring, the first `count` as a batch.

    Args:
        made: see `workflow.trained`.

    Raises:
        LrlsError: there is no unlabelled scan in the cohort, or no labelled one.
    """
    method, cohort = find_method(method_name), made.cohort
    if not cohort.parts.get("unlabeled"):
        raise LrlsError(f"{method.name} was trained without unlabelled scans, so there is none to suggest; list some.")
    calibration = newest_calibration(made, config, method_name)

    def write(draft: Draft) -> None:
        _write(draft, made, config, method_name, count)

    return make(
        NextScans,
        config.workspace / method.name / NextScans.KIND,
        write,
        made_by="suggest-next",
        settings=settings_read(method, config, "eval") | {"count": count},
        seed=config.seed,
        round=made.round,
        inputs={"cohort": cohort, **made.artifacts, "calibration": calibration},
        force=force,
    )


def _write(draft: Draft, made: Made, config: Config, method_name: str, count: int) -> None:
    model, cohort = calibrated_model(made, config, method_name), made.cohort
    answering, template, calibration = model.answering(), model.template(), model.calibration
    draft.device = str(answering.device)
    cases, atlases = cohort.parts["unlabeled"], atlases_of(cohort)
    volumes = calibration.volumes if calibration else None
    measures, masks, looks, shown = [], [], [], {}
    with Progress("suggest-next", len(cases)) as progress:
        for start in range(0, len(cases), AT_ONCE):
            scans = [GridScan(case, cohort.image(case), {}) for case in cases[start : start + AT_ONCE]]
            for scan, answer in zip(scans, answering.answers(scans), strict=True):
                measures.append(measure(answering, scan, answer, template, volumes))
                masks.append(coarse(one_hot_of(answer)))
                looks.append(coarse(torch.from_numpy(first_channel(scan.image).astype(np.float32))[None]))
                shown[scan.case] = answer.probabilities.argmax(0).to(torch.uint8).cpu().numpy()
                progress.advance()
    for atlas in atlases:
        label = torch.from_numpy(atlas.label.astype(np.int64))
        masks.append(coarse(F.one_hot(label, cohort.num_classes).movedim(-1, 0)[1:].float()))
        looks.append(coarse(torch.from_numpy(first_channel(atlas.image).astype(np.float32))[None]))
    estimates = [estimated_dsc(m, calibration) for m in measures] if calibration else None
    table = ranking(
        cases, [atlas.case for atlas in atlases], measures, estimates, shape_distances(torch.stack(masks)),
        look_distances(torch.stack(looks)), count,
    )  # fmt: skip
    table.to_csv(draft.folder / "next.csv", index=False, float_format="%.6f")
    chosen = table["case"][: min(count, len(cases))].tolist()
    verdict = {"chosen": chosen, "labelled": [atlas.case for atlas in atlases], "calibrated": calibration is not None}
    atomic_write_text(draft.folder / "next.json", json.dumps(verdict, indent=1))
    from stages.pictures import next_scans_page

    next_scans_page(
        [
            {"name": case, "image": first_channel(cohort.image(case)), "label": shown[case]}
            for case in chosen[:MOST_SHOWN]
        ],
        draft.folder / "next.png", table=table.to_dict("list"), structures=cohort.structures,
        spacing_mm=cohort.grid.spacing_mm,
    )  # fmt: skip


def one_hot_of(answer: Answer) -> Tensor:
    """The answer as a mask of each structure, (structures, D, H, W) float32."""
    probabilities = answer.probabilities
    return F.one_hot(probabilities.argmax(0), len(probabilities)).movedim(-1, 0)[1:].float().cpu()


def coarse(volumes: Tensor) -> Tensor:
    """Volumes (n, D, H, W), averaged to at most `COARSE_VOXELS` voxels each: (n, V)."""
    shape = np.array(volumes.shape[1:])
    factor = min(1.0, (COARSE_VOXELS / float(shape.prod())) ** (1 / 3))
    d, h, w = (max(1, int(edge * factor)) for edge in shape)
    return F.adaptive_avg_pool3d(volumes[None], (d, h, w))[0].flatten(1)


def shape_distances(masks: Tensor) -> np.ndarray:
    """One minus the mean soft DSC, 2 a.b / (a.a + b.b), of every two scans' masks.

    Args:
        masks: in [0, 1], (scans, structures, voxels).

    Returns:
        (scans, scans) in [0, 1]; structures that both lack are left out, and 0 where they lack all.
    """
    total, counted = np.zeros((2, len(masks), len(masks)))
    for structure in range(masks.shape[1]):
        flat = masks[:, structure].double()
        product = (flat @ flat.T).numpy()
        both = np.diag(product)[:, None] + np.diag(product)[None]
        total += np.divide(2 * product, both, out=np.zeros_like(both), where=both > 0)
        counted += both > 0
    return 1 - np.divide(total, counted, out=np.ones_like(total), where=counted > 0)


def look_distances(looks: Tensor) -> np.ndarray:
    """One minus the correlation of every two images, (scans, 1, voxels) -> (scans, scans) in [0, 2]; flat: 1."""
    flat = looks[:, 0].double()
    flat = flat - flat.mean(1, keepdim=True)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-9)
    distance = 1 - (flat @ flat.T).numpy()
    np.fill_diagonal(distance, 0)
    return distance.clip(0, 2)


def distances(masks: Tensor, looks: Tensor) -> np.ndarray:
    """The distance of every two scans; see the top of this file. Arguments as of the functions above."""
    return combined(shape_distances(masks), look_distances(looks))


def combined(shape: np.ndarray, look: np.ndarray) -> np.ndarray:
    others = ~np.eye(len(shape), dtype=bool)
    return np.mean([d / max(float(d[others].mean()), 1e-9) for d in (shape, look)], axis=0)


def gains(likeness: np.ndarray, covered: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What labelling each scan would bring; see the top of this file.

    Args:
        likeness: s, (n, n) of the unlabelled scans.
        covered: c, (n,).
        weights: w, (n,).
    """
    each = weights * np.log1p(likeness / covered)
    np.fill_diagonal(each, 0)
    return each.sum(1) / weights.sum()


def batch(own: np.ndarray, to_labelled: np.ndarray, weights: np.ndarray, count: int) -> list[int]:
    """The places of `count` scans, each the best one once those before it are labelled.

    Args:
        own: distances of the unlabelled scans, (n, n).
        to_labelled: their distances to the labelled ones, (n, labelled).
        weights: w, (n,).
    """
    likeness, covered = np.exp(-own), FLOOR + np.exp(-to_labelled).sum(1)
    chosen: list[int] = []
    for _ in range(min(count, len(own))):
        gain = gains(likeness, covered, weights)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        covered = covered + likeness[chosen[-1]]
    return chosen


def ranking(
    cases: Sequence[str], labelled: Sequence[str], measures: Sequence[Mapping[str, float]],
    estimates: Sequence[float] | None, shape: np.ndarray, look: np.ndarray, count: int,
) -> pd.DataFrame:  # fmt: skip
    """A row per unlabelled scan: the batch first, then the others by the gain that each would bring alone.

    Args:
        measures: of each scan's answer; see `stages.answering.quality.measure`.
        estimates: estimated DSC of each answer; None: not calibrated.
        shape, look: distances of all scans, the labelled ones last.
    """
    n, distance = len(cases), combined(shape, look)
    own, to_labelled = distance[:n, :n], distance[:n, n:]
    if estimates is None:
        weights = np.array([1 - np.mean([m[name] for name in FREE if name in m]) for m in measures])
    else:
        weights = 1 - np.array(estimates)
    weights = np.maximum(weights, 1e-3)
    alone = gains(np.exp(-own), FLOOR + np.exp(-to_labelled).sum(1), weights)
    first = batch(own, to_labelled, weights, count)
    nearest = to_labelled.min(1)
    order = [*first, *(i for i in np.argsort(-alone, kind="stable").tolist() if i not in first)]
    table = pd.DataFrame(
        {
            "case": cases,
            "gain": alone,
            "expected_error": weights,
            "estimated_dsc": np.nan if estimates is None else estimates,
            "agreement": [m.get("agreement", np.nan) for m in measures],
            "shape_distance": shape[:n, n:].min(1),
            "look_distance": look[:n, n:].min(1),
            "nearest": [labelled[place] for place in to_labelled.argmin(1)],
            "stands_for": ((own < nearest[None]) & ~np.eye(n, dtype=bool)).sum(1),
        }
    )
    table["reason"] = reasons(table)
    table = table.iloc[order].reset_index(drop=True)
    table.insert(0, "rank", range(1, n + 1))
    return table


def reasons(table: pd.DataFrame) -> list[str]:
    """Why each scan stands where it does, in words."""
    n = len(table)
    beyond = {name: exceeded(table[name]) for name in ("expected_error", "shape_distance", "look_distance")}
    less_agreed = exceeded(-table["agreement"])
    typical = table["gain"].rank(ascending=False, method="first")
    worst, agreement = table["expected_error"].rank(ascending=False, method="first"), table["agreement"]
    lines = []
    for i, row in enumerate(table.to_dict("records")):
        place = f"number {int(typical[i])} of {n} in what its label alone brings to the others"
        said = [place if n > 1 else "the only unlabelled scan"]
        if row["stands_for"]:
            verb = "is" if row["stands_for"] == 1 else "are"
            said.append(f"{plural(row['stands_for'], 'scan')} {verb} nearer to it than to a labelled one")
        if beyond["expected_error"][i] > NOTABLE:
            known = not np.isnan(row["estimated_dsc"])
            what = f"estimated DSC {row['estimated_dsc']:.2f}" if known else "the answer is doubtful"
            said.append(f"{what}, number {int(worst[i])} from the worst")
        if less_agreed[i] > NOTABLE:
            of_all = f"DSC {agreement[i]:.2f}, median {agreement.median():.2f}"
            said.append(f"network and registration agree less than elsewhere ({of_all})")
        for name in ("shape", "look"):
            if (share := beyond[f"{name}_distance"][i]) > NOTABLE:
                said.append(f"its {name} is farther from the labelled scans than {share:.0%} of the other scans' are")
        lines.append("; ".join(said))
    return lines


def exceeded(values: pd.Series) -> pd.Series:
    """The share of the other scans whose value is smaller than a scan's, in [0, 1]; 0 of fewer than three scans."""
    return (values.rank(method="min") - 1) / (len(values) - 1) if len(values) > 2 else values * 0
