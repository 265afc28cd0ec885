"""Files about dependencies name the same versions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from licences import PAGE, pinned  # noqa: E402

PINS = pinned(ROOT / "constraints.txt")
HASHED = ROOT / "requirements-hashes.txt"


def test_pins_with_hashes_are_those_without_and_what_other_systems_need():
    hashed = pinned(HASHED)
    assert PINS.items() <= hashed.items(), "run `make hashes`"
    for entry in re.split(r"\n(?=[a-zA-Z0-9])", HASHED.read_text(encoding="utf-8").strip()):
        assert "--hash=sha256:" in entry, entry


def test_the_page_of_licences_lists_every_pin():
    rows = dict(re.findall(r"^\| (\S+) \| (\S+) \| \S.* \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name: rows.get(name) for name in PINS} == PINS, "run `python docs/licences.py`"
