"""Which scan to label first: the one that is most like all others after alignment.

LT-Net takes the scan that is most similar to the anatomical average, OS-MedSeg the one with the highest mean
normalised cross-correlation (NCC) to the others. By default the latter ranks the scans, and the former is a column
beside it; `--by average` ranks as LT-Net does.

There is no atlas to align to yet. So all scans' centres of mass are aligned, and the scan that is nearest to their
median is a provisional reference. All scans are aligned to it, and their median is the final reference. So every scan,
the provisional reference too, is one alignment away from the reference. All of this happens on a coarse grid.

The bootstrap measures the chance in which scans are compared, not the chance in their alignment. See "Which scan to
label first" in docs/benchmarks/LOG.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import SimpleITK as sitk

from stages.artifacts.checked import read_record, write_record
from stages.artifacts.cohort import Grid
from stages.artifacts.draft import Draft
from stages.artifacts.files import atomic_write_text
from stages.artifacts.store import make, versions
from stages.artifacts.suggestion import Suggestion
from stages.config import Config
from stages.data.alignment import affine_transform, align, centre_of_mass
from stages.data.checks import cheap_faults, examine_all, faults_among, folder_fault
from stages.data.facts import Known, Looked, ScanFacts, examine, faults_of
from stages.data.faults import refuse
from stages.data.intensities import coarsened, normalise
from stages.errors import LrlsError
from stages.parts.lengths import unit_mm
from stages.processes import in_processes
from stages.progress import Progress

LEAST_SCANS = 3
MOST_VOXELS = 2**18  # of a scan and of the common grid: 64^3
LEAST_OVERLAP = 0.3  # share of the grid that two scans must both cover to be compared
DRAWS = 5000  # of the bootstrap
By = Literal["others", "average"]
COLUMNS = (
    "rank",
    "case",
    "score",  # mean NCC to the other scans, or NCC to their mean, in [-1, 1]
    "score_low",  # 95 % bootstrap interval over the other scans, as all intervals here
    "score_high",
    "to_average",  # NCC to the mean of the other scans
    "probability_first",  # share of bootstrap draws in which it ranks first
    "rank_low",
    "rank_high",
    "behind_first",  # how far its score is below the first scan's, paired
    "behind_first_low",
    "behind_first_high",
    "alignment_refused",  # 1: centres of mass are used
)


def suggest_atlas(config: Config, *, by: By = "others", force: bool = False) -> Suggestion:
    """Rank the unlabelled scans by how typical they are; no atlas is needed, and no label map is read.

    Args:
        by: mean similarity to the other scans, or similarity to their average.

    Raises:
        LrlsError: a scan has a fault, or there are too few.
    """
    cases = config.part("unlabeled")
    if len(cases) < LEAST_SCANS:
        raise LrlsError(
            f"data.unlabeled lists {len(cases)} scan{'' if len(cases) == 1 else 's'}, at least {LEAST_SCANS} are "
            "needed to tell which one is typical; list more."
        )
    if fault := folder_fault(config):
        refuse([fault])
    known = Known(config)
    looked = known.look(dict.fromkeys(cases, False))
    facts = known.facts(looked)
    scans: dict[str, sitk.Image] = {}
    if len(facts) < len(looked):  # facts are known only after reading, and scans are read once
        faults = faults_among(config, facts, ["unlabeled"]) or cheap_faults(config, looked, ["unlabeled"])
        if faults or (versions(config.workspace / Suggestion.KIND) and not force):
            facts = dict(examine_all(config, looked))
        else:
            facts, scans = _read_all(config, looked)
    refuse(faults_among(config, facts, ["unlabeled"]))
    settings = config.preprocess.model_dump(mode="json", include={"align", "align_contrast", "intensity", "n4"})
    return make(
        Suggestion,
        config.workspace / Suggestion.KIND,
        lambda draft: _write(draft, config, sorted(cases), scans or _read_all(config, looked)[1], by),
        made_by="suggest-atlas",
        settings={"preprocess": settings, "members": sorted(cases)} | ({} if by == "others" else {"by": by}),
        seed=config.seed,
        inputs={f"scan/{case}": facts[case].digest for case in cases},
        force=force,
    )


def _write(draft: Draft, config: Config, cases: list[str], scans: dict[str, sitk.Image], by: By) -> None:
    reference = scans[cases[nearest_to_median(np.stack(_on_centres(scans, cases)))]]
    grid = grid_of(reference)
    average, volumes, records = reference, np.empty(0), {}
    for turn in ("to one scan", "to the average"):
        records = _align_all(config, scans, average, turn, draft.resume)
        volumes = np.stack([on_grid(scans[case], np.array(records[case]["matrix"]), grid) for case in cases])
        average = _as_image(median(volumes), grid)
    refused = [case for case in cases if records[case]["fell_back"]]
    table = ranking(cases, volumes, refused, seed=config.seed, by=by)
    table.to_csv(draft.folder / "suggestion.csv", index=False, float_format="%.6f")
    verdict = {"best": table["case"][0], "equals": equals(table), "refused": refused, "by": by}
    atomic_write_text(draft.folder / "suggestion.json", json.dumps(verdict, indent=1))
    _picture(table, dict(zip(cases, volumes, strict=True)), median(volumes), grid, draft.folder, by)


# Scans on one grid


def _read_all(config: Config, looked: Mapping[str, Looked]) -> tuple[dict[str, ScanFacts], dict[str, sitk.Image]]:
    """Facts of all scans, and the scans without a fault, on a coarse grid."""
    facts, scans = {}, {}
    with Progress("read", len(looked)) as progress:
        arguments = [(config, scan) for scan in looked.values()]
        for scan_facts, scan in in_processes(_read_case, arguments, config=config):
            facts[scan_facts.case] = scan_facts
            if scan is not None:
                scans[scan_facts.case] = scan
            progress.advance()
    return facts, scans


def _read_case(config: Config, looked: Looked) -> tuple[ScanFacts, sitk.Image | None]:
    examined = examine(config, looked)
    if faults_of(config, examined.facts) or not examined.images:
        return examined.facts, None
    image = normalise(examined.images[0], config.preprocess)[0]
    return examined.facts, coarsened(image, coarse_spacing_mm(image), most=MOST_VOXELS)


def coarse_spacing_mm(image: sitk.Image) -> float:
    """Edge of the cubes of which `MOST_VOXELS` fill the image."""
    return float((np.prod(image.GetSize()) * np.prod(image.GetSpacing()) / MOST_VOXELS) ** (1 / 3))


def _on_centres(scans: dict[str, sitk.Image], cases: list[str]) -> list[np.ndarray]:
    """Every scan on the first one's grid, with the centres of mass aligned."""
    grid, shift = grid_of(scans[cases[0]]), np.eye(4)
    centre = centre_of_mass(scans[cases[0]])
    volumes = []
    for case in cases:
        shift[:3, 3] = centre_of_mass(scans[case]) - centre
        volumes.append(on_grid(scans[case], shift, grid))
    return volumes


