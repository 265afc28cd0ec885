"""Answers of `lrls predict` that nobody has changed: they are no label maps that a person corrected."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stages.answering.answered import recorded_files
from stages.data.contents import bytes_digest
from stages.errors import LrlsError, printable, shortened

DEEPEST = 4  # folders between an answer and its records: as BIDS, sub-01/ses-a/anat
MOST_NAMED = 5


def refuse_answers(files: Iterable[Path]) -> None:
    """Refuse label maps that still are, byte by byte, what `predict` wrote, by the records of the folders around them.

    Args:
        files: absolute paths, where links lead.

    Raises:
        LrlsError: some are.
    """
    known: dict[Path, set[str]] = {}
    unchanged = []
    for file in files:
        digests: set[str] = set()
        for folder in list(file.parents)[:DEEPEST]:
            if folder not in known:
                known[folder] = set(recorded_files(folder).values())
            digests |= known[folder]
        try:
            if digests and bytes_digest(file) in digests:
                unchanged.append(file.name)
        except OSError:  # the checks of the label map say so
            continue
    if unchanged:
        more = f" and {len(unchanged) - MOST_NAMED} more" if len(unchanged) > MOST_NAMED else ""
        named = shortened(printable(", ".join(unchanged[:MOST_NAMED])), 300)
        is_or_are = "is an answer" if len(unchanged) == 1 else "are answers"
        raise LrlsError(
            f"--corrected: {named}{more} {is_or_are} of lrls that nobody has changed; correct them, or take "
            "them out of the folder. Copy those that are right as they are to a folder of their own, and name that one."
        )
