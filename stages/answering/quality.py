"""How far to trust an answer without a label: measures of a scan, an estimate of its DSC, and flags.

The measures need no label and are higher for better answers. The estimate (`fit`, `estimated_dsc`) is a sum of three
parts. A falling measure never raises it.

1. Level. The DSC of undamaged couples, whose labels are known because the couples were generated from atlases, and
   which show what a scan shows beyond the warped atlas. Scans may still be harder: then network and registration
   disagree more on them, and the error 1 - DSC is scaled up by the ratio of the disagreements. Couples are annotated
   as the atlas is; scans are not, and no image shows it. So an error is added, as that of another source (square root
   of the sum of squares), which labels moved by one voxel have.
2. Damage. A linear model with weights >= 0, fitted to couples some of which were moved, bent, blurred or unevenly lit.
   A measure counts only as far as it falls below its usual range: of couples in the fit, of scans in the estimate.
3. Rank, which orders usual scans: the mean of three different measures (agreement of the answers, confidence of the
   network, fit of the registration) in deviations from their medians over unlabelled scans. A deviation is worth a
   tenth of the expected error.

Agreement of two answers: Valindria et al., "Reverse classification accuracy", TMI 2017, asks the same of one atlas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from stages.answering.answers import Answer, Answering, GridScan
from stages.answering.volumes import coverage, fitted_factor, half_width, interval_ml, spread_of_volumes, voxels_of
from stages.artifacts.calibration import Calibration
from stages.parts.augmentation import AUGMENTATIONS, IntensityAugmentation, SpatialAugmentation, gaussian_blur
from stages.parts.channels import as_array, as_images, first_channel
from stages.parts.metrics import dice_per_class, folding_fraction, jacobian_determinant
from stages.parts.warps import affine_displacement, resize, warp, warp_label, warp_probabilities

MEASURES = ("agreement", "stability", "confidence", "similarity", "volume")
RANK = ("agreement", "confidence", "similarity")  # measures that order usual scans
DOUBT = ("agreement", "stability")  # the first one available tells how much harder scans are than couples
LOW_DSC = 0.6  # lower estimates are flagged
MOST_FOLDING = 0.01  # share of voxels with |J| <= 0; raised to three times that of unlabelled scans
DECILES = tuple(k / 10 for k in range(1, 10))
LEAST_SPREAD = 0.03  # of a decile between scans; intensities are in [0, 1]
RIDGE = 0.3  # penalty on weights of measures in standard deviations; stabilises correlated measures
LEAST_DEVIATION = 0.01  # of a measure between scans
UNUSUAL = 5.0  # deviations below the median over scans are flagged
SLACK = 2.0  # deviations below the median that do not count as damage
STEP = 0.1  # share of the expected error that one deviation of rank is worth; ranks are clipped to -6..3
# Degrees, axis of the grid to turn about, shift in voxels along (D, H, W), exponent of intensities. The shift makes a
# network look unstable that answers by position instead of by the image.
PERTURBATIONS = ((7.0, 0, (3, -3, 3), 0.8), (-7.0, 2, (-3, 3, -3), 1.25))


@dataclass(frozen=True)
class Quality:
    """Quality of an answer, judged without a label.

    Args:
        measures: those of `MEASURES` that are available for the model.
        folding_fraction: share of voxels with |J| <= 0, mean over atlases; None: nothing was registered.
        alignment: correlation with the reference, or the root of the correlation ratio (`preprocess.align_contrast`).
        intensity_shift: largest distance of a decile from its median, in spreads; None: not calibrated.
        estimated_dsc: None: not calibrated.
        flags: reasons why a person must look at the answer; may be empty.
        volume_intervals_ml: lowest and highest volume of each structure, 90 %; None: not calibrated.
    """

    measures: dict[str, float]
    folding_fraction: float | None
    alignment: float
    intensity_shift: float | None
    estimated_dsc: float | None
    flags: tuple[str, ...]
    volume_intervals_ml: dict[str, tuple[float, float]] | None = None


def assess(
    answering: Answering,
    scan: GridScan,
    answer: Answer,
    template: np.ndarray,
    volumes_ml: Mapping[str, float],
    calibration: Calibration | None,
) -> Quality:
    """The quality of an answer.

    Args:
        template: the reference on the grid, (D, H, W).
        volumes_ml: of each structure, at the scan's own voxels.
    """
    missing = [name for name, volume in volumes_ml.items() if volume == 0]
    volumes = calibration.volumes if calibration else None
    turned = perturbed(answering, scan.image) if answer.network is not None else []
    measures = measure(answering, scan, answer, template, volumes, turned)
    folding = folding_of(answer)
    shift = intensity_shift(scan.image, calibration.deciles) if calibration else None
    estimate = estimated_dsc(measures, calibration) if calibration else None
    flags = []
    if scan.record["fell_back"]:
        flags.append("alignment refused")
    if folding is not None and folding > (calibration.most_folding if calibration else MOST_FOLDING):
        flags.append("folding")
    if calibration and shift is not None and shift > calibration.most_shift:
        flags.append("intensities out of range")
    flags += [f"missing {name}" for name in missing]
    if calibration:
        flags += [f"low {name}" for name, value in measures.items() if _deviations(value, name, calibration) < -UNUSUAL]
    if estimate is not None and estimate < LOW_DSC:
        flags.append(f"estimated DSC under {LOW_DSC}")
    intervals = None
    if calibration and calibration.volume_factor is not None:
        spreads = spread_of_volumes(answer, turned, calibration.volumes, answering.num_classes)
        half = half_width(spreads, calibration.volume_factor, calibration.annotation, calibration.volumes)
        own = voxels_of(answer.probabilities.argmax(0), answering.num_classes)
        voxel_ml = math.prod(answering.grid.spacing_mm) / 1000
        found = interval_ml(list(volumes_ml.values()), own, half.tolist(), voxel_ml)
        intervals = dict(zip(volumes_ml, found, strict=True))
    return Quality(measures, folding, float(scan.record["correlation"]), shift, estimate, tuple(flags), intervals)


def measure(
    answering: Answering,
    scan: GridScan,
    answer: Answer,
    template: np.ndarray,
    volumes: Sequence[float] | None,
    turned: Sequence[Tensor] | None = None,
) -> dict[str, float]:
    """Measures of an answer; higher is better, 1 is best. `turned`: see `perturbed`; None: they are made here.

    agreement    mean DSC of the network's and the propagated label map; without a network, of the answer and each of
                 several atlases' propagated label maps
    stability    mean DSC of the network's answer and its answers to the image after turns, shifts and changes of
                 brightness
    confidence   mean over structures of the mean probability of the voxels that are labelled as the structure
    similarity   correlation of the scan with the warped atlas around the structures, mean over the channels, the best
                 of all atlases; without registration, of the scan with the aligned reference on the whole grid
    volume       exp(-mean |log(volume / its median)|) over structures
    """
    classes = answer.probabilities.argmax(0)
    measures = {}
    if answer.network is not None and answer.votes is not None:
        network, votes = answer.network.argmax(0).cpu(), answer.votes.argmax(0).cpu()
        measures["agreement"] = _mean_dice(network, votes, answering.num_classes)
    elif len(answer.fields) > 1:
        measures["agreement"] = _agreement_of_atlases(answering, answer)
    if answer.network is not None:
        turned = perturbed(answering, scan.image) if turned is None else turned
        network = answer.network.argmax(0).cpu()
        measures["stability"] = float(np.mean([_mean_dice(each, network, answering.num_classes) for each in turned]))
    best = answer.probabilities.max(0).values
    inside = [best[classes == c] for c in range(1, answering.num_classes)]
    measures["confidence"] = float(np.mean([float(values.mean()) if values.numel() else 0.0 for values in inside]))
    measures["similarity"] = _similarity(answering, scan.image, answer, template)
    if volumes is not None:
        counts = torch.bincount(classes.flatten().cpu(), minlength=answering.num_classes)[1:].double().numpy()
        logs = np.abs(np.log((counts + 1) / (np.array(volumes) + 1)))
        measures["volume"] = float(np.exp(-logs.mean()))
    return measures


def _mean_dice(a: Tensor, b: Tensor, num_classes: int) -> float:
    """Mean DSC over structures. A structure missing in both maps counts 0: every scan is expected to have it."""
    return float(dice_per_class(a, b, num_classes).nan_to_num(0.0).mean())


def _agreement_of_atlases(answering: Answering, answer: Answer) -> float:
    """Mean DSC of the answer and each atlas's own propagated label."""
    classes = answer.probabilities.argmax(0)
    scores = []
    for atlas, field in zip(answering.atlases, answer.fields, strict=True):
        label = torch.from_numpy(atlas.label.astype(np.int16))[None]
        moved = warp_label(label, torch.from_numpy(field)[None])[0]
        scores.append(_mean_dice(moved.long(), classes, answering.num_classes))
    return float(np.mean(scores))


