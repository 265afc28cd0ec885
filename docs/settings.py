"""Writes docs/settings.md from the models that check the configuration.

python docs/settings.py            write it
python docs/settings.py --check    exit with 1 if it is not what would be written now
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stages.config import Config, TrainSettings
from stages.methods import METHODS
from stages.methods.recipe import Method

HERE = Path(__file__).resolve().parent
PAGE = HERE / "settings.md"
TRAINING = ("train_reg", "train_seg")
NUMBERS = ("steps", "batch_size", "learning_rate", "schedule", "epochs", "optimizer", "ema", "augmentation")

HEAD = """\
# Settings

One YAML file holds every setting; `lrls init` writes a first one. What it leaves out has the default below. An unknown
key is an error that names the nearest known one. Paths are relative to the file. Any setting can be given on the
command line: `--set train_seg.steps=2000 --set methods.brbs.mmr=false`.

`python docs/settings.py` writes this page from the models in `stages/config.py` and `stages/methods/`.
"""
METHODS_HEAD = """\
## Methods

The settings of a method stand in `methods.<name>`. `preset: <name>` fills in what the file does not name. A method's
own `train_reg` and `train_seg` come on top of the common sections. Both come on top of the recipe's numbers, which are
below, by preset. What each method does: [methods](methods/README.md).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page is out of date")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/settings.md is out of date; write it with `python docs/settings.py`.")


def page() -> str:
    """The whole page, as Markdown."""
    blocks = [HEAD, "## The configuration\n", table(rows_of(Config, leave_out=sections(Config)))]
    for name, section in sections(Config).items():
        if name not in ("train_seg",):
            blocks += [title_of(name), table(rows_of(section, leave_out=sections(section), prefix=f"{name}."))]
        for inner, model in sections(section).items():
            blocks += [f"### `{name}.{inner}`\n", table(rows_of(model, prefix=f"{name}.{inner}."))]
    blocks.append(METHODS_HEAD)
    for method in METHODS.values():
        blocks += method_blocks(method)
    return "\n".join(blocks)


def title_of(section: str) -> str:
    return "### `train_reg`, `train_seg`\n" if section == "train_reg" else f"### `{section}`\n"


def method_blocks(method: Method) -> Iterator[str]:
    """Settings, presets and training numbers of a method."""
    yield f"### `{method.name}`\n"
    rows = rows_of(method.settings, leave_out=["preset"])
    yield table(rows) if rows else "No settings of its own.\n"
    presets = {name: values for name, values in method.settings.PRESETS.items() if values}
    if presets:
        lines = [f"- `preset: {name}` sets {listed(values)}." for name, values in presets.items()]
        empty = [f"`{name}`" for name, values in method.settings.PRESETS.items() if not values]
        lines += [f"- Presets that are the defaults: {', '.join(empty)}."] if empty else []
        yield "\n".join(lines) + "\n"
    if numbers := training_rows(method, presets):
        yield numbers


def training_rows(method: Method, presets: Mapping[str, Any]) -> str:
    """The recipe's training numbers, by stage and preset."""
    lines = []
    for section in TRAINING:
        defaults = getattr(method, section)
        if defaults is None:
            continue
        seen: list[dict[str, Any]] = []
        for preset in [None, *presets]:
            settings = method.settings.model_validate({"preset": preset} if preset else {})
            numbers = defaults(settings).model_copy(update=settings.preset_training(section))
            values = numbers.model_dump(mode="json")
            if values in seen:
                continue
            seen.append(values)
            name = f"`{section}`" + (f", `{preset}`" if preset else "")
            lines.append([name, *(shown(values[number]) for number in NUMBERS)])
    return markdown(["training", *NUMBERS], lines) if lines else ""


def listed(values: Mapping[str, Any], prefix: str = "") -> str:
    """`key: value` of every setting, sections flattened."""
    flat: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat.append(listed(value, f"{prefix}{key}."))
        else:
            flat.append(f"`{prefix}{key}: {json.dumps(value).strip(chr(34))}`")
    return ", ".join(flat)


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Fields that are models themselves."""
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def rows_of(model: type[BaseModel], *, leave_out: Any = (), prefix: str = "") -> list[list[str]]:
    """Setting, values, default, meaning of every field."""
    if model is TrainSettings:
        prefix = ""
    rows = []
    for name, field in model.model_fields.items():
        if name not in leave_out:
            meaning = (field.description or "").replace("|", "\\|").replace("<", "\\<")
            rows.append([f"`{prefix}{name}`", kind_of(field.annotation), default_of(field), meaning])
    return rows


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.default if field.default is not PydanticUndefined else field.default_factory()  # type: ignore[misc, call-arg]
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return shown(value)


def shown(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return ""
    if isinstance(value, float) and value == int(value) and abs(value) < 1e6:
        return f"`{value:.1f}`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def kind_of(annotation: Any) -> str:
    """The values that a field takes, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        kinds = [kind_of(argument) for argument in arguments if argument is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if origin is tuple:
        return "numbers" if Ellipsis in arguments else f"{len(arguments)} numbers"
    if origin is list:
        return "list"
    if origin is dict:
        return "section"
    names = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", Path: "path"}
    return names.get(annotation, "section")


def table(rows: list[list[str]]) -> str:
    return markdown(["setting", "values", "default", "meaning"], rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = ("|".join(f" {cell} " if cell else " " for cell in row) for row in (head, ["---"] * len(head), *rows))
    return "".join(f"|{line}|\n" for line in lines)


if __name__ == "__main__":
    main()
