"""Case ids: names of scans' files without their endings. They become names of files, keys and cells of tables.

Spaces, brackets, commas, quotes and letters of all scripts are fine; what cannot be carried safely is refused here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from stages.errors import UNPRINTABLE, printable, shortened

MOST_BYTES = 235  # in UTF-8; names of files that are made of an id may have 20 more, and file systems take 255


def id_fault(case: str, most_bytes: int = MOST_BYTES) -> str | None:
    """What is wrong with a case id and the remedy, "found; remedy"; None: nothing."""
    named = f"case id '{printable(shortened(case))}'"
    if not case.strip():
        return "a case id is empty; give the name of the scan's file without its ending"
    if UNPRINTABLE.search(case):
        return f"{named} holds a control character; rename the scan's files"
    if "/" in case or "\\" in case:
        return f"{named} holds a path separator; give the name of a file in the folder of the images"
    if case.startswith("."):
        return f"{named} begins with a dot, as hidden files do; rename the scan's files"
    if (num_bytes := len(case.encode())) > most_bytes:
        return f"{named} has {num_bytes} bytes in UTF-8, at most {most_bytes} can be used; shorten its files' names"
    return None


def twins(cases: Sequence[str]) -> tuple[str, str] | None:
    """The first two ids that many file systems take for one: equal but for upper and lower case or accents' codes."""
    seen: dict[str, str] = {}
    for case in cases:
        alike = as_compared(case)
        if alike in seen:
            return seen[alike], case
        seen[alike] = case
    return None


def as_compared(name: str) -> str:
    """A name as file systems compare it that ignore case: `ss` for a sharp s, one letter for both small sigmas.

    Source: The Unicode Standard, 3.13, D145: canonical caseless matching; APFS, and ext4 with casefold.
    """
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
    return unicodedata.normalize("NFD", folded.casefold())


def fault_among(cases: Sequence[str], most_bytes: int = MOST_BYTES) -> str | None:
    """The first fault of a list of case ids, "found; remedy"; None: there is none."""
    for case in cases:
        if fault := id_fault(case, most_bytes):
            return fault
    if not (pair := twins(cases)):
        return None
    first, second = pair
    if first == second:
        return f"case {first} is listed more than once; list it once"
    if unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second):
        return f"two case ids look the same, '{first}', and are spelt with other codes (NFC, NFD); rename one scan"
    return f"case ids '{first}' and '{second}' differ in upper and lower case only; rename one scan"
