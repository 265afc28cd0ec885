"""Which of the unlabelled scans to label, or whose answer to correct, next.

A trained method answers every unlabelled scan. Labelling scan i helps the scans j that are nearer to it than to any
labelled scan, and it helps most where the answers are bad:

    gain(i) = sum_j w_j max(0, m_j - d_ij) / sum_j w_j m_j,    in [0, 1]

    w_j   expected error of the answer: 1 - estimated DSC, without a calibration 1 - the mean of the measures that need
          none (agreement of network and registration, stability, confidence)
    d_ij  distance of two scans: of their label maps (1 - soft DSC) and of their images (1 - correlation) on the coarse
          grid, each divided by its mean
    m_j   distance to the nearest labelled scan

Scans are chosen greedily, each as if those before it were labelled. This is facility location: the batch covers the
scans, and it does not choose two scans that are alike. With few labels, typical scans teach more than odd ones (Hacohen
et al., "Active learning on a budget", ICML 2022), which is why the gain counts all scans that one stands for; what is
far from everything (core-sets, Sener and Savarese, ICLR 2018) gains no more than its own error.
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
from stages.errors import LrlsError
from stages.methods import find_method, settings_read
from stages.parts.channels import first_channel
from stages.progress import Progress

COARSE_VOXELS = 2**15  # of the grid on which scans are compared
FREE = ("agreement", "stability", "confidence")  # measures that say without a calibration how bad an answer is
MOST_SHOWN = 6  # scans in the picture
NOTABLE = 2 / 3  # share of the scans that a scan must exceed for a reason


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


def gains(distance: np.ndarray, nearest: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What labelling each scan would bring; see the top of this file.

    Args:
        distance: d, (n, n) of the unlabelled scans.
        nearest: m, (n,).
        weights: w, (n,).
    """
    saved = (weights * np.maximum(0, nearest - distance)).sum(1)
    return saved / max(float((weights * nearest).sum()), 1e-12)


def batch(distance: np.ndarray, nearest: np.ndarray, weights: np.ndarray, count: int) -> list[int]:
    """The places of `count` scans, each the best one once those before it are labelled; arguments as of `gains`."""
    chosen: list[int] = []
    for _ in range(min(count, len(nearest))):
        gain = gains(distance, nearest, weights)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        nearest = np.minimum(nearest, distance[chosen[-1]])
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
    n = len(cases)
    distance = np.mean([d / max(float(d[~np.eye(len(d), dtype=bool)].mean()), 1e-9) for d in (shape, look)], axis=0)
    own, nearest = distance[:n, :n], distance[:n, n:].min(1)
    if estimates is None:
        weights = np.array([1 - np.mean([m[name] for name in FREE if name in m]) for m in measures])
    else:
        weights = 1 - np.array(estimates)
    weights = np.maximum(weights, 1e-3)
    alone = gains(own, nearest, weights)
    first = batch(own, nearest, weights, count)
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
            "nearest": [labelled[place] for place in distance[:n, n:].argmin(1)],
            "stands_for": (own < nearest[None]).sum(1),
        }
    )
    table["reason"] = reasons(table)
    table = table.iloc[order].reset_index(drop=True)
    table.insert(0, "rank", range(1, n + 1))
    return table


def reasons(table: pd.DataFrame) -> list[str]:
    """Why each scan stands where it does, in words."""
    n = len(table)
    of = {name: table[name].rank(pct=True) for name in ("expected_error", "shape_distance", "look_distance")}
    worst, agreement = table["expected_error"].rank(ascending=False, method="first"), table["agreement"]
    lines = []
    for i, row in enumerate(table.to_dict("records")):
        said = [f"{row['stands_for']} of {n} scans are nearer to it than to a labelled one"]
        if of["expected_error"][i] > NOTABLE:
            what = (
                "the answer is doubtful"
                if np.isnan(row["estimated_dsc"])
                else f"estimated DSC {row['estimated_dsc']:.2f}"
            )
            said.append(f"{what}, number {int(worst[i])} from the worst")
        if agreement.notna()[i] and (agreement < agreement[i]).mean() < 1 - NOTABLE and n > 2:
            said.append(
                f"network and registration agree little (DSC {agreement[i]:.2f}, median {agreement.median():.2f})"
            )
        for name in ("shape", "look"):
            if (share := of[f"{name}_distance"][i]) > NOTABLE:
                said.append(f"its {name} is farther from the labelled scans than that of {share:.0%} of the scans")
        lines.append("; ".join(said))
    return lines
