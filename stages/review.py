"""What people say of scans in a report comes back: ratings and corrected label maps become an overlay of the settings.

The ratings are a table (UTF-8, tab-separated) as the report saves it, a line per scan that something was said of:

    case  rating  note  correct  exclude  label_next

`rating` is 1 (unusable) to 5 (perfect) or empty, the last three are `yes` or empty. The overlay is described in
`stages.reviewed`; no other file is written.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stages.answering.unchanged import refuse_answers
from stages.artifacts.files import atomic_write_text
from stages.config import PARTS, Config, unreviewed
from stages.data.checks import folder_fault, scan_faults
from stages.data.faults import HELD_OUT, refuse
from stages.data.intake import case_id
from stages.data.neutral import ending_of
from stages.errors import UNPRINTABLE, LrlsError, plural, printable, shortened
from stages.reviewed import MOST_NOTE, Overlay, Review, Said, read_review
from stages.text_files import text_of, yaml_value

HEADER = ("case", "rating", "note", "correct", "exclude", "label_next")
FLAGS = HEADER[3:]
NAME = "review.yaml"
MOST_BYTES = 3_000_000
SAVE_AGAIN = "save the ratings again from the report"


@dataclass(frozen=True)
class Written:
    """The overlay that a review wrote.

    Args:
        lines: what it says and changes, for the user.
        setting: the line that the configuration lacks, `review: review.yaml`; empty: it names the file already.
    """

    file: Path
    lines: list[str]
    setting: str


def review(
    config_file: Path, ratings: Path | None, corrected: Path | None = None, overrides: Sequence[str] = ()
) -> Written:
    """Write what was said of scans, on top of what earlier reviews said, into the overlay.

    The overlay is the file that `data.review` names, otherwise `review.yaml` beside the configuration. Where that is
    not a review of this configuration as lrls wrote it, it stays as it is, and the next name is taken; see `_place`. A
    line replaces what was said of its scan before; corrected label maps stay until there are others, or until the scan
    is excluded.

    Args:
        ratings: the table; None: there are only corrected label maps.
        corrected: folder of label maps, named by case id; they stay there, and the overlay names them.
        overrides: as of `load_config`; `data.review` names the overlay, which need not exist yet.

    Raises:
        LrlsError: a line, a case or a label map is wrong; nothing is written then.
    """
    if ratings is None and corrected is None:
        raise LrlsError("nothing to review: name the ratings that a report saved, or --corrected FOLDER.")
    overrides, named = _without_review(overrides)
    config = unreviewed(config_file, [*overrides, *([f"data.review={named}"] if named else [])])
    if fault := folder_fault(config):
        refuse([fault])
    target, before = _place(config, config_file)
    cases = dict(before.overlay.cases if before else {})
    known = {case: part for part in reversed(PARTS) for case in config.said(part)}
    rows = read_ratings(ratings, known) if ratings else {}
    for case, said in rows.items():
        earlier = cases.get(case, Said())
        label = None if said.exclude or earlier.exclude else earlier.label  # who excludes a scan gives its label up
        cases[case] = said.model_copy(update={"label": label})
    maps = _corrected(config, corrected, known) if corrected else {}
    for case, path in maps.items():
        if case in rows and rows[case].exclude:
            raise LrlsError(f"case {case}: is excluded, and has a corrected label map; decide for one of them.")
        told = cases.get(case, Said())
        cases[case] = told.model_copy(update={"label": _relative(path, target.parent), "exclude": False})
    cases = {case: said for case, said in cases.items() if said.says_something}
    overlay = Overlay(configuration=config_file.name, cases=cases)
    after = config.reviewed(Review(target, overlay))
    for case in maps:
        refuse(scan_faults(after, case, label=True))
    if not after.part("atlases") and config.part("atlases"):
        raise LrlsError("data.atlases: the review excludes every atlas; at least 1 is needed, keep one.")
    try:
        atomic_write_text(target, overlay.text())
    except OSError as error:
        raise LrlsError(f"{target.name} cannot be written ({error.strerror}); make room or allow it.") from None
    read_review(target)
    is_named = config.data.review is not None and (config.base / config.data.review).resolve() == target
    setting = "" if is_named and not named else f"review: {_relative(target, config.base)}"
    return Written(target, [*changes(after), *_for_the_record(after, rows)], setting)


def read_ratings(path: Path, known: dict[str, str] | None = None) -> dict[str, Said]:
    """What a table of ratings says, by case.

    Args:
        known: the cases that there are; None: any.

    Raises:
        LrlsError: the first wrong line.
    """
    try:
        text = text_of(path, MOST_BYTES)
    except FileNotFoundError:
        raise LrlsError(f"{path.name}: no such file; name the ratings that a report saved.") from None
    except IsADirectoryError:
        raise LrlsError(f"{path.name} is a folder; name the ratings that a report saved.") from None
    except OSError as error:
        raise LrlsError(f"{path.name} cannot be read ({error.strerror}); copy it, or {SAVE_AGAIN}.") from None
    except ValueError as error:
        raise LrlsError(f"{path.name}: no table of ratings ({error}); {SAVE_AGAIN}.") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if re.search("[\x00-\x08\x0a-\x1f\x7f-\x9f]", line):
            raise LrlsError(f"{path.name}, line {number}: a control character, so this is no table; {SAVE_AGAIN}.")
    if not lines or tuple(_cells(lines[0])) != HEADER:
        found = f"'{shortened(lines[0])}'" if lines else "nothing"
        expected = ", ".join(HEADER)
        raise LrlsError(f"{path.name}, line 1: found {found}, expected {expected}, separated by tabs; {SAVE_AGAIN}.")
    rows: dict[str, Said] = {}
    first: dict[str, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            case, said = _row(line, known)
        except ValueError as error:
            raise LrlsError(f"{path.name}, line {number}: {error}.") from None
        if case in first:
            raise LrlsError(
                f"{path.name}, line {number}: case {case} stands in line {first[case]}, too; keep one of the lines."
            )
        rows[case], first[case] = said, number
    return rows


def changes(config: Config) -> list[str]:
    """What the review of a configuration changes, a line each; empty: it has none."""
    if config.review is None:
        return []
    cases, added = config.review.overlay.cases, config.added_atlases()
    left = [case for case in config.review.excluded if any(case in config.said(part) for part in PARTS[:3])]
    held = [case for case in config.review.excluded if any(case in config.said(part) for part in HELD_OUT)]
    listed = {case for part in PARTS for case in config.said(part)}
    replaced = [case for case in config.review.labels if case in listed and case not in added]
    stated = [
        (f"excluded {len(left)}", left),
        (f"atlases added: {len(added)}", added),
        (f"label maps corrected: {len(replaced)}", replaced),
        ("label next", [case for case, said in cases.items() if said.label_next]),
    ]
    lines = [f"{what} ({_named(of)})" for what, of in stated if of]
    lines = [f"{config.review.file.name}: {'; '.join(lines) or 'changes nothing, ' + plural(len(cases), 'note')}"]
    if held:
        lines.append(
            f"note: excluded and still scored: {_named(held)}; scores of scans chosen by their answers mislead, so "
            "take a scan out of data.dev or data.test yourself if its image is unusable"
        )
    if beyond := [case for case in added if case not in config.part("atlases")]:
        lines.append(f"note: preprocess.most_atlases leaves out {_named(beyond)}")
    if first := next((case for case in config.said("atlases")[:1] if case in left), None):
        lines.append(f"note: {first} is the first atlas: without it the grid is laid anew, and everything made again")
    if gone := [case for case in cases if case not in listed]:
        lines.append(f"note: listed nowhere any more, so without effect: {_named(gone)}")
    return lines


def _for_the_record(config: Config, rows: dict[str, Said]) -> list[str]:
    """What else the ratings say, a line each."""
    assert config.review
    ratings = [said.rating for said in config.review.overlay.cases.values() if said.rating]
    lines = []
    if ratings:
        counts = ", ".join(f"{k}: {ratings.count(k)}" for k in range(5, 0, -1) if k in ratings)
        lines.append(f"ratings: {counts}")
    waiting = [
        case
        for case, said in config.review.overlay.cases.items()
        if said.correct and not said.exclude and case not in config.review.labels
    ]
    if waiting:
        lines.append(
            f"still to be corrected: {_named(waiting)}; save each as <case>.nii.gz in a folder, then "
            "`lrls review ... --corrected FOLDER`"
        )
    return lines


def _row(line: str, known: dict[str, str] | None) -> tuple[str, Said]:
    """Raises ValueError: what is wrong, and the remedy."""
    cells = _cells(line)
    if len(cells) != len(HEADER):
        raise ValueError(f"found {plural(len(cells), 'cell')}, expected {len(HEADER)}; {SAVE_AGAIN}")
    case, rating, note, *flags = cells
    if not case:
        raise ValueError("names no case; write its id, or delete the line")
    if known is not None and case not in known:
        near = difflib.get_close_matches(case, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else "correct it, or delete the line"
        raise ValueError(f"case {shortened(case)} is listed in no part of the configuration; {remedy}")
    if rating not in ("", "1", "2", "3", "4", "5"):
        found = f"the rating is '{shortened(rating)}'"
        raise ValueError(f"case {case}: {found}, expected 1 (unusable) to 5 (perfect) or nothing; correct it")
    for name, flag in zip(FLAGS, flags, strict=True):
        if flag not in ("", "yes"):
            raise ValueError(f"case {case}: {name} is '{shortened(flag)}', expected yes or nothing; correct it")
    if len(note) > MOST_NOTE:
        raise ValueError(f"case {case}: a note of {len(note)} characters, at most {MOST_NOTE} are kept; shorten it")
    said = {name: flag == "yes" for name, flag in zip(FLAGS, flags, strict=True)}
    plain = UNPRINTABLE.sub(" ", note).strip()  # such as marks that turn the direction of writing
    return case, Said(rating=int(rating) if rating else None, note=plain, **said)


def _cells(line: str) -> list[str]:
    """The cells of a line. Spreadsheets put those with commas or quotes in quotes, and double the quotes in them."""
    cells = line.split("\t")
    for place, cell in enumerate(cells):
        if re.fullmatch(r'"(?:[^"]|"")*"', cell) and ("," in cell or '""' in cell[1:-1]):
            cells[place] = cell[1:-1].replace('""', '"')
    return cells


def _corrected(config: Config, folder: Path, known: dict[str, str]) -> dict[str, Path]:
    """The label maps of a folder, by case.

    Raises:
        LrlsError: there is none, or one is of no case or of a case that is scored.
    """
    try:
        if not folder.is_dir():
            raise LrlsError(f"--corrected {printable(str(folder))}: no such folder; name the one with the label maps.")
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise LrlsError(f"--corrected: {folder.name} cannot be read ({error.strerror}); allow it.") from None
    files = [path for path in found if ending_of(path)]
    if not files:
        raise LrlsError(f"--corrected: {folder.name} holds no label map; name each <case>.nii.gz, .nrrd or .mha.")
    maps: dict[str, Path] = {}
    for path in files:
        whole = path.name[: len(path.name) - len(ending_of(path))]
        names = (whole, case_id(path), whole.removesuffix(".seg"))  # 3D Slicer writes <case>.seg.nrrd
        case = next((name for name in names if name in known), names[-1])
        if case not in known:
            near = difflib.get_close_matches(case, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else "name it after its case, or take it out of the folder"
            raise LrlsError(f"--corrected: {printable(path.name)} is the label map of no case of the files; {remedy}")
        if known[case] in HELD_OUT or any(case in config.said(part) for part in HELD_OUT):
            raise LrlsError(
                f"case {case}: data.{known[case]} scores it, so nothing may learn from it; take its label map out of "
                f"--corrected, or move the case to data.unlabeled in the configuration first."
            )
        if case in maps:
            raise LrlsError(f"case {case}: --corrected holds several label maps of it; keep one of them.")
        maps[case] = path.resolve()
    refuse_answers(maps.values())
    return maps


def _without_review(overrides: Sequence[str]) -> tuple[list[str], str]:
    """The overrides but `data.review`, and the file that it names, or nothing."""
    named, others = "", []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip() != "data.review":
            others.append(override)
            continue
        try:
            named = str(yaml_value(value, "data.review") or "")
        except ValueError as error:
            raise LrlsError(f"--set {override}: the value is not readable as YAML ({error}); correct it.") from None
    return others, named


def _place(config: Config, config_file: Path) -> tuple[Path, Review | None]:
    """The file to write, in the same folder as the review to go on top of, and that review.

    They are one file where lrls wrote it for this configuration and nobody has edited it: the one that the
    configuration names, otherwise the first such of `review.yaml`, `review-2.yaml`, ... beside it. Where there is none,
    a new file goes on top of the named one, otherwise of the last that was edited.
    """
    wanted, named = config.base / NAME, None
    if config.data.review is not None:
        wanted = (config.base / config.data.review.expanduser()).resolve()
        named = read_review(wanted) if os.path.lexists(wanted) else None
    if not wanted.parent.is_dir():
        raise LrlsError(f"data.review: {wanted.parent.name} is no folder; name a file in one that exists.")
    file, before, number = wanted, named, 1
    while os.path.lexists(file):
        found = _of_this(file, config_file)
        if found and found.overlay.is_as_written and (named is None or file == wanted):
            return file, found
        before = named or found or before
        number += 1
        file = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
    return file, before


def _of_this(file: Path, config_file: Path) -> Review | None:
    """The review in a file, if it was written for this configuration."""
    with suppress(LrlsError):  # something else has this name
        found = read_review(file)
        return found if found.overlay.configuration == config_file.name else None
    return None


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def _named(cases: Sequence[str], most: int = 8) -> str:
    more = f" and {len(cases) - most} more" if len(cases) > most else ""
    return ", ".join(cases[:most]) + more
