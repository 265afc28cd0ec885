"""Writes docs/licences.md: the licence that each pinned package states, from what is installed."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
HEAD = """\
# Licences of all dependencies

Written by `python docs/licences.py`; each package states its licence itself. What few need is in the list, too: the
extras, and what only tests use.

| package | version | licence |
|---|---|---|
"""


def pinned(file: Path) -> dict[str, str]:
    """Versions by name, as package indexes spell it, of a file of pins, with hashes or without."""
    pins = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}


def licence_of(name: str) -> str:
    """What a package states: an expression, otherwise classifiers, otherwise the first line of a text."""
    about = importlib.metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    kinds = [kind for kind in about.get_all("Classifier") or [] if kind.startswith("License :: ")]
    named = [kind.rpartition(" :: ")[2] for kind in kinds if kind != "License :: OSI Approved"]
    text = (about.get("License") or "").strip().split("\n")[0]
    return ", ".join(named) or text[:60] or "not stated"


def page() -> str:
    pins = pinned(ROOT / "constraints.txt").items()
    rows = [f"| {name} | {version} | {licence_of(name)} |\n" for name, version in pins]
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
