"""The one error that users see, and text as it may be shown: in one line, without control characters."""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, marks that turn the direction of writing,
# byte order marks, lone surrogates.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class LrlsError(Exception):
    """Bad input: one line that names the scan or setting, what was found, what was expected, what to do next.

    Only `lrls_cli.main` prints it, without a traceback, and exits with 1. Anything else that is raised is a bug.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class LostProcess(LrlsError):
    """Another process of a training ended, and this one cannot go on without it."""

    def __init__(self) -> None:
        super().__init__(
            "training stopped: one of its processes ended, and torchrun names it below; "
            "the same command resumes at the last checkpoint."
        )


def printable(text: str) -> str:
    """The text in one line, with escape sequences, line breaks and the like written out, as in `\\x1b`."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shortened(text: str, most: int = 60) -> str:
    """The text, cut to `most` characters: what users gave is quoted, but never pages of it."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """A number with its noun: "1 scan", "2 scans"."""
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"
