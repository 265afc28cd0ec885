"""Sections of the configuration, and what is wrong with a setting, in one line that names it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from stages.errors import UNPRINTABLE, LrlsError, printable, shortened

MOST = 2**32  # size of a number; labels have 32 bits
MOST_SEED = 2**63
MOST_AT_ONCE = 1024  # threads, or processes


def _parts_of(value: Any) -> Iterator[Any]:
    """A value, and the values in its lists."""
    for part in value if isinstance(value, list | tuple) else [value]:
        yield from _parts_of(part) if isinstance(part, list | tuple) else [part]


class Section(BaseModel):
    """A frozen section of the configuration; unknown keys are errors, and so are numbers beyond `MOST`."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    BESIDE: ClassVar[tuple[str, ...]] = ()  # keys that stand beside the section's own in the file

    @field_validator("*", mode="before")
    @classmethod
    def _is_what_it_looks_like(cls, value: Any, info: ValidationInfo) -> Any:
        expected = str(cls.model_fields[info.field_name or ""].annotation)
        is_table = isinstance(value, dict) and expected.startswith("dict")  # and no section, which checks itself
        inside = list(value.values()) if is_table else value
        if any(isinstance(part, bool) for part in _parts_of(inside)) and not re.search(r"\bbool\b|\bAny\b", expected):
            raise ValueError("true and false are expected elsewhere")
        if any(isinstance(part, str) and UNPRINTABLE.search(part) for part in _parts_of(value)):
            raise ValueError("text with a control character")
        return value

    @field_validator("*")
    @classmethod
    def _numbers_are_bounded(cls, value: Any, info: ValidationInfo) -> Any:
        most = MOST_SEED if info.field_name == "seed" else MOST
        if any(isinstance(part, int | float) and abs(part) > most for part in _parts_of(value)):
            raise ValueError(f"a number beyond {most:g}")
        return value


SectionType = TypeVar("SectionType", bound=BaseModel)


def validate(model: type[SectionType], values: Any, where: str) -> SectionType:
    """Check one section; faults end as one `LrlsError` line that names the setting."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise LrlsError(f"{where}: {first_fault(error, model)}") from None


def first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault of a failed check, in one line; a misspelt key is answered with the nearest known one."""
    fault = error.errors()[0]
    if fault["type"] == "extra_forbidden":
        section: Any = model
        for part in fault["loc"][:-1]:
            is_section = hasattr(section, "model_fields")  # otherwise a mapping, whose values are sections
            section = section.model_fields[part].annotation if is_section else get_args(section)[-1]
        known = {*section.model_fields, *section.BESIDE}
        return unknown_setting(".".join(str(part) for part in fault["loc"]), known)
    # Where a setting takes several types, the type that was tried last stands behind its name.
    a_type = re.compile(r"int|float|str|constrained-.*|list\[.*|tuple\[.*")
    where = ".".join(str(part) for part in fault["loc"] if not a_type.fullmatch(str(part)))
    if fault["type"] == "missing":
        return f"setting {where} is missing; add it."
    message = shortened(fault["msg"].removeprefix("Value error, "), 400)
    found = fault["input"]
    found_value = f" (found {printable(shortened(repr(found)))})" if isinstance(found, str | int | float | bool) else ""
    place = f"setting {where}: " if where else ""  # a fault of several settings together has no place
    remedy = "" if "; " in message else "; correct it"  # our own messages say what to do
    return f"{place}{message[0].lower()}{message[1:]}{found_value}{remedy}."


def unknown_setting(where: str, known: Iterable[str]) -> str:
    """The message for an unknown setting ("section.key"); it names the nearest known one."""
    known, where = sorted(known), printable(shortened(where, 200))
    nearest = difflib.get_close_matches(where.rpartition(".")[2], known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(known)}."
    return f"unknown setting {where}; {hint}"
