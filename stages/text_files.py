"""YAML and JSON that users write: read as it stands there, or refused in one line.

The YAML is what people mean by it: mappings, lists, text, and numbers, `true`, `false` and `null` as in YAML 1.2. So
`no`, `12:30` and `2020-01-01` are text, and `0100` is a hundred. Case ids and paths are always text: an id `001` stays
`001`. No unknown tags, no key twice, nothing that grows when it is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stages.errors import UNPRINTABLE, printable, shortened

MOST_BYTES = 4_000_000
MOST_JSON_BYTES = 64_000_000  # lists of a large dataset
MOST_DEPTH = 50
MOST_VALUES = 100_000  # with what aliases repeat
MOST_CHARACTERS = 4096  # of one value: the longest path of many systems
TAG = "tag:yaml.org,2002:"
ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


def read_yaml(path: Path) -> Any:
    """The value of a YAML file; None: it is empty.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML as above; the message says where and why, in a few words.
    """
    return _parsed(text_of(path, MOST_BYTES), ())


def yaml_value(text: str, key: str) -> Any:
    """A value that is given for a setting ("data.atlases") in one line of YAML.

    Raises:
        ValueError: as `read_yaml`.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{len(text)} characters are too many")
    try:
        return _parsed(text, tuple(key.split(".")))
    except ValueError as error:
        raise ValueError(str(error).removeprefix("line 1: ")) from None


def yaml_text(value: Any) -> str:
    """A value in one line of YAML, as `yaml_value` reads it."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or names something twice; the message is a few words.
    """
    text = text_of(path, MOST_JSON_BYTES)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno} is not JSON") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names '{printable(shortened(doubled))}' twice")
    return values


def text_of(path: Path, most_bytes: int) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file, too big, or not UTF-8; the message is a few words.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it has more than {most_bytes // 1_000_000} MB")
    for mark, encoding in ENCODINGS.items():
        if data.startswith(mark):
            raise ValueError(f"it is stored as {encoding}; store it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8; store the file as UTF-8") from None


class _Refused(Exception):
    """A construct that is not read; the node or mark says where."""

    def __init__(self, line: int, found: str) -> None:
        super().__init__(f"line {line + 1}: {found}")


class _Loader(yaml.SafeLoader):
    """Reads YAML as nodes; bounded in depth and number. `_value` makes values of them."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    depth = 0
    num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        line = self.peek_event().start_mark.line
        self.depth += 1
        self.num_nodes += 1
        if self.depth > MOST_DEPTH:
            raise _Refused(line, f"more than {MOST_DEPTH} levels are nested")
        if self.num_nodes > MOST_VALUES:
            raise _Refused(line, f"the file holds more than {MOST_VALUES} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(TAG + _kind, re.compile(rf"^(?:{_pattern})$"), list(_first))


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as something else, such as 1e3, a number in YAML 1.2 alone."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a list that stands in two places is written twice


def _parsed(text: str, key: tuple[str, ...]) -> Any:
    if found := re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text):
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(f"line {line}: a control character ({printable(found[0])})")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, set())
        return _value(node, key)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = str(getattr(error, "problem", None) or "not readable")
        if r"'\t'" in problem:
            problem = "a tab where YAML expects spaces"
        elif "single document" in str(error):
            problem = "a second document (---)"
        raise ValueError(f"line {mark.line + 1 if mark else 1}: {printable(shortened(problem, 120))}") from None
    except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF"
        raise ValueError(f"line {loader.line + 1}: a character that does not exist") from None
    finally:
        loader.dispose()


def _measure(node: yaml.Node, measured: dict[int, tuple[int, int]], within: set[int]) -> tuple[int, int]:
    """Number of values and levels below a node, with everything that aliases repeat.

    Raises:
        _Refused: too many of either, or an alias inside of what it stands for.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1, 1
    if id(node) in within:
        raise _Refused(node.start_mark.line, "an alias stands inside of what it names")
    if id(node) not in measured:
        within.add(id(node))
        inside = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes = [_measure(part, measured, within) for part in inside]
        within.remove(id(node))
        number, depth = 1 + sum(n for n, _ in sizes), 1 + max((d for _, d in sizes), default=0)
        if number > MOST_VALUES:
            raise _Refused(node.start_mark.line, f"aliases repeat more than {MOST_VALUES} values")
        if depth > MOST_DEPTH:
            raise _Refused(node.start_mark.line, f"aliases nest more than {MOST_DEPTH} levels")
        measured[id(node)] = number, depth
    return measured[id(node)]


def _value(node: yaml.Node, key: tuple[str, ...]) -> Any:
    """What a node says; `key` is its place, which says whether text is expected there."""
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, key)
    kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
    if node.tag != TAG + kind:
        raise _Refused(node.start_mark.line, f"the tag {_shown_tag(node)} is not known here; leave it out")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key)
    return [_value(part, (*key, "")) for part in node.value]


def _mapping(node: yaml.MappingNode, key: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for name_node, value_node in node.value:
        line = name_node.start_mark.line
        if not isinstance(name_node, yaml.ScalarNode):
            raise _Refused(line, "a key that is no text")
        name = _written(name_node)
        if not name:
            raise _Refused(line, "a key is empty")
        if name in lines:
            where = f"lines {lines[name] + 1} and {line + 1}" if line != lines[name] else f"line {line + 1} twice"
            raise _Refused(line, f"{'.'.join([*key, shortened(name)])} stands in {where}; keep one")
        lines[name] = line
        if name_node.tag == TAG + "merge":
            for part in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                if not isinstance(part, yaml.MappingNode):
                    raise _Refused(line, "<< expects a mapping")
                merged = _mapping(part, key) | merged
        else:
            values[name] = _value(value_node, (*key, name))
    return merged | values


def _scalar(node: yaml.ScalarNode, key: tuple[str, ...]) -> Any:
    text = _written(node)
    kind = node.tag.removeprefix(TAG)
    if node.tag == kind or kind not in ("str", "bool", "int", "float", "null", "merge"):
        raise _Refused(node.start_mark.line, f"the tag {_shown_tag(node)} is not known here; leave it out")
    is_set_to_null = kind == "null" and (not text or not (_is_item(key) or text == "~"))  # ~ is a path: the home
    if kind in ("str", "merge") or (_is_text(key) and not is_set_to_null):
        return text
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind == "int":
            return int(text.replace("_", ""), 16 if "x" in text else 10)
        if kind == "float":
            return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower().replace("_", "")))
        return {"": None, "~": None, "null": None}[text.lower()]
    except (ValueError, KeyError):
        raise _Refused(node.start_mark.line, f"'{printable(shortened(text))}' is not of the kind !!{kind}") from None


def _written(node: yaml.ScalarNode) -> str:
    """A scalar's text."""
    if len(node.value) > MOST_CHARACTERS:
        raise _Refused(node.start_mark.line, f"a value of {len(node.value)} characters")
    if found := UNPRINTABLE.search(node.value):
        raise _Refused(node.start_mark.line, f"a value with a control character or line break ({printable(found[0])})")
    return node.value


def _is_text(key: tuple[str, ...]) -> bool:
    """Whether a setting is a path or holds case ids: what looks like a number or a date there is text, too."""
    return key == ("workspace",) or (len(key) > 1 and key[0] == "data")


def _is_item(key: tuple[str, ...]) -> bool:
    return bool(key) and key[-1] == ""


def _shown_tag(node: yaml.Node) -> str:
    return printable(shortened(str(node.tag).replace(TAG, "!!")))
