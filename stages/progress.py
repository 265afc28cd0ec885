"""Progress of long work: a rich bar with rate and remaining time, or plain lines outside a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from stages.errors import printable

PLAIN_INTERVAL_S = 15.0


def say(line: str) -> None:
    """A line for the user, beside results."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts units of work.

    Args:
        what: the work, a few words.
        total: units.
        start: units that an earlier run has done.
    """

    def __init__(self, what: str, total: int, *, start: int = 0) -> None:
        self.what, self.total, self.done, self.start = what, total, start, start
        self.began = self.printed = time.monotonic()
        self.note = ""
        self.bar = None
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}", markup=False),
            )
            self.bar = progress.Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task(what, total=total, completed=start, note="")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def advance(self, note: str = "") -> None:
        """One more unit is done; `note` goes behind the bar."""
        self.done += 1
        self.note = printable(note) or self.note
        if self.bar:
            self.bar.update(self.task, advance=1, total=self.total, note=self.note)
        elif self.done == self.total or time.monotonic() - self.printed > PLAIN_INTERVAL_S:
            self.printed = time.monotonic()
            elapsed = self.printed - self.began
            rate = (self.done - self.start) / max(elapsed, 1e-9)
            left = (self.total - self.done) / rate
            print(
                f"{self.what}: {self.done}/{self.total}, {rate:.2g} a second, {left:.0f} s left {self.note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
