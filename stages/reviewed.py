"""What people said of the scans: the file that `data.review` names, and that `lrls review` writes.

The file is an overlay. The configuration and its lists stay as they are; what was said comes on top of them:

    exclude      the scan leaves `atlases`, `unlabeled` and `supervised`; what is scored stays as it is
    label        a corrected label map: an unlabelled scan becomes an atlas, after those that the file lists, in the
                 order of the unlabelled ones; of a scan that is labelled, it replaces the label map
    rating, note, correct, label_next      are kept for the record

    format: 1
    configuration: "lrls.yaml"
    digest: "..."                     of everything else; another one: somebody has edited the file
    cases:
      "case 17": {"rating": 2, "note": "cut at the top", "exclude": true}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError

from stages.case_ids import fault_among
from stages.errors import LrlsError, printable, shortened
from stages.sections import Section, first_fault
from stages.text_files import read_yaml

MOST_NOTE = 4000  # characters
TRAINED = ("atlases", "unlabeled", "supervised")  # the parts that excluded scans leave


class Said(Section):
    """What was said of a scan."""

    rating: int | None = Field(None, ge=1, le=5, description="1: unusable, 5: perfect.")
    note: Annotated[str, Field(max_length=MOST_NOTE)] = ""
    correct: bool = False
    exclude: bool = False
    label_next: bool = False
    label: str | None = Field(None, description="The corrected label map, relative to the overlay.")

    @property
    def says_something(self) -> bool:
        return self != Said()

    def shown(self) -> dict[str, Any]:
        """What was said, without what was not."""
        return self.model_dump(exclude_defaults=True)


class Overlay(Section):
    """The overlay, as its file has it."""

    FORMAT: ClassVar[int] = 1

    format: int = FORMAT
    configuration: str = Field(description="Name of the configuration file that it was written for.")
    digest: str = ""
    cases: dict[str, Said] = Field(default={})

    @property
    def is_as_written(self) -> bool:
        """Whether `lrls review` wrote it, and nobody has edited it since."""
        return self.digest == self._digest()

    def _digest(self) -> str:
        said = {case: said.shown() for case, said in self.cases.items()}
        text = json.dumps([self.format, self.configuration, said], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def text(self) -> str:
        """The file. Each value is JSON, which YAML reads as it stands."""
        lines = [
            f"# Written by `lrls review` for {self.configuration}; data.review names it. Edit it as you like: the next",
            "# review then leaves it as it is and writes another file.",
            f"format: {self.format}",
            f"configuration: {_json(self.configuration)}",
            f"digest: {_json(self._digest())}",
            "cases:" if self.cases else "cases: {}",
            *(f"  {_json(case)}: {_json(said.shown())}" for case, said in self.cases.items()),
        ]
        return "\n".join(lines) + "\n"


class Review:
    """An overlay and where it lies.

    Args:
        file: the overlay's file, absolute.
    """

    def __init__(self, file: Path, overlay: Overlay) -> None:
        self.file, self.overlay = file, overlay
        cases = overlay.cases.items()
        self.excluded = [case for case, said in cases if said.exclude]
        self.labels = {case: file.parent / said.label for case, said in cases if said.label and not said.exclude}

    def added(self, said: Mapping[str, Sequence[str]]) -> list[str]:
        """The unlabelled scans that become atlases, in the order in which they are listed.

        Args:
            said: the cases of each part, as the configuration lists them.
        """
        return [case for case in said["unlabeled"] if case in self.labels and case not in said["atlases"]]

    def part(self, name: str, said: Mapping[str, Sequence[str]]) -> list[str]:
        """The cases of a part, with what was said of them; arguments as of `added`."""
        if name not in TRAINED:
            return list(said[name])
        added = self.added(said) if name != "supervised" else []
        cases = [*said[name], *added] if name == "atlases" else [case for case in said[name] if case not in added]
        return [case for case in cases if case not in self.excluded]


def read_review(file: Path) -> Review:
    """Read an overlay.

    Args:
        file: absolute.

    Raises:
        LrlsError: it is missing, or is none.
    """
    where = f"data.review: {shortened(file.name, 200)}"
    try:
        values = read_yaml(file)
    except FileNotFoundError:
        raise LrlsError(f"{where} is not found; `lrls review` writes it, or take the setting out.") from None
    except OSError as error:
        raise LrlsError(f"{where} cannot be read ({error.strerror}); name the file that `lrls review` wrote.") from None
    except ValueError as error:
        raise LrlsError(f"{where}: not readable as YAML ({error}); correct it, or write it anew.") from None
    if not isinstance(values, dict) or "cases" not in values:
        raise LrlsError(f"{where} is no review; name the file that `lrls review` wrote.")
    if values.get("format") != Overlay.FORMAT:
        found = printable(shortened(str(values.get("format"))))
        raise LrlsError(
            f"{where} has format {found}, this lrls reads {Overlay.FORMAT}; write it anew with lrls review."
        )
    try:
        overlay = Overlay.model_validate(values)
    except ValidationError as error:
        raise LrlsError(f"{where}: {first_fault(error, Overlay)}") from None
    if fault := fault_among(list(overlay.cases)):
        raise LrlsError(f"{where}: {fault}.")
    return Review(file, overlay)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
