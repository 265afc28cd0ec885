"""Answers as a BIDS derivative dataset.

    dataset_description.json                                           who made it, and of what
    sub-<subject>[/ses-<session>]/anat/*_desc-lrls_dseg.nii.gz         label map, named as its scan is
                                       *_desc-lrls_dseg.json, .tsv     what it was made of; values, names, colours
    .bidsignore                                                        what else `predict` writes

Source: https://bids-specification.readthedocs.io, imaging derivatives
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from stages.artifacts.files import atomic_write_text
from stages.data.bids import DESCRIPTION, parsed
from stages.data.new_scans import name_of_scan
from stages.data.writers import one_line
from stages.errors import LrlsError
from stages.text_files import read_json

VERSION = "1.10.0"  # of BIDS
OF_SCANS = ("sub", "ses", "sample", "acq", "ce", "rec", "dir", "run", "echo", "part", "chunk")
NOT_BIDS = (
    "volumes.csv",
    "qc.csv",
    "outliers.csv",
    "outliers.png",
    "qc",
    "labels.txt",
    "labels.ctbl",
    "probabilities",
    "transforms",
    "*.dcm",
    ".lrls",
)
DEEPEST = 8  # folders between a scan and its dataset


def names_in_bids(scans: Sequence[tuple[str, Path]], channels: int) -> dict[str, str]:
    """The label map's path for each case, without its ending. A name that is not as BIDS has them becomes a subject.

    Args:
        scans: (case, file or folder).
        channels: of a scan.

    Raises:
        LrlsError: two scans would have one name, or a name holds no letter or digit.
    """
    names: dict[str, str] = {}
    for case, scan in scans:
        own = name_of_scan(scan, channels)
        name = parsed(Path(own))
        entities = [pair for pair in name.entities if pair[0] in OF_SCANS] if name else []
        if not entities:
            subject = "".join(re.findall(r"[A-Za-z0-9]+", case))
            if not subject:
                raise LrlsError(f"--bids: the name of case {case} has no letter or digit (a-z, 0-9); rename the scan.")
            entities = [("sub", subject)]
        folders = [f"{key}-{value}" for key, value in entities if key in ("sub", "ses")]
        stem = "_".join([*(f"{key}-{value}" for key, value in entities), "desc-lrls", "dseg"])
        path = str(PurePosixPath(*folders, "anat", stem))
        if path in names.values():
            other = next(first for first, given in names.items() if given == path)
            raise LrlsError(f"--bids: {other} and {case} would both be {path}; predict them into folders of their own.")
        names[case] = path
    return names


def write_dataset(out: Path, scans: Sequence[tuple[str, Path]], method: str) -> None:
    """Write `dataset_description.json` and `.bidsignore`.

    The scans' dataset is named by its DOI, and linked where the answers lie within it.
    """
    roots = {root for _, scan in scans if (root := _dataset_of(scan))}
    description: dict[str, Any] = {
        "Name": "Label maps by lrls",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {"Name": "lrls", "Version": importlib.metadata.version("lrls"), "Description": f"method {method}"}
        ],
    }
    if dois := sorted({doi for root in roots if (doi := _doi(root))}):
        description["SourceDatasets"] = [{"DOI": doi} for doi in dois]
    if link := _link(out, roots):
        description["DatasetLinks"] = {"raw": link}
    atomic_write_text(out / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    atomic_write_text(out / ".bidsignore", "\n".join(NOT_BIDS) + "\n")


def write_sidecars(
    out: Path, name: str, scan: Path, method: str, structures: Mapping[str, int], colours: Sequence[str]
) -> list[str]:
    """Write what stands beside a label map.

    Args:
        name: of the label map without its ending, relative to `out`.
        structures: value of each.
        colours: of them, "#rrggbb".

    Returns:
        The files' paths in `out`.
    """
    about: dict[str, Any] = {"Manual": False, "Description": f"Answer of lrls, method {method}, on the scan's voxels."}
    root = _dataset_of(scan)
    if root and _link(out, {root}):
        about["Sources"] = [f"bids:raw:{_absolute(scan).relative_to(root).as_posix()}"]
    atomic_write_text(out / f"{name}.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    rows = [
        f"{value}\t{one_line(structure)}\t{colour}"
        for (structure, value), colour in zip(structures.items(), colours, strict=True)
    ]
    atomic_write_text(out / f"{name}.tsv", "\n".join(["index\tname\tcolor", *rows]) + "\n")
    return [f"{name}.json", f"{name}.tsv"]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _dataset_of(scan: Path) -> Path | None:
    """The BIDS folder that a scan lies in."""
    for folder in _absolute(scan).parents[:DEEPEST]:
        if (folder / DESCRIPTION).is_file():
            return folder
    return None


def _doi(root: Path) -> str:
    try:
        values = read_json(root / DESCRIPTION)
    except (OSError, ValueError):
        return ""
    doi = values.get("DatasetDOI") if isinstance(values, dict) else None
    return doi if isinstance(doi, str) and re.fullmatch(r"(doi:|https://doi\.org/)?10\.\S{1,200}", doi) else ""


def _link(out: Path, roots: set[Path]) -> str:
    """The way from the answers to their dataset; empty: they do not lie within it, and a path would name this disk."""
    if len(roots) != 1:
        return ""
    (root,) = roots
    below = _absolute(out)
    return Path(os.path.relpath(root, below)).as_posix() + "/" if below.is_relative_to(root) else ""
