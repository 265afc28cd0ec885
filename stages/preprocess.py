"""Stage 1: bring scans to one orientation, intensity range, space and grid, and remember the way back."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import SimpleITK as sitk

from stages.artifacts.cohort import Cohort, Grid, write_images
from stages.artifacts.digests import digest_of
from stages.artifacts.draft import Draft, locked, working_in
from stages.artifacts.files import atomic_write_text
from stages.artifacts.found import WORK
from stages.artifacts.manifest import peek_manifest
from stages.artifacts.store import make, verify, versions
from stages.config import Config
from stages.data.bringing import Pass
from stages.data.channels import counted
from stages.data.checks import cases_of, cheap_faults, examine_all, faults_among, folder_fault, notices_among
from stages.data.facts import Known, Looked
from stages.data.faults import Fault, disk_fault, refuse
from stages.data.flat_borders import find_flat_borders
from stages.data.outliers import alignment_notices
from stages.data.prepare import about_of, read_about
from stages.data.subsets import MEMBERS, TRAINED_ON, Part, cohort_folder, cohort_settings, roles_of
from stages.errors import LrlsError

WORK_VERSION = 3  # of the files in it
OLD_S = 24 * 3600.0  # a process that goes on writes into its folder more often


def preprocess(
    config: Config,
    part: Part = "train",
    *,
    base: Cohort | None = None,
    needs_unlabeled: bool = True,
    force: bool = False,
) -> Cohort:
    """Make the cohort of a part of the split.

    "train" (atlases with labels, unlabelled scans without) sets the grid and the reference; the other parts are brought
    to that grid. Labels of held-out scans are never read here. No scan is decoded where the cohort is up to date and
    the scans' files have not changed.

    Args:
        base: the "train" cohort where it is open already.
        needs_unlabeled: whether a cohort without unlabelled scans is a fault.
        force: make a new version even where one is up to date.

    Raises:
        LrlsError: the first fault of the scans, with the number of further ones.
    """
    members = {role: config.part(role) for role in MEMBERS[part]}
    if part != "train" and not members[part]:
        raise LrlsError(f"data.{part} lists no scan; list labelled scans there.")
    if part != "train" and base is None:
        base = preprocess(config, "train", needs_unlabeled=False)
    if fault := folder_fault(config):
        refuse([fault])
    roles, beside = roles_of(config, part, needs_unlabeled=needs_unlabeled)
    known = Known(config)
    looked = known.look(cases_of(config, roles, beside, labels=part in ("train", "supervised")))
    facts = known.facts(looked)
    target, settings = cohort_folder(config, part), cohort_settings(config, part)
    if len(facts) < len(looked) and (
        faults_among(config, facts, roles, beside)
        or cheap_faults(config, looked, roles, beside)
        or (not force and is_made_with(settings, target))  # perhaps these are its scans
    ):
        facts = dict(examine_all(config, looked))
    refuse(faults_among(config, facts, roles, beside))

    jobs = [(role, case) for role, cases in members.items() for case in cases]
    channels = len(looked[jobs[0][1]].images)
    if base and channels != base.channels:
        raise LrlsError(
            f"case {jobs[0][1]}: found {counted(channels)}, and the cohort was made of {counted(base.channels)} a "
            "scan; make it again with `lrls preprocess`."
        )
    work = target / (WORK + _work_key(config, part, base, [looked[case] for _, case in jobs])[:16])
    way = Pass(config, looked, [case for _, case in jobs], members.get("atlases", []), roles, beside, base, work)

    def write(draft: Draft) -> None:
        draft.add_elapsed(way.took_s())
        with working_in(target):  # scans on the grid lie beside the draft
            reference, grid = way.run(f"preprocess {part}")
        for case, current in way.facts.items():
            if current.digest != facts[case].digest:
                raise LrlsError(f"case {case}: its files have changed since the command began; run it again.")
        num_bytes = len(jobs) * int(np.prod(grid.shape)) * (2 * channels + 1) + reference.GetNumberOfPixels() * 4
        if fault := disk_fault(draft.folder, num_bytes):
            raise LrlsError(str(fault))
        notices = [*notices_among(config, way.facts, roles, beside), *way.notices, *_unlike_others(way, members, base)]
        _assemble(draft.folder, way, reference, grid, config, members, channels, notices)
        _pictures(draft.folder, jobs, config, base)
        draft.save_elapsed()

    if len(facts) < len(looked):
        # The cohort's inputs are known only after its scans are decoded, and scans are decoded once.
        if base:
            verify(base.folder)
        with working_in(target):
            way.run(f"preprocess {part}")
        facts = way.facts
    cohort = make(
        Cohort,
        target,
        write,
        made_by="preprocess",
        settings=settings,
        seed=0,  # nothing is drawn here: alignments have a seed of their own
        inputs={**{f"scan/{case}": facts[case].digest for _, case in jobs}, "cohort": base},
        force=force,
    )
    with suppress(LrlsError), locked(target, wait_s=0.0):  # another process may read its scans, even the same
        for leftover in target.glob(f"{WORK}*"):
            with suppress(OSError):  # a cohort with other settings may be about to be written from its own
                if leftover == work or leftover.stat().st_mtime < time.time() - OLD_S:
                    shutil.rmtree(leftover, ignore_errors=True)
    return cohort


def is_made_with(settings: dict[str, Any], target: Path) -> bool:
    """Whether a version has these settings, whichever its scans."""
    return any(peek_manifest(folder).identity.config == settings for folder in versions(target))


def _work_key(config: Config, part: Part, base: Cohort | None, looked: Sequence[Looked]) -> str:
    """What scans on the grid depend on, as far as that is known before they are decoded."""
    contents = [[scan.case, scan.digests] for scan in looked]
    return digest_of([WORK_VERSION, cohort_settings(config, part), base.manifest.digest if base else None, contents])


def _assemble(
    folder: Path, way: Pass, reference: sitk.Image, grid: Grid, config: Config, members: dict[str, list[str]],
    channels: int, notices: Sequence[Fault],
) -> None:  # fmt: skip
    """`cohort.h5`, `cohort.json` and `transforms/`, of the scans that a pass brought to the grid."""
    (folder / "transforms").mkdir(exist_ok=True)
    labelled = [case for role, cases in members.items() if role in TRAINED_ON for case in cases]
    abouts = {}
    with write_images(folder, reference) as add:
        for case in way.members:
            with np.load(way.file(case)) as file:
                abouts[case] = about_of(file)
                add(case, file["image"], file["label"] if case in labelled else None)
            text = json.dumps(abouts[case]["record"], indent=1)
            atomic_write_text(folder / "transforms" / f"{case}.json", text)
    faces = [(abouts[case]["faces"], tuple(abouts[case]["record"]["direction"])) for case in labelled]
    about = {
        "grid": asdict(grid),
        "structures": list(config.structures),
        "parts": members,
        "flat_borders": [asdict(border) for border in find_flat_borders(faces)],
        "notes": [str(notice) for notice in notices],
        **({"channels": channels} if channels > 1 else {}),
    }
    atomic_write_text(folder / "cohort.json", json.dumps(about, indent=1))


def _unlike_others(way: Pass, members: dict[str, list[str]], base: Cohort | None) -> list[Fault]:
    """Scans that fit the reference far worse than the others do, once aligned."""
    fits = {case: float(read_about(way.file(case))["record"]["correlation"]) for case in way.members}
    if base is None:
        reference = members["atlases"][0]
        del fits[reference]
        return alignment_notices(fits, reference=reference)
    reference, *others = base.parts["atlases"] + base.parts["unlabeled"]
    return alignment_notices(fits, [base.transform(case)["correlation"] for case in others], reference=reference)


def _pictures(folder: Path, jobs: list[tuple[str, str]], config: Config, base: Cohort | None) -> None:
    """The same slice of every scan under the first atlas's contours, which shows a scan that is not aligned."""
    from stages.parts.channels import first_channel
    from stages.pictures import couples_page

    (folder / "qc").mkdir(exist_ok=True)
    with h5py.File(folder / "cohort.h5") as file:
        labels = file["labels"]
        first = next((case for _, case in jobs if case in labels), None)
        outline = labels[first][()] if first else None
        if base and base.parts["atlases"]:
            outline = base.label(base.parts["atlases"][0])
        rows = []
        for role, case in jobs[:24]:
            name = "atlas" if role == "atlases" else "scan"
            rows.append({"image": first_channel(file["images"][case][()]), "label": outline, name: case})
        couples_page(rows, folder / "qc" / "cohort.png", structures=list(config.structures))