def nearest_to_median(volumes: np.ndarray) -> int:
    """The place of the volume that correlates most with the median of all; (n, D, H, W), nan where not seen."""
    middle = median(volumes)
    return int(np.argmax([correlations(np.stack([volume, middle]))[0, 1] for volume in volumes]))


def median(volumes: np.ndarray) -> np.ndarray:
    """Voxelwise median over the volumes that see a voxel; 0 where fewer than half of them do. (n, D, H, W), nan."""
    result = np.zeros(volumes.shape[1:], np.float32)
    for place in range(len(result)):  # slice by slice, to save memory
        seen = np.isfinite(volumes[:, place]).mean(0) >= 0.5
        result[place][seen] = np.nanmedian(volumes[:, place][:, seen], axis=0)
    return result


def grid_of(image: sitk.Image) -> Grid:
    """An isotropic grid over an image's box, of `MOST_VOXELS` at most and never finer than the image."""
    extent = np.array(image.GetSize()) * image.GetSpacing()
    spacing = max(coarse_spacing_mm(image), min(image.GetSpacing()))
    size = np.maximum(1, np.floor(extent / spacing + 1e-6)).astype(int)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    origin = centre - direction @ ((size - 1) / 2 * spacing)
    d, h, w = (int(n) for n in size[::-1])
    return Grid((d, h, w), (spacing,) * 3, tuple(origin.tolist()), image.GetDirection())


def on_grid(scan: sitk.Image, matrix: np.ndarray, grid: Grid) -> np.ndarray:
    """An aligned scan on the grid, (D, H, W) float32; nan where the scan does not reach."""
    voxels = sitk.GetArrayFromImage(
        sitk.Resample(scan, grid.as_image(), affine_transform(matrix), sitk.sitkLinear, -1.0, sitk.sitkFloat32)
    )
    return np.where(voxels < 0, np.float32(np.nan), voxels)


