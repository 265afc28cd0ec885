"""Faults of scans, each reported in one line, and `refuse`, which stops a stage if there are any.

Messages name the case and the fault, never a path or anything from a file's header: headers of medical scans hold
names and dates.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.errors import LrlsError

TRAINING = ("atlases", "unlabeled", "supervised")
HELD_OUT = ("dev", "test")

Severity = Literal["fault", "notice"]


@dataclass(frozen=True)
class Fault:
    """One fault of a scan: what was found and how to remedy it. Faults of the cohort have an empty case id.

    Args:
        code: the short name of the check; `docs/checks.md` lists them all.
        severity: a fault stops a stage; a notice is told and stops nothing.
    """

    case: str
    found: str
    remedy: str
    code: str
    severity: Severity = "fault"

    @property
    def stops(self) -> bool:
        return self.severity == "fault"

    def __str__(self) -> str:
        return f"{f'case {self.case}: ' if self.case else ''}{self.found}; {self.remedy}."


class IntakeError(LrlsError):
    """A scan cannot be used; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def refuse(faults: Sequence[Fault]) -> None:
    """Raise the first fault, if any; notices stop nothing.

    Raises:
        LrlsError: the first fault, with the number of further ones.
    """
    faults = [fault for fault in faults if fault.stops]
    if faults:
        more = f" ({len(faults) - 1} more: `lrls check` lists them)" if len(faults) > 1 else ""
        raise LrlsError(f"{faults[0]}{more}")


def not_finite(case: str, kind: str, num_nan: int, num_infinite: int) -> Fault:
    counts = (("NaN", num_nan), ("infinite", num_infinite))
    voxels = " and ".join(f"{count} {name} voxel{'s' if count > 1 else ''}" for name, count in counts if count)
    return Fault(case, f"{kind} has {voxels}", "replace these voxels by 0 or export it again", "not-finite")


def off_grid(case: str) -> Fault:
    found = "its image does not reach the grid, which lies round the first atlas"
    remedy = "set preprocess.align to rigid or affine, or correct the header's origin"
    return Fault(case, found, remedy, "off-grid")


def no_numbers(case: str, kind: str) -> Fault:
    found = f"{kind} has voxels that are no plain numbers, such as complex ones"
    return Fault(case, found, "save it as integers or floats", "voxel-type")


def leaks(members: Mapping[str, Sequence[str]], digests: Mapping[str, str]) -> list[Fault]:
    """Faults of the split: cases in two parts that exclude each other, and one image under two names in two such parts.

    Args:
        members: cases by part.
        digests: of images by case; missing images have none.
    """
    faults = [
        Fault(case, "listed in data.atlases and data.unlabeled", "keep it in one of them", "in-two-parts")
        for case in members.get("atlases", [])
        if case in members.get("unlabeled", [])
    ]
    training = {case: part for part in TRAINING for case in members.get(part, [])}
    held_out = {case: part for part in HELD_OUT for case in members.get(part, [])}
    trained_voxels = {digests[case]: case for case in training if case in digests}
    for case, part in held_out.items():
        if case in training:
            problem = f"listed in data.{training[case]} and data.{part}"
            faults.append(Fault(case, problem, "keep training and held-out cases apart", "in-two-parts"))
        elif twin := trained_voxels.get(digests.get(case, "")):
            problem = (
                f"same image as case {twin}, which data.{training[twin]} trains on, and data.{part} scores this one"
            )
            faults.append(Fault(case, problem, "take one of the two out of the configuration", "same-image"))
    return faults


def disk_fault(folder: Path, needed_bytes: int) -> Fault | None:
    """A fault if the disk of a folder (which need not exist yet) has no room for `needed_bytes`; otherwise None."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes <= free_bytes:
        return None
    problem = f"{in_bytes(needed_bytes)} are needed, the disk of the workspace has {in_bytes(free_bytes)} free"
    return Fault("", problem, "make room, or set workspace to a folder on another disk", "disk-full")


def in_bytes(num_bytes: int) -> str:
    """A size for people: 1.5 GB."""
    power = min(4, int(math.log10(max(num_bytes, 1)) // 3))
    return f"{num_bytes / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
