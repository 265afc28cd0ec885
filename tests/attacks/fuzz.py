"""Fuzz of every reader: mutated inputs, read in forked processes under a limit of time and memory.

    make fuzz                              10 000 inputs for each reader
    cd tests && PYTHONPATH=.. python -m attacks.fuzz [--reader nifti] [--tries 10000] [--seed 0] [--keep FOLDER]

An input is sound files of which one or several were mutated. Inputs whose refusal says something new join the sound
ones, so that mutations pile up where they lead somewhere. Each must be read, or refused with an `LrlsError`: one line,
no control characters, nothing that its header says of the patient. Anything else (another error, lines of libraries on
the terminal, more than 20 s, more than 500 MB) makes this exit with 1; such inputs are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from attacks.garbled import ANY, MOST_BYTES, Mutator, spliced
from attacks.trying import available, failed, table

SECONDS, MORE_MB = 20.0, 500.0
BATCH = 200  # inputs that one process reads
MOST_KEPT = 300  # inputs that join the sound ones
MARK = "Zebedee"  # in sound headers where names stand; no message may quote it

Files = dict[str, bytes]


def as_they_are(files: Files, draw: Random) -> Files:
    return files


@dataclass(frozen=True)
class Reader:
    """How a kind of input is made and read.

    Args:
        sound: inputs that are read.
        read: reads the input in a folder; raises LrlsError if it refuses it.
        mutators: besides those of any bytes, and as frequent as they.
        changed: which files are mutated.
        repaired: makes digests right again.
        of_all: mutates all files at once.
        unlike: what is said of those of the sound inputs that are refused as they are.
    """

    sound: Callable[[], list[Files]]
    read: Callable[[Path], Any]
    mutators: tuple[Mutator, ...] = ()
    changed: str = ".*"
    repaired: Callable[[Files, Random], Files] = as_they_are
    of_all: tuple[Callable[[Files, Random], Files], ...] = ()
    unlike: str = "^$"


@dataclass
class Campaign:
    """What became of the inputs of a reader."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    messages: set[str] = field(default_factory=set)
    slowest_s: float = 0.0
    most_mb: float = 0.0


def mutated(reader: Reader, corpus: Sequence[Files], draw: Random) -> Files:
    """An input: files of the corpus, one to three times changed."""
    files = dict(draw.choice(corpus))
    if reader.of_all and draw.random() < 0.5:
        return reader.of_all[draw.randrange(len(reader.of_all))](files, draw)
    names = [name for name in sorted(files) if re.fullmatch(reader.changed, name)]
    name = draw.choice(names)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if draw.random() < 0.05:
            others = [other[name] for other in corpus if name in other]
            files[name] = spliced(files[name], draw.choice(others), draw)
            continue
        mutators = reader.mutators if reader.mutators and draw.random() < 0.6 else ANY
        files[name] = draw.choice(mutators)(files[name], draw)[: 5 * MOST_BYTES]
    return reader.repaired(files, draw)


def fuzz(name: str, reader: Reader, tries: int, seed: int, *, keep: Path | None = None, begin: int = 0) -> Campaign:
    """Read `tries` mutated inputs."""
    campaign = Campaign()
    sound = reader.sound()
    corpus = list(sound)
    number = begin
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for files in sound:
            (_, how, told, _, _) = next(_in_a_child(reader, [files], Path(scratch)))
            if how != "read" and not re.search(reader.unlike, told):
                raise RuntimeError(f"{name}: a sound input ends as {how}: {told}")
        while number < begin + tries:
            inputs = range(number, min(number + BATCH, begin + tries))
            made = (mutated(reader, corpus, _draw(name, seed, each)) for each in inputs)
            new: list[Files] = []
            for place, how, told, seconds, memory_mb in _in_a_child(reader, made, Path(scratch)):
                number = inputs[place] + 1
                campaign.counts[how] += 1
                campaign.slowest_s = max(campaign.slowest_s, seconds)
                campaign.most_mb = max(campaign.most_mb, memory_mb)
                message = re.sub(r"[-+\d.e]+", "0", told)[:300]
                is_new = message not in campaign.messages
                campaign.messages.add(message)
                if how.isupper() and (is_new or how in ("HANG", "KILLED", "MEMORY")):
                    files = mutated(reader, corpus, _draw(name, seed, inputs[place]))
                    campaign.lines.append(f"{name} {inputs[place]}: {how}, {seconds:.1f} s, {memory_mb:.0f} MB: {told}")
                    _keep(files, keep, f"{name}-{seed}-{inputs[place]}", campaign.lines[-1])
                elif is_new and how == "refused" and len(corpus) + len(new) < MOST_KEPT:
                    new.append(mutated(reader, corpus, _draw(name, seed, inputs[place])))
            if number == inputs[0]:
                raise RuntimeError(f"{name}: a process that reads inputs ended before the first one")
            corpus += new
    return campaign