def perturbed(answering: Answering, image: np.ndarray) -> list[Tensor]:
    """The network's answers to an image after each of `PERTURBATIONS`, brought back: class indices (D, H, W)."""
    spacing_mm, shape = answering.grid.spacing_mm, answering.grid.shape
    answers = []
    for degrees, axis, shift_voxels, gamma in PERTURBATIONS:
        turn, shift = _rotation(degrees, axis), torch.tensor(shift_voxels, dtype=torch.float32).view(1, 3, 1, 1, 1)
        forward, inverse = (affine_displacement(m[None], shape, spacing_mm) for m in (turn, turn.T))
        # forward: x -> turn(x) + shift; inverse: x -> inverse turn of (x - shift)
        forward, inverse = forward + shift, inverse - _turned(shift, turn.T, spacing_mm)
        turned = warp(as_images(image) ** gamma, forward)
        answer = answering.segment(as_array(turned)).cpu()
        answers.append(warp_probabilities(answer[None], inverse)[0].argmax(0))
    return answers


def _turned(shift: Tensor, turn: Tensor, spacing_mm: tuple[float, float, float]) -> Tensor:
    """A shift in voxels, (1, 3, 1, 1, 1), after a turn in mm."""
    spacing = torch.tensor(spacing_mm)
    return ((turn @ (shift.flatten() * spacing)) / spacing).view(1, 3, 1, 1, 1)


