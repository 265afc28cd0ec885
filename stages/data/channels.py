"""Several images of one scan, its channels: `<case>_0000`, `<case>_0001`, ..., as nnU-Net names them.

All channels of a scan lie on one grid, and every scan has as many as the first atlas. Numbered scans are no channels:
`img_0001` is a scan of its own where it is a case of the configuration or a label map has its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stages.data.faults import Fault, IntakeError
from stages.data.geometry import Geometry, differences
from stages.data.neutral import ending_of, files_named

CHANNEL = re.compile(r"_(\d{4})$")


def suffix_of(channel: int) -> str:
    return f"_{channel:04d}"


def counted(number: int, names: Sequence[str] = ()) -> str:
    """How many channels, for people: 2 channels (_0000 T1w, _0001 T2w)."""
    if number == 1:
        return "1 channel"
    numbers = [suffix_of(k) for k in range(number)]
    each = [f"{own} {name}" if name != own else own for own, name in zip(numbers, names or numbers, strict=True)]
    return f"{number} channels ({', '.join(each)})"


def split_name(path: Path) -> tuple[str, int | None]:
    """A scan's name without ending and channel, and the channel; None: the name has no channel."""
    stem = path.name[: len(path.name) - len(ending_of(path))]
    match = CHANNEL.search(stem)
    return (stem[: match.start()], int(match[1])) if match and match.start() else (stem, None)


def numbered_files(folder: Path, case: str) -> dict[int, list[Path]]:
    """The files and folders `<case>_<four digits>` of a folder, by their number, in order."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(f"{case}_")]
    except OSError:
        return {}
    numbers = {number for name in names if (number := split_name(Path(name))[1]) is not None}
    found = {}
    for number in sorted(numbers):
        name = f"{case}{suffix_of(number)}"
        paths = files_named(folder, name) + ([folder / name] if (folder / name).is_dir() else [])
        if paths:
            found[number] = paths
    return found


def channel_files(folders: Sequence[Path], case: str, is_a_case: Callable[[str], bool]) -> list[Path]:
    """The channels of a case in order; empty: it has no channel but perhaps `_0000`.

    Args:
        is_a_case: whether a name such as `<case>_0001` is that of a scan of its own.

    Raises:
        IntakeError: a channel is missing or there twice, or there is an image `<case>`, too.
    """
    found: dict[int, list[Path]] = {}
    for folder in folders:
        for number, paths in numbered_files(folder, case).items():
            if not number or not is_a_case(f"{case}{suffix_of(number)}"):
                found.setdefault(number, []).extend(paths)
    if not any(found):  # `_0000` alone is a scan's only image
        return []
    numbers = sorted(found)
    named = ", ".join(map(suffix_of, numbers))
    if any(files_named(folder, case) or (folder / case).is_dir() for folder in folders):
        problem = f"an image without a channel's number, and channels {named}"
        raise IntakeError(Fault(case, problem, "keep one or the other", "several-files"))
    for number, paths in found.items():
        if len(paths) > 1:
            problem = f"{len(paths)} files or folders of channel {suffix_of(number)}"
            raise IntakeError(Fault(case, problem, "keep one of them", "several-files"))
    if missing := [suffix_of(k) for k in range(numbers[-1]) if k not in found]:
        problem = f"channel{'s' * (len(numbers) > 1)} {named} without {', '.join(missing)}"
        remedy = "add what is missing, or number the channels from _0000 without a gap"
        raise IntakeError(Fault(case, problem, remedy, "channels"))
    return [found[number][0] for number in numbers]


def new_channels(path: Path, case: str, number: int, names: Sequence[str] = ()) -> list[Path]:
    """The files of a new scan, of which one is given; the others lie beside it.

    Args:
        number: of the channels that a model learned from.

    Raises:
        IntakeError: the scan has another number of channels.
    """
    if number == 1:
        return [path]
    name, own = split_name(path)
    found = {0: [path]} if own is None else numbered_files(path.parent, name)
    if sorted(found) != list(range(number)) or any(len(paths) > 1 for paths in found.values()):
        has = ", ".join(suffix_of(k) for k in found) if own is not None else "one image"
        problem = f"has {has}, and the model learned from {counted(number, names)}"
        expected = ", ".join(f"{case}{suffix_of(k)}" for k in range(number))
        raise IntakeError(Fault(case, problem, f"lay its files side by side, named {expected}", "channels"))
    return [found[k][0] for k in range(number)]


def of_channel(fault: Fault, channel: int, number: int) -> Fault:
    """A fault of a single image as one of its scan, which has `number` of them."""
    return fault if number == 1 else replace(fault, found=f"channel {suffix_of(channel)}: {fault.found}")


def channel_grid_faults(geometries: Sequence[Geometry | None], case: str) -> list[Fault]:
    """Differences between the geometries of a scan's channels and that of its first one; None: not known."""
    first, *others = geometries
    if first is None:
        return []
    faults = []
    for number, geometry in enumerate(others, start=1):
        if geometry:
            names = (f"channel {suffix_of(0)}", f"channel {suffix_of(number)}")
            faults += [
                Fault(case, found, remedy, "channel-grid") for found, remedy in differences(first, geometry, *names)
            ]
    return faults


def count_fault(case: str, number: int, first: str, expected: int) -> Fault | None:
    """The fault of a case with another number of channels than the first atlas."""
    if number == expected:
        return None
    if number < expected:
        missing = ", ".join(f"{case}{suffix_of(k)}" for k in range(number, expected))
        remedy = f"add {missing}, or take the case out of the configuration"
    else:
        remedy = f"take {', '.join(map(suffix_of, range(expected, number)))} away, or add as many to the other scans"
    return Fault(case, f"{counted(number)}, and the first atlas {first} has {counted(expected)}", remedy, "channels")