def _draw(name: str, seed: int, number: int) -> Random:
    return Random(f"{name} {seed} {number}")


def _keep(files: Files, keep: Path | None, name: str, line: str) -> None:
    if keep is not None:
        write_files(files, keep / name)
        (keep / f"{name}.txt").write_text(line + "\n", encoding="utf-8")


def write_files(files: Files, folder: Path) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _in_a_child(reader: Reader, inputs: Any, scratch: Path) -> Any:
    """Yields (place, outcome, what was told, seconds, MB) of each input until all are read, or one ends the child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _read_all(reader, inputs, scratch, writing)
    os.close(writing)
    os.set_blocking(reading, False)
    place, began, rest = 0, time.monotonic(), b""
    try:
        while True:
            select.select([reading], [], [], 0.5)
            rest += available(reading)
            *lines, rest = rest.split(b"\n")
            for line in lines:
                yield (place, *json.loads(line))
                place, began = place + 1, time.monotonic()
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                rest += available(reading)
                for line in rest.split(b"\n")[:-1]:
                    yield (place, *json.loads(line))
                    place += 1
                pid = 0
                if os.WIFSIGNALED(status):
                    yield place, "KILLED", f"signal {os.WTERMSIG(status)}", time.monotonic() - began, 0.0
                return
            if time.monotonic() - began > SECONDS + 2:
                yield place, "HANG", "", time.monotonic() - began, 0.0
                return
    finally:
        os.close(reading)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _read_all(reader: Reader, inputs: Any, scratch: Path, writing: int) -> None:
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        address_space = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        room = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (address_space + int(4e6 * MORE_MB), room))
        said = scratch / f"said-{os.getpid()}"
        shown = os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(shown, stream)
        for files in inputs:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            write_files(files, folder)
            began, before_mb = time.monotonic(), _peak_mb()
            how, told = _tried(reader, folder)
            seconds, memory_mb = time.monotonic() - began, _peak_mb() - before_mb
            sys.stdout.flush()
            sys.stderr.flush()
            if (length := os.lseek(shown, 0, os.SEEK_END)) and not how.isupper():
                how, told = "NOISE", os.pread(shown, min(length, 1000), 0).decode(errors="replace")
            os.ftruncate(shown, 0)
            os.lseek(shown, 0, os.SEEK_SET)
            if seconds > SECONDS:
                how = "HANG"
            if memory_mb > MORE_MB:
                how = "MEMORY"
            line = json.dumps([how, told[-1500:], seconds, memory_mb]).encode() + b"\n"
            while line:
                line = line[os.write(writing, line) :]
            shutil.rmtree(folder, ignore_errors=True)
            if how == "MEMORY":  # the peak would hide the next one
                break
    except Exception:  # of the mutators
        os.write(writing, json.dumps(["BROKEN", traceback.format_exc()[-1500:], 0.0, 0.0]).encode() + b"\n")
    finally:
        os._exit(0)


def _tried(reader: Reader, folder: Path) -> tuple[str, str]:
    from stages.errors import LrlsError

    try:
        reader.read(folder)
    except LrlsError as error:
        told = str(error)
        if not told.isprintable() or len(told) > 2000:
            return "UNPLAIN", repr(told[:500])
        return ("QUOTES", told) if MARK in told or "/fuzz-" in told.replace(str(folder), "") else ("refused", told)
    except BaseException:
        return "TRACEBACK", traceback.format_exc()
    return "read", ""


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def summary(campaigns: dict[str, Campaign]) -> str:
    lines = [table({name: campaign.counts for name, campaign in campaigns.items()}), ""]
    for name, campaign in campaigns.items():
        lines.append(
            f"{name}: {len(campaign.messages)} kinds of messages, slowest {campaign.slowest_s:.2f} s, "
            f"largest {campaign.most_mb:.0f} MB"
        )
    return "\n".join(lines)


def main() -> None:
    from attacks.fuzz_readers import import_everything, readers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reader", action="append", help="one of them; by default all")
    parser.add_argument("--tries", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", type=int, default=0, help="number of the first input, to fuzz in slices")
    parser.add_argument("--keep", type=Path, default=Path("found"), help="folder for inputs that end as none may")
    arguments = parser.parse_args()
    known = readers()
    if unknown := [name for name in arguments.reader or [] if name not in known]:
        parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(known)}")
    import_everything()
    campaigns: dict[str, Campaign] = {}
    for name in arguments.reader or known:
        campaigns[name] = fuzz(
            name, known[name], arguments.tries, arguments.seed, keep=arguments.keep.resolve(), begin=arguments.begin
        )
        for line in campaigns[name].lines:
            print(line)
        print(summary({name: campaigns[name]}), flush=True)
    print(summary(campaigns))
    sys.exit(min(1, failed({name: campaign.counts for name, campaign in campaigns.items()})))


if __name__ == "__main__":
    main()