def _rotation(degrees: float, axis: int) -> Tensor:
    i, j = (other for other in range(3) if other != axis)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.eye(3)
    turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
    return turn


def _similarity(answering: Answering, image: np.ndarray, answer: Answer, template: np.ndarray) -> float:
    if not answer.fields:
        return correlation(template, first_channel(image))
    scan = as_images(image)[0].numpy()
    correlations = []
    for atlas, field in zip(answering.atlases, answer.fields, strict=True):
        displacement = torch.from_numpy(field)[None]
        moved = warp(as_images(atlas.image), displacement)[0].numpy()
        mask = warp_label(torch.from_numpy((atlas.label > 0).astype(np.int16))[None], displacement).float()[None]
        near = F.max_pool3d(mask, 7, stride=1, padding=3)[0, 0].numpy() > 0
        of_channels = [correlation(a[near], b[near]) for a, b in zip(moved, scan, strict=True)]
        correlations.append(float(np.mean(of_channels)) if near.any() else -1.0)
    return max(correlations)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation; 0 where one of them is flat."""
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 1e-12 else 0.0


def folding_of(answer: Answer) -> float | None:
    if not answer.fields:
        return None
    fractions = [folding_fraction(jacobian_determinant(torch.from_numpy(field)[None])) for field in answer.fields]
    return float(torch.cat(fractions).mean())


def deciles_of(image: np.ndarray) -> np.ndarray:
    """Deciles of an image, (D, H, W) or (C, D, H, W), channel by channel."""
    channels = image if image.ndim == 4 else image[None]
    return np.concatenate([np.quantile(channel.astype(np.float32), DECILES) for channel in channels])


def intensity_shift(image: np.ndarray, deciles: Sequence[tuple[float, float]]) -> float:
    """Largest distance of a decile from its median over scans, in spreads."""
    own = deciles_of(image)
    return float(max(abs(value - median) / spread for value, (median, spread) in zip(own, deciles, strict=True)))


def estimated_dsc(measures: dict[str, float], calibration: Calibration) -> float:
    """Estimated DSC in [0, 1]: level + damage + rank, see the top of this file."""
    ranks = [np.clip(_deviations(measures[n], n, calibration), -6, 3) for n in RANK if n in measures]
    damage = sum(
        weight * min(0.0, _deviations(measures[name], name, calibration) + SLACK) * calibration.deviations[name]
        for name, weight in calibration.weights.items()
    )
    rank = STEP * (1 - calibration.level) * float(np.mean(ranks))
    return float(np.clip(calibration.level + damage + rank, 0, 1))


def _deviations(value: float, name: str, calibration: Calibration) -> float:
    """Distance above the median over scans, in deviations."""
    return (value - calibration.medians[name]) / calibration.deviations[name]


def fit(
    couples: Sequence[dict[str, float]],
    dice: Sequence[float],
    undamaged: Sequence[bool],
    scans: Sequence[dict[str, float]],
    images: Sequence[np.ndarray],
    foldings: Sequence[float],
    volumes: Sequence[float],
    *,
    of_volumes: tuple[np.ndarray, np.ndarray] | None = None,
    annotation: float = 0.0,
) -> Calibration:
    """Fit how measures predict DSC.

    Args:
        couples: measures of answers for couples, whose labels are known.
        dice: mean DSC of these answers.
        undamaged: whether each couple is as the method generated it.
        scans: measures of unlabelled scans; may be empty.
        images: examples of usual intensities: the unlabelled scans, or without any the undamaged couples.
        foldings: folded shares of registrations to unlabelled scans; may be empty.
        volumes: median voxels of each structure.
        annotation: error 1 - DSC by which annotations of two scans may differ.
        of_volumes: errors of couples' volumes, and their spreads; see `stages.answering.volumes`.
    """
    names = [name for name in MEASURES if name in couples[0]]
    sound = [m for m, good in zip(couples, undamaged, strict=True) if good]
    of_couples, of_scans = (
        {name: (_median([m[name] for m in answers]), _deviation([m[name] for m in answers])) for name in names}
        for answers in (sound, scans or sound)
    )
    usual = {name: of_couples[name][0] - SLACK * of_couples[name][1] for name in names}
    x = np.array([[min(0.0, m[name] - usual[name]) for name in names] for m in couples])
    y = np.array(dice)
    weights, level = _non_negative(x, y)
    harder = 1.0
    if doubt := next((name for name in DOUBT if name in names), None):
        harder = max(1.0, (1 - of_scans[doubt][0]) / max(1 - of_couples[doubt][0], 1e-3))
    left_out = []
    for k in range(len(y)):
        others = np.arange(len(y)) != k
        w, b = _non_negative(x[others], y[others])
        left_out.append(abs(np.clip(b + x[k] @ w, 0, 1) - y[k]))
    own = np.array([deciles_of(image) for image in images])
    medians = np.median(own, axis=0)
    spreads = np.maximum(1.4826 * np.median(np.abs(own - medians), axis=0), LEAST_SPREAD)
    shifts = (np.abs(own - medians) / spreads).max(1)
    return Calibration(
        weights=dict(zip(names, weights.tolist(), strict=True)),
        level=max(0.0, 1 - math.hypot((1 - min(level, 1.0)) * harder, annotation)),
        level_of_couples=level,
        medians={name: median for name, (median, _) in of_scans.items()},
        deviations={name: deviation for name, (_, deviation) in of_scans.items()},
        volumes=list(volumes),
        deciles=[(float(m), float(s)) for m, s in zip(medians, spreads, strict=True)],
        most_shift=2 * max(float(shifts.max()), 4.0),
        most_folding=max(MOST_FOLDING, 3 * max(foldings, default=0.0)),
        error=float(np.mean(left_out)),
        couples=len(couples),
        scans=len(scans),
        annotation=annotation,
        volume_factor=fitted_factor(*of_volumes) if of_volumes else None,
        volume_coverage=coverage(*of_volumes) if of_volumes else None,
    )


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation, estimated robustly from the median absolute deviation."""
    return max(1.4826 * _median(np.abs(np.array(values) - _median(values)).tolist()), LEAST_DEVIATION)


