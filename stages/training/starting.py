"""Weights that a training starts from, where `start_from: latest` asks for them: a run with one more label goes on.

The weights are an input of what is trained from them, so their digest is part of its identity. Asking again finds the
same ones, whatever became newer since.

Weights remember what they learned from, and what those learned from that they started from. So they do not fit if any
of that is an atlas that is none any more or whose label map or image has changed, a scan that a review excludes, or one
that is held out now; nor if something on the way to them was deleted, since nobody knows then what they saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from stages.artifacts.cohort import Cohort
from stages.artifacts.found import look_through
from stages.artifacts.manifest import Manifest
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
BORROWED = "borrowed"  # the role of weights of another workspace, which learned from other scans
Trained = TypeVar("Trained", Registration, Segmentation)


class Start(NamedTuple):
    """What a training starts from.

    Args:
        source: the artifact, or, where what started from it is finished, its digest; None: from scratch.
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

    They fit if method, seed, structures, channels, voxel size and every tensor of the networks are the same, and if
    nothing that they learned from stands against it; see the top of this file.

    Args:
        settings, inputs: of what will be trained; inputs by their digests.
        force: what was trained before does not matter.
    """
    mine, fitting, others, finished = (dict(settings), dict(inputs)), None, 0, False
    past = Past(cohort, config)
    for version in reversed(listed_versions(kind, target)):
        identity = version.manifest.identity
        if (identity.round, identity.seed) != (round, config.seed):
            continue
        given = {role: digest for role, digest in identity.inputs.items() if role != START}
        if (identity.config, given) == mine and not force:
            if START not in identity.inputs:
                # From scratch, because nothing older fitted, or because that was asked for: an older one tells.
                fitting, finished = None, True
            elif past.may_stay(version.manifest):
                return Start(identity.inputs[START], "")  # `make` finds this version
            else:
                others += 1
        if identity.inputs["cohort"] != inputs["cohort"]:
            others += 1
            if not fitting and past.may_stay(version.manifest):
                fitting = _fitting(kind, version, cohort, config, method, round)
    if fitting:
        return Start(fitting, f"{kind.KIND}: training starts from {fitting.folder.name}'s weights")
    if finished:
        return Start(None, "")
    why = "no earlier weights fit" if others else "there are no earlier weights"
    return Start(None, f"{kind.KIND}: {why}, training starts from scratch")


def _fitting(
    kind: type[Trained], version: Listed, cohort: Cohort, config: Config, method: Method, round: int
) -> Trained | None:
    """A version, opened, if its weights are of the same networks and of a cohort like this one."""
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
        )
        plan = plan_of(method, config, cohort)
        step = plan.step(kind.KIND, round)  # type: ignore[arg-type]
        if same and isinstance(step, Train):
            opened = kind.open(version.folder)
            tensors, _ = read_weights(opened.path("weights.safetensors"))
            fill(plan.trained(step), tensors, version.folder.name, check_only=True)
            return opened
    return None


class Past:
    """What weights have seen, against what may be seen now.

    Args:
        cohort: that is trained on now.
    """

    def __init__(self, cohort: Cohort, config: Config) -> None:
        self.made = {manifest.digest: manifest for _, manifest in look_through(config.workspace).finished}
        self.labelled = _labelled(cohort.manifest)
        self.barred = {case for part in HELD_OUT for case in config.part(part)}
        self.barred |= set(config.review.excluded if config.review else ())

    def may_stay(self, weights: Manifest) -> bool:
        """Whether everything is known that weights learned from, and may still be learned from."""
        cohorts = self._cohorts(weights)
        return bool(cohorts) and all(
            self.barred.isdisjoint(case for cases in _members(before).values() for case in cases)
            and _labelled(before).items() <= self.labelled.items()
            for before in cohorts
        )

    def _cohorts(self, weights: Manifest) -> list[Manifest]:
        """The cohorts of everything that weights come from; none if something is gone."""
        cohorts, waiting, seen = [], [weights], set()
        while waiting:
            manifest = waiting.pop()
            if manifest.identity.kind == Cohort.KIND:
                cohorts.append(manifest)
                continue
            for role, digest in manifest.identity.inputs.items():
                if role == BORROWED or digest in seen:
                    continue
                if digest not in self.made or self.made[digest].identity.outdated:
                    return []
                seen.add(digest)
                waiting.append(self.made[digest])
        return cohorts


def _members(cohort: Manifest) -> Mapping[str, Sequence[str]]:
    return cohort.identity.config["members"]


def _labelled(cohort: Manifest) -> dict[str, str]:
    """The digest of image and label map of every scan whose label a cohort stores."""
    cases = [case for part in TRAINED_ON for case in _members(cohort).get(part, ())]
    return {case: cohort.identity.inputs[f"scan/{case}"] for case in cases}


def _alike(before: tuple[float, ...], now: tuple[float, ...]) -> bool:
    return all(abs(a - b) <= 1e-3 * b for a, b in zip(before, now, strict=True))
