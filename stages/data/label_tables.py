"""Tables of label values, names and colours that other programs keep beside label maps.

    ITK-SNAP (.txt)         value r g b alpha visible mesh "name"
    3D Slicer (.ctbl, .txt) value name r g b alpha; FreeSurfer's lookup tables are alike
    3D Slicer (.csv, .tsv)  a header with LabelValue, Name, Color_R, Color_G, Color_B
    BIDS (_dseg.tsv)        a header with index, name and perhaps color (#rrggbb)

A file that is none of these is no table; nobody is told of it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.data.writers import one_line
from stages.errors import shortened

ENDINGS = (".txt", ".ctbl", ".csv", ".tsv")
MOST_BYTES, MOST_ROWS, MOST_NAME = 4_000_000, 100_000, 80
SNAP = re.compile(r'(-?\d{1,9})\s+(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})\s+[\d.]+\s+[01]\s+[01]\s+"([^"]*)"')
SLICER = re.compile(r"(-?\d{1,9})\s+(\S+)\s+(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})(?:\s+\d{1,3}\b.*)?")
COLUMNS = {
    "value": ("labelvalue", "index"),
    "name": ("name",),
    "red": ("color_r",), "green": ("color_g",), "blue": ("color_b",),
    "colour": ("color",),
}  # fmt: skip
HEX = re.compile(r"#[0-9a-f]{6}", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """What a table says of a value: a name, and a colour as "#rrggbb" (empty: none)."""

    name: str
    colour: str = ""


def tables_in(folders: Iterable[Path]) -> dict[Path, dict[int, Entry]]:
    """The tables of some folders, by file, without their sub-folders."""
    found: dict[Path, dict[int, Entry]] = {}
    for folder in folders:
        try:
            files = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
        except OSError:
            continue
        files = [file for file in files if file.name.isprintable() and not file.name.startswith(".")]
        found |= {file: table for file in files if (table := read_table(file))}
    return found


def read_table(path: Path) -> dict[int, Entry]:
    """Names and colours by value, but those of the background; empty: the file is no table of labels."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return {}
        lines = path.read_text(encoding="utf-8-sig").splitlines()[:MOST_ROWS]
    except (OSError, ValueError):
        return {}
    rows = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if path.suffix.lower() in (".csv", ".tsv"):
        return _with_header(rows, "\t" if path.suffix.lower() == ".tsv" else ",")
    for pattern, of_match in ((SNAP, _of_snap), (SLICER, _of_slicer)):
        matches = [pattern.fullmatch(row.strip()) for row in rows]
        if rows and all(matches):
            return _entries(of_match(match) for match in matches if match)
    return {}


def best_table(
    values: Sequence[int], tables: Mapping[Path, Mapping[int, Entry]]
) -> tuple[dict[int, Entry], Path | None]:
    """What the table that knows most of the values says of them; None: no table knows any."""
    best: dict[int, Entry] = {}
    file = None
    for path, table in tables.items():
        known = {value: table[value] for value in values if value in table}
        if len(known) > len(best):
            best, file = known, path
    return best, file


def by_name(entries: Mapping[int, Entry]) -> dict[str, tuple[int, str]]:
    """Value and colour by name; a name that several values have gets its value behind it."""
    names = [entry.name for entry in entries.values()]
    return {
        entry.name if names.count(entry.name) == 1 else f"{entry.name} {value}": (value, entry.colour)
        for value, entry in entries.items()
    }


def _of_snap(match: re.Match[str]) -> tuple[str, str, str]:
    return match[1], match[5], _hex(match[2], match[3], match[4])


def _of_slicer(match: re.Match[str]) -> tuple[str, str, str]:
    return match[1], match[2], _hex(match[3], match[4], match[5])


def _with_header(rows: Sequence[str], separator: str) -> dict[int, Entry]:
    try:
        header, *cells = list(csv.reader(rows, delimiter=separator)) if rows else [[]]
    except csv.Error:
        return {}
    titles = [title.strip().lower() for title in header]
    place = {key: titles.index(name) for key, names in COLUMNS.items() for name in names if name in titles}
    if "value" not in place or "name" not in place:
        return {}

    def entry(row: Sequence[str]) -> tuple[str, str, str]:
        def cell(key: str) -> str:
            return row[place[key]].strip() if key in place and place[key] < len(row) else ""

        colour = cell("colour") if HEX.fullmatch(cell("colour")) else _hex(cell("red"), cell("green"), cell("blue"))
        return cell("value"), cell("name"), colour.lower()

    return _entries(entry(row) for row in cells)


def _entries(rows: Iterable[tuple[str, str, str]]) -> dict[int, Entry]:
    table: dict[int, Entry] = {}
    for value, name, colour in rows:
        name = shortened(one_line(name), MOST_NAME)
        if re.fullmatch(r"-?\d{1,9}", value) and int(value) and name and name != "n/a":
            table.setdefault(int(value), Entry(name, colour))
    return table


def _hex(*parts: str) -> str:
    numbers = [int(part) if part.isascii() and part.isdigit() else 256 for part in parts]
    return "#" + "".join(f"{number:02x}" for number in numbers) if max(numbers) < 256 else ""
