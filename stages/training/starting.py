"""Weights that a training starts from, where `start_from: latest` asks for them: a run with one more label goes on.

The weights are an input of what is trained from them, so their digest is part of its identity. Asking again finds the
same ones, whatever became newer since.

Weights remember what they learned from. So those that learned from an atlas that is none any more (excluded, say) do
not fit, nor those that saw a scan that is held out now.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from stages.artifacts.cohort import Cohort
from stages.artifacts.store import Listed, listed_versions, with_digest
from stages.artifacts.weights import Registration, Segmentation
from stages.artifacts.weights_file import fill, read_weights
from stages.config import Config
from stages.data.faults import HELD_OUT
from stages.data.subsets import TRAINED_ON
from stages.errors import LrlsError
from stages.methods import plan_of
from stages.methods.recipe import Method, Train

START = "start"  # the role of the weights among the inputs
Trained = TypeVar("Trained", Registration, Segmentation)


class Start(NamedTuple):
    """What a training starts from.

    Args:
        source: the artifact, or, where it was deleted since, its digest; None: from scratch.
        told: a line for the user.
    """

    source: Registration | str | None
    told: str


def start_of(
    kind: type[Trained],
    target: Path,
    cohort: Cohort,
    config: Config,
    method: Method,
    *,
    settings: Mapping[str, Any],
    round: int,
    inputs: Mapping[str, str],
    force: bool,
) -> Start:
    """The weights of the newest version in `target` that another cohort gave and that fit.

    They fit if method, seed, structures, channels, voxel size and every tensor of the networks are the same, if all
    their atlases are still atlases, and if none of their scans is held out.

    Args:
        settings, inputs: of what will be trained; inputs by their digests.
        force: what was trained before does not matter.
    """
    mine, fitting, others = (dict(settings), dict(inputs)), None, 0
    for version in reversed(listed_versions(kind, target)):
        identity = version.manifest.identity
        if (identity.round, identity.seed) != (round, config.seed):
            continue
        given = {role: digest for role, digest in identity.inputs.items() if role != START}
        digest = identity.inputs.get(START)
        if digest and (identity.config, given) == mine and not force:
            folder = with_digest(target, digest)
            return Start(kind.open(folder) if folder else digest, "")  # `make` finds this version
        if identity.inputs["cohort"] != inputs["cohort"]:
            others += 1
            fitting = fitting or _fitting(kind, version, cohort, config, method, round)
    if fitting:
        return Start(fitting, f"{kind.KIND}: training starts from {fitting.folder.name}'s weights")
    why = "no earlier weights fit" if others else "there are no earlier weights"
    return Start(None, f"{kind.KIND}: {why}, training starts from scratch")


def _fitting(
    kind: type[Trained], version: Listed, cohort: Cohort, config: Config, method: Method, round: int
) -> Trained | None:
    """A version, opened, if its weights fit."""
    digest = version.manifest.identity.inputs["cohort"]
    folder = with_digest(cohort.folder.parent, digest)
    if folder is None:
        return None
    with suppress(LrlsError):  # damaged, or of another network: these weights do not fit
        before = Cohort.open(folder)
        same = (
            before.structures == cohort.structures
            and before.channels == cohort.channels
            and _alike(before.grid.spacing_mm, cohort.grid.spacing_mm)
            and _labelled(before) <= _labelled(cohort)
            and not set(before.cases) & {case for part in HELD_OUT for case in config.part(part)}
        )
        plan = plan_of(method, config, cohort)
        step = plan.step(kind.KIND, round)  # type: ignore[arg-type]
        if same and isinstance(step, Train):
            opened = kind.open(version.folder)
            tensors, _ = read_weights(opened.path("weights.safetensors"))
            fill(plan.trained(step), tensors, version.folder.name, check_only=True)
            return opened
    return None


def _labelled(cohort: Cohort) -> set[str]:
    return {case for part in TRAINED_ON for case in cohort.parts.get(part, ())}


def _alike(before: tuple[float, ...], now: tuple[float, ...]) -> bool:
    return all(abs(a - b) <= 1e-3 * b for a, b in zip(before, now, strict=True))