def _non_negative(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights >= 0 and level of the least-squares fit y = x @ weights + level, with a small ridge penalty."""
    from scipy.optimize import lsq_linear  # commands that estimate nothing need not wait for it

    count, names = x.shape
    scale = np.maximum(x.std(0), 1e-3)
    penalty = RIDGE * math.sqrt(count) * np.eye(names)
    rows = np.block([[x / scale, np.ones((count, 1))], [penalty, np.zeros((names, 1))]])
    low = np.append(np.zeros(names), -np.inf)
    solution = lsq_linear(rows, np.append(y, np.zeros(names)), bounds=(low, np.inf)).x
    return solution[:-1] / scale, float(solution[-1])


@dataclass(frozen=True)
class Damage:
    """Damage to a couple that makes its answer worse; severity from 0 (none) to 1.

    The kinds leave out noise, inverted intensities and erased, mirrored or cut images: these remain for testing.
    """

    KINDS = ("moved", "bent", "blurred", "uneven")

    kind: str
    severity: float

    def __call__(
        self, image: Tensor, label: Tensor, spacing_mm: tuple[float, float, float], generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Image (1, C, D, H, W) in [0, 1] and label (1, D, H, W), both damaged; the label moves with the anatomy."""
        shape = (image.shape[2], image.shape[3], image.shape[4])
        if self.kind == "blurred":
            return gaussian_blur(image, 5 * self.severity), label
        if self.kind == "uneven":
            knots = torch.randn((1, 1, 4, 4, 4), generator=generator) * self.severity
            return (image * resize(knots, shape).exp()).clamp(0, 1), label
        if self.kind == "bent":
            field = SpatialAugmentation(0, (1, 1), elastic=1.0).displacement(1, shape, spacing_mm, generator)
            rms = field.square().mean().sqrt().clamp(min=1e-6)
            field = field / rms * self.severity * 0.08 * min(shape)
        else:
            turn = _rotation(50 * self.severity, int(torch.randint(3, (1,), generator=generator)))
            field = affine_displacement(turn[None], shape, spacing_mm)
            direction = F.normalize(torch.randn((1, 3), generator=generator)).view(1, 3, 1, 1, 1)
            field = field + direction * 0.35 * self.severity * min(shape)
        return warp(image, field, padding="zeros"), warp_label(label, field)


LIKE_SCANS = IntensityAugmentation(noise=0.0, blur=0.0)  # couples differ in contrast, as scans do
LIKE_ANATOMY = AUGMENTATIONS["mild"][0]  # of atlases where a method generates nothing
