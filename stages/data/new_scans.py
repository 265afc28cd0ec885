"""Finding scans that no configuration lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stages.case_ids import fault_among
from stages.data.bids import files_in_bids, is_bids
from stages.data.channels import new_channels, numbered_files, split_name
from stages.data.dicom_files import series_in
from stages.data.faults import IntakeError
from stages.data.intake import SUFFIXES, case_id
from stages.data.neutral import ending_of
from stages.errors import LrlsError

MOST_NAMED = 5  # of the entries that are left out
MOST_BYTES = 242  # of a new scan's name: `_rtstruct.dcm` is the longest that answers add, and file systems take 255


def find_scans(paths: Sequence[Path], channels: int = 1) -> tuple[list[tuple[str, Path]], list[str]]:
    """Every scan as (case, file or DICOM folder); a folder that is no DICOM series stands for all scans in it.

    Scans of the same name in several folders are named "<folder>_<name>".

    Args:
        channels: of a scan; if there are several, all files `<case>_<number>` of a folder are one scan, which its
            first file stands for.

    Returns:
        The scans, and lines that name what was left out.

    Raises:
        LrlsError: a folder holds no scan or cannot be read, or two scans cannot be told apart by name.
    """
    scans: list[Path] = []
    left_out: list[str] = []
    for path in paths:
        path = Path(os.path.abspath(path))  # `..` and `.` have no names
        if path.is_dir() and is_bids(path):
            found = files_in_bids(path)
            scans += [path / image for image in found.images.values()]
            left_out += [f"left out of {path.name}: {line}" for line in found.left_out[:MOST_NAMED]]
            if found.images:
                continue
        if not path.is_dir() or series_in(path, nested=False):
            scans.append(path)
            continue
        try:
            inside = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
        except PermissionError:
            raise LrlsError(f"{path} cannot be read: no permission; give yourself permission, or copy it.") from None
        in_folder = [entry for entry in inside if _is_scan(entry)]
        if not in_folder:
            kinds = ", ".join(SUFFIXES)
            raise LrlsError(f"{path} holds no scan ({kinds}, or folders with a DICOM series); name another folder.")
        others = [entry.name for entry in inside if entry not in in_folder]
        if others:
            named = ", ".join(others[:MOST_NAMED]) + (", ..." if len(others) > MOST_NAMED else "")
            left_out.append(f"left out of {path.name}, because they are no scans: {named} ({len(others)} in all)")
        scans += in_folder
    if channels > 1:
        scans = [_first_channel(scan) for scan in scans]
    scans = list(dict.fromkeys(scans))
    cases = [name_of_scan(scan, channels) for scan in scans]
    named_cases = [
        case if cases.count(case) == 1 else f"{scan.parent.name}_{case}"
        for case, scan in zip(cases, scans, strict=True)
    ]
    doubled = sorted({name for name in named_cases if named_cases.count(name) > 1})
    if doubled:
        raise LrlsError(f"two scans are named {doubled[0]}; rename one of them, or predict them apart.")
    for name in named_cases:
        if not name.isprintable() or not name.strip(" ."):
            shown = name.encode("unicode_escape", "surrogateescape").decode("ascii", "replace")
            raise LrlsError(f"a scan's name has characters that cannot be shown ({shown}); rename it.")
    if fault := fault_among(named_cases, MOST_BYTES):  # their answers would hide, or replace one another
        raise LrlsError(f"{fault}.")
    return list(zip(named_cases, scans, strict=True)), left_out


def _first_channel(scan: Path) -> Path:
    """The file that stands for a scan's channels, of which one is given."""
    name, number = split_name(scan)
    found = {} if number is None else numbered_files(scan.parent, name)
    return next(iter(found.values()))[0] if found else scan


def name_of_scan(scan: Path, channels: int) -> str:
    """The case id of a scan that no configuration lists, from its file."""
    return split_name(scan)[0] if channels > 1 and split_name(scan)[1] is not None else case_id(scan)


def files_of_scan(scan: Path, case: str, channels: int) -> list[Path]:
    """The files and DICOM folders of a scan; without them, what was given."""
    try:
        return new_channels(scan, case, channels)
    except IntakeError:
        return [scan]


def _is_scan(entry: Path) -> bool:
    return bool(ending_of(entry)) if entry.is_file() else entry.is_dir() and bool(series_in(entry))