def _as_image(voxels: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels)
    image.CopyInformation(grid.as_image())
    return image


def _align_all(
    config: Config, scans: dict[str, sitk.Image], reference: sitk.Image, turn: str, resume: Path
) -> dict[str, Any]:
    """The record of `alignment.align` for every scan, in one JSON file each; a resumed run keeps finished ones."""
    folder = resume / turn.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    files = {case: folder / f"{case}.json" for case in scans}
    records = {case: read_record(file, f"case {case}, aligned {turn}") for case, file in files.items()}
    missing = [case for case, record in records.items() if record is None]
    with Progress(f"align {turn}", len(scans), start=len(scans) - len(missing)) as progress:
        settings = config.preprocess
        arguments = [
            (case, reference, scans[case], settings.align, settings.align_contrast, config.seed) for case in missing
        ]
        for case, record in in_processes(_align_case, arguments, config=config):
            write_record(files[case], record)
            records[case] = record
            progress.advance()
    return records


def _align_case(
    case: str, reference: sitk.Image, scan: sitk.Image, kind: Any, contrast: Any, seed: int
) -> tuple[str, dict[str, Any]]:
    unit = unit_mm(reference.GetSpacing())
    record = align(reference, scan, kind=kind, contrast=contrast, seed=seed, unit_mm=unit)
    return case, record | {"matrix": record["matrix"].tolist()}


# Similarity


def correlations(volumes: np.ndarray) -> np.ndarray:
    """Pearson correlation of every two volumes where both see something.

    Args:
        volumes: (n, D, H, W), nan where a scan does not reach.

    Returns:
        (n, n) float64 in [-1, 1]; 0 where two volumes hardly overlap or one is flat; 1 on the diagonal.
    """
    covariance, variance, usable = _moments(volumes)
    spread = np.sqrt(np.maximum(variance, 0) * np.maximum(variance.T, 0))
    usable &= spread > 1e-12
    result = np.where(usable, covariance / np.where(usable, spread, 1), 0).clip(-1, 1)
    np.fill_diagonal(result, 1)
    return result


def covariances(volumes: np.ndarray) -> np.ndarray:
    """Covariance of every two volumes where both see something; arguments and shape as of `correlations`."""
    covariance, _, usable = _moments(volumes)
    return np.where(usable, covariance, 0)


