"""What was done, in words and tables: the page's own text, names of methods in backticks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.artifacts.costs import way_to
from stages.artifacts.manifest import Manifest
from stages.errors import plural
from stages.methods import find_method
from stages.parts.statistics import bootstrap_interval, holm, paired_wilcoxon
from stages.reporting.runs import Gathered, Run
from stages.reporting.scans import Reported

SHOWN = ("settings", "train_reg", "generate", "train_seg", "preprocess", "couples", "budget_s", "part")
MOST_NAMED = 6
PARTS = {"test": "test scan", "dev": "scan for choices (dev)", "unlabeled": "unlabelled scan"}
ROLES = {
    "atlases": ("labelled scan, the atlas", "labelled scans, the atlases"),
    "unlabeled": ("unlabelled scan", "unlabelled scans"),
    "supervised": ("labelled scan", "labelled scans"),
}


def learned_from(gathered: Gathered) -> str:
    parts = gathered.cohort.parts
    roles = [
        f"{plural(len(parts[role]), *nouns)}{_listed(parts[role]) if role != 'unlabeled' else ''}"
        for role, nouns in ROLES.items()
        if parts.get(role)
    ]
    number = plural(len(gathered.cases), PARTS[gathered.part], PARTS[gathered.part].replace("scan", "scans", 1))
    of = plural(len(gathered.names), "structure")
    return f"{number}, {of}; learned from {', and '.join(roles)}."


def _listed(cases: Sequence[str]) -> str:
    if not 0 < len(cases) <= MOST_NAMED:
        return ""
    return f" ({', '.join(cases)})"


def by_structure(gathered: Gathered, scans: Sequence[Reported]) -> list[dict[str, Any]]:
    """A row per structure: "ml" of the truth, the place of the "best" run, and of each run mean, interval and test.

    Tests are paired over scans, against the first run, with Holm's correction over all structures and runs.
    """
    rows: list[dict[str, Any]] = []
    tests: list[tuple[dict[str, Any], float]] = []
    for name in gathered.structures:
        found = [run.of_structure(name) for run in gathered.runs]
        of_runs: list[dict[str, Any]] = []
        for number, own in enumerate(found):
            values = list(own.values())
            low, high = bootstrap_interval(values)
            several = len(values) > 1
            of_run: dict[str, Any] = {
                "dsc": float(np.mean(values)) if values else None, "low": low if several else None,
                "high": high if several else None, "p": None, "difference": None, "values": values,
            }  # fmt: skip
            shared = [case for case in own if case in found[0]]
            if number and len(shared) > 1:
                pair = [own[case] for case in shared], [found[0][case] for case in shared]
                of_run["difference"] = float(np.mean(np.subtract(*pair)))
                tests.append((of_run, paired_wilcoxon(*pair)))
            of_runs.append(of_run)
        known = [k for k, of_run in enumerate(of_runs) if of_run["dsc"] is not None]
        ml = [
            row["truth_ml"]
            for scan in scans
            for row in scan.numbers.rows
            if row["structure"] == name and row["truth_ml"]
        ]
        rows.append(
            {
                "structure": name,
                "ml": float(np.mean(ml)) if ml else None,
                "best": max(known, key=lambda k: of_runs[k]["dsc"]) if known else None,
                "runs": of_runs,
            }
        )
    for (of_run, _), p in zip(tests, holm([p for _, p in tests]), strict=True):
        of_run["p"] = p
    return rows


def done(gathered: Gathered) -> list[tuple[str, str]]:
    """What was done: a heading and a sentence each."""
    cohort, grid = gathered.cohort, gathered.cohort.grid
    settings = cohort.manifest.identity.config.get("preprocess", {})
    told = [("Scans", learned_from(gathered))]
    told.append(("Structures", f"{len(gathered.names)}: {', '.join(gathered.names)}"))
    if list(gathered.structures) != list(gathered.names):
        told.append(("Reported together", ", ".join(gathered.structures)))
    spacing = " x ".join(f"{s:.3g}" for s in grid.spacing_mm)
    channels = f"; {cohort.channels} images a scan" if cohort.channels > 1 else ""
    told.append(("Grid", f"{' x '.join(map(str, grid.shape))} voxels of {spacing} mm{channels}. Answers are scored in "
                 "each scan's own voxels; the viewer shows this grid."))  # fmt: skip
    align = settings.get("align")
    told.append(
        (
            "Alignment",
            {
                "affine": "every scan was aligned to the first atlas, affinely",
                "none": "scans were taken to lie alike; nothing was aligned",
            }.get(align, f"{align}"),
        )
    )
    fallen = sorted({case for run in gathered.runs for case in run.held_out.fallen_back()} | set(cohort.fallen_back()))
    if fallen:
        told.append(("Alignment refused", f"{', '.join(fallen)}: centres of mass were used"))
    if cohort.flat_borders:
        borders = (" and ".join(cohort.structures[c - 1] for c in border.classes) for border in cohort.flat_borders)
        told.append(("Flat borders", f"{'; '.join(borders)} meet in a plane, in the atlases and so in answers"))
    for run in gathered.runs:
        told.append(
            (f"Method `{run.name}`", f"{_sentence(find_method(run.method).summary)} {_time_of(run, gathered)}".strip())
        )
    return told


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _time_of(run: Run, gathered: Gathered) -> str:
    made = {digest: manifest for digest, (_, manifest) in gathered.found.items()}
    if run.artifact is None:
        return ""
    scores = run.artifact.manifest
    seconds = sum(manifest.wall_time_s for manifest in way_to(scores, made).values() if manifest)
    device = singular(scores.device)
    if {"registration", "segmentation"} & scores.identity.inputs.keys():
        text = f"It took {_duration(seconds)} to the last weights on {device}."
    else:
        text = f"Nothing is trained; preparing the scans took {_duration(seconds)} on {device}."
    if scores.scan_s is not None:
        is_aligned = gathered.cohort.manifest.identity.config.get("preprocess", {}).get("align") != "none"
        apart = ", besides its alignment to the atlas" if is_aligned else ""
        text += f" An answer takes {scores.scan_s:.2g} s a scan{apart}."
    return text


def singular(text: str) -> str:
    """A device as artifacts name it, "1 threads" put right."""
    return re.sub(r"\b1 threads\b", "1 thread", text)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def lineage(gathered: Gathered) -> list[dict[str, Any]]:
    """Every artifact on the way to the answers, the newest last: name, digest, times, settings and inputs."""
    made = {digest: manifest for digest, (_, manifest) in gathered.found.items()}
    on_the_way: dict[str, Manifest] = {}
    for run in gathered.runs:
        for manifest in run.manifests:
            on_the_way |= {digest: each for digest, each in way_to(manifest, made).items() if each}
            on_the_way[manifest.digest] = manifest
            held_out = manifest.identity.inputs.get("held-out")
            on_the_way |= {held_out: made[held_out]} if held_out in made else {}
    on_the_way |= {artifact.manifest.digest: artifact.manifest for artifact in gathered.artifacts}
    return [_line(manifest, gathered) for manifest in sorted(on_the_way.values(), key=lambda each: each.created)]


def _line(manifest: Manifest, gathered: Gathered) -> dict[str, Any]:
    identity = manifest.identity
    folder = gathered.found[manifest.digest][0] if manifest.digest in gathered.found else None
    method = identity.config.get("method")
    kind = folder.parent.name if folder and identity.kind == "cohort" else identity.kind  # which says the part
    name = " ".join(filter(None, [method if isinstance(method, str) else "", kind, folder.name if folder else ""]))
    settings = {key: identity.config[key] for key in SHOWN if identity.config.get(key) not in (None, {})}
    return {
        "name": name,
        "kind": identity.kind,
        "digest": manifest.digest,
        "made_by": identity.made_by,
        "created": manifest.created[:16].replace("T", " "),
        "time": _duration(manifest.wall_time_s),
        "memory": f"{manifest.peak_memory_mb / 1000:.1f} GB" if manifest.peak_memory_mb else "",
        "device": singular(manifest.device),
        "seed": identity.seed,
        "round": identity.round,
        "settings": [(key, value) for group, values in settings.items() for key, value in _flat(group, values)],
        "inputs": sorted(identity.inputs.items()),
    }


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    """Settings as lines: "train_seg.steps", "500"."""
    if isinstance(value, dict):
        return [
            line for key, inner in value.items() for line in _flat(f"{name}.{key}".removeprefix("settings."), inner)
        ]
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def versions(gathered: Gathered) -> list[tuple[str, str]]:
    """The packages that the answers were made with."""
    packages: dict[str, set[str]] = {}
    for run in gathered.runs:
        for manifest in run.manifests:
            for name, version in manifest.packages.items():
                packages.setdefault(name, set()).add(version)
    return [(name, ", ".join(sorted(found))) for name, found in packages.items()]


def rounded(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number for a table; empty where there is none."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:{'+' if sign else ''}.{digits}f}"