def _moments(volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where both see something: covariance, variance of the row's volume, and whether that is enough; (n, n) each."""
    n = len(volumes)
    flat = volumes.reshape(n, -1)
    count, sums, squares, products = np.zeros((4, n, n))
    for start in range(0, flat.shape[1], 2**14):
        part = flat[:, start : start + 2**14].astype(np.float64)
        seen = np.isfinite(part).astype(np.float64)
        part = np.nan_to_num(part)
        count += seen @ seen.T
        sums += part @ seen.T  # of the row's volume, over the voxels that the column's sees, too
        squares += part**2 @ seen.T
        products += part @ part.T
    voxels = np.maximum(count, 1)
    covariance = products / voxels - sums * sums.T / voxels**2
    variance = squares / voxels - (sums / voxels) ** 2
    return covariance, variance, count >= LEAST_OVERLAP * flat.shape[1]


def to_average(volumes: np.ndarray) -> np.ndarray:
    """Correlation of every volume with the mean of the others; (n, D, H, W), nan where a scan does not reach."""
    seen = np.isfinite(volumes).sum(0)
    total = np.nansum(volumes, axis=0, dtype=np.float64)
    correlation = []
    for volume in volumes:
        others = seen - np.isfinite(volume)
        mean = np.divide(total - np.nan_to_num(volume), others, out=np.full(total.shape, np.nan), where=others > 0)
        correlation.append(correlations(np.stack([volume, mean]))[0, 1])
    return np.array(correlation)


def ranking(cases: list[str], volumes: np.ndarray, refused: list[str], *, seed: int, by: By = "others") -> pd.DataFrame:
    """`COLUMNS`, the most typical scan first; ties stand in the order given."""
    if by == "average":
        table = certainty(covariances(volumes), seed=seed, score_of=to_mean_of_drawn)
    else:
        table = certainty(correlations(volumes), seed=seed)
    table.insert(1, "case", cases)
    table.insert(5, "to_average", to_average(volumes))
    table["alignment_refused"] = [int(case in refused) for case in cases]
    return table.sort_values("rank", kind="stable", ignore_index=True)[list(COLUMNS)]


def to_drawn(similarity: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean similarity of every scan to the drawn ones but itself.

    Args:
        similarity: (n, n), symmetric; the diagonal is not looked at.
        counts: how often each scan is drawn, (draws, n).

    Returns:
        (draws, n); nan where no other scan is drawn.
    """
    similarity = np.where(np.eye(len(similarity), dtype=bool), 0, similarity)
    others = counts.sum(1, keepdims=True) - counts
    return np.divide(counts @ similarity, others, out=np.full(counts.shape, np.nan), where=others > 0)


def to_mean_of_drawn(covariance: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Correlation of every scan with the mean of the drawn ones but itself.

        corr(x_i, m) = sum_j w_j C_ij / sqrt(C_ii sum_jk w_j w_k C_jk),  m = sum_j w_j x_j, j and k other than i

    Args:
        covariance: C, (n, n). Where scans do not see all of one another, this is near the correlation, not it.
        counts: w, (draws, n).

    Returns:
        (draws, n); nan where no other scan is drawn.
    """
    own, together = np.diag(covariance), counts @ covariance
    with_mean = together - counts * own
    of_mean = (together * counts).sum(1, keepdims=True) - 2 * counts * together + counts**2 * own
    spread = np.sqrt(np.maximum(own * of_mean, 0))
    score = np.divide(with_mean, spread, out=np.zeros(counts.shape), where=spread > 1e-12).clip(-1, 1)
    return np.where(counts.sum(1, keepdims=True) > counts, score, np.nan)


def certainty(
    similarity: np.ndarray,
    *,
    seed: int,
    draws: int = DRAWS,
    score_of: Callable[[np.ndarray, np.ndarray], np.ndarray] = to_drawn,
) -> pd.DataFrame:
    """Scores, ranks, and how they would change with other scans: a bootstrap over the scans of the comparison.

    Every draw compares all scans with the same resampled ones, so that differences are paired. A scan is never
    compared with itself.

    Args:
        similarity: (n, n), as `score_of` reads it.
        score_of: scores of all scans from draws of them.

    Returns:
        A row per scan, in the order given.
    """
    n = len(similarity)
    score = score_of(similarity, np.ones((1, n)))[0]
    first = int(np.argmax(score))
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    scores = score_of(similarity, counts)
    scores = np.where(np.isnan(scores), score, scores)
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1
    behind = scores[:, [first]] - scores
    ends = [0.025, 0.975]
    interval = {"score": np.quantile(scores, ends, axis=0), "behind_first": np.quantile(behind, ends, axis=0)}
    rank_interval = np.quantile(ranks, ends, axis=0, method="nearest")
    return pd.DataFrame(
        {
            "rank": np.argsort(np.argsort(-score, kind="stable")) + 1,
            "score": score,
            "score_low": interval["score"][0],
            "score_high": interval["score"][1],
            "probability_first": (ranks == 1).mean(0),
            "rank_low": rank_interval[0].astype(int),
            "rank_high": rank_interval[1].astype(int),
            "behind_first": score[first] - score,
            "behind_first_low": interval["behind_first"][0],
            "behind_first_high": interval["behind_first"][1],
        }
    )


def equals(table: pd.DataFrame) -> list[str]:
    """Cases that cannot be told from the first one by these scans: the interval of the difference holds 0."""
    return [str(case) for case in table["case"][1:][table["behind_first_low"][1:] <= 0]]


def _picture(
    table: pd.DataFrame, volumes: dict[str, np.ndarray], average: np.ndarray, grid: Grid, folder: Path, by: By
) -> None:
    from stages.pictures import suggestion_page

    last, middle = len(table) - 1, len(table) // 2
    rows: list[dict[str, Any]] = [{"name": "median of all", "image": average}]
    for place, name in ((0, "first"), (middle, "middle"), (last, "last")):
        case, score = table["case"][place], table["score"][place]
        rows.append({"name": f"{name}: {case}, {score:.3f}", "image": np.nan_to_num(volumes[case])})
    columns = {name: table[name].tolist() for name in ("case", "score", "score_low", "score_high")}
    suggestion_page(rows, folder / "suggestion.png", scores=columns, spacing_mm=grid.spacing_mm, by=by)
