"""Any tree of YAML is a configuration or one line; a configuration that is written is read as what it was."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from drawn import examples, numbers
from hypothesis import example, given
from hypothesis import strategies as st

from stages.case_ids import fault_among
from stages.config import Config, load_config
from stages.data.initialize import _list, _scalar
from stages.errors import UNPRINTABLE, LrlsError
from stages.methods import METHODS
from stages.sections import Section
from stages.text_files import read_yaml, yaml_text, yaml_value


def fields(section: type[Section]) -> set[str]:
    names = set(section.model_fields)
    for field in section.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            names |= fields(field.annotation)
    return names


NAMES = sorted(fields(Config) | set(METHODS))
ALMOST = "1e3 1_000 0o17 0x1F 12:30:45 2020-01-01 no yes on null ~ true << = .5 1. .inf .nan -"
WORDS = st.sampled_from(ALMOST.split(" "))
TEXT = st.one_of(
    st.text(string.printable, max_size=12), st.text(st.characters(exclude_categories=["Cs"]), max_size=12), WORDS
)
SHOWN = TEXT.filter(lambda text: bool(text.strip()) and not UNPRINTABLE.search(text))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 300), st.floats(), numbers(0, 9), TEXT, st.dates()
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), TEXT, st.integers(-2, 9)), inner, max_size=4),
    ),
    max_leaves=20,
)
SOUND = {"workspace": "runs", "data": {"folder": ".", "atlases": ["a"], "unlabeled": ["b"]}, "structures": {"x": 1}}


def one_line(error: LrlsError) -> None:
    line = str(error)
    assert line and line[-1] in ".?" and len(line) < 1000 and not UNPRINTABLE.search(line)


def ends_in_one_line(path: Path, *overrides: str) -> None:
    try:
        config = load_config(path, list(overrides))
        for part in ("atlases", "unlabeled", "supervised", "dev", "test"):
            config.part(part)
        config.structure_values(), config.reported()
        for method in config.methods:
            config.training("train_seg", method), config.method_settings(method)
    except LrlsError as error:
        one_line(error)


@examples(120)
@given(tree=TREES, places=st.lists(st.sampled_from(NAMES), max_size=3), flow=st.sampled_from([None, True, False]))
def test_any_tree_is_a_configuration_or_one_line(tmp_path, tree, places, flow):
    """The tree as the whole file, or as the value of some settings of a sound one."""
    values: Any = dict(SOUND) if places else tree
    for place in places:
        values[place] = tree
    path = tmp_path / "lrls.yaml"
    path.write_text(yaml.dump(values, allow_unicode=True, default_flow_style=flow), encoding="utf-8", errors="replace")
    ends_in_one_line(path)


@examples(120)
@given(text=st.text(st.sampled_from("ab1 :,-[]{}#&*!|>'\"%@`\n\t?<~.\\é\u2028"), max_size=60), data=st.data())
def test_any_text_put_into_a_file_is_a_configuration_or_one_line(tmp_path, text, data):
    sound = yaml.safe_dump(SOUND)
    at = data.draw(st.integers(0, len(sound)))
    path = tmp_path / "lrls.yaml"
    path.write_text(sound[:at] + text + sound[at:], encoding="utf-8")
    ends_in_one_line(path)
    path.write_text(sound, encoding="utf-8")
    ends_in_one_line(path, f"{data.draw(st.sampled_from(NAMES))}={text}")


IDS = SHOWN.filter(lambda case: fault_among([case]) is None)
POSITIVE = numbers(0.01, 9)
TRAINING = st.fixed_dictionaries(
    {}, optional={"steps": st.integers(0, 999), "learning_rate": POSITIVE, "ema": numbers(0, 0.99)}
)


@st.composite
def configurations(draw: Any) -> dict[str, Any]:
    """Values that make a configuration."""
    values = draw(st.lists(st.integers(-(2**31), 2**32 - 1).filter(bool), min_size=1, max_size=6, unique=True))
    names = draw(st.lists(SHOWN, min_size=len(values), max_size=len(values), unique=True))
    ids = draw(st.lists(IDS, max_size=6).filter(lambda cases: fault_among(cases) is None))
    optional = {
        "align": st.sampled_from(["none", "rigid"]), "margin_mm": POSITIVE, "n4": st.booleans(),
        "spacing_mm": st.one_of(st.none(), POSITIVE, st.tuples(POSITIVE, POSITIVE, POSITIVE).map(list)),
        "intensity": st.just({"method": "window", "window": [-100, 300.5]}),
    }  # fmt: skip
    return {
        "workspace": draw(SHOWN.filter(lambda text: not text.startswith("~"))),
        "data": {
            "folder": ".", "atlases": ids[:2], "unlabeled": ids[2:], "channels": draw(st.lists(SHOWN, max_size=2)),
            "files": {case: [draw(SHOWN)] for case in ids[:1]},
        },
        "structures": dict(zip(names, values, strict=True)),
        "colours": {name: "#00ffaa" for name in names[:1]},
        "seed": draw(st.integers(0, 2**63)),
        "preprocess": draw(st.fixed_dictionaries({}, optional=optional)),
        "train_seg": draw(TRAINING),
        "eval": {"report_as": {draw(SHOWN.filter(lambda name: name not in names)): names[:2]}},
        "methods": {draw(st.sampled_from(sorted(METHODS))): {"train_reg": draw(TRAINING)}},
    }  # fmt: skip


@examples(60)
@given(values=configurations())
def test_a_configuration_that_is_written_is_the_same_when_it_is_read(tmp_path, values):
    path = tmp_path / "lrls.yaml"
    path.write_text(yaml_text(values), encoding="utf-8")
    config = load_config(path)
    expected = Config.model_validate(values)
    untouched = {"workspace", "data", "colours"}
    assert config.model_dump(exclude=untouched) == expected.model_dump(exclude=untouched)
    for part in ("atlases", "unlabeled"):
        assert config.part(part) == values["data"][part]

    path.write_text(yaml_text(config.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    assert load_config(path) == config


@examples(100)
@given(value=st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), SHOWN,
    st.floats(allow_nan=False)), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHOWN, inner, max_size=3),
    max_leaves=6))  # fmt: skip
@example("1e3").via("looks like a number in YAML 1.2 only")
@example({"0o17": ["1_000", "no", "12:30"]}).via("numbers and truth of YAML 1.1")
@example(1e-05)
def test_a_value_in_one_line_of_yaml_is_read_as_what_it_was(value):
    text = yaml_text(value)
    assert "\n" not in text
    assert yaml_value(text, "train_seg.steps") == value


@examples(60)
@given(cases=st.lists(IDS, max_size=40))
@example(["p  1"] * 40).via("two spaces where a line ends")
@example(["Doe, J", "p [1]", "p {2}"]).via("they mean something within a list")
def test_ids_that_init_writes_are_read_as_they_were(tmp_path, cases):
    path = tmp_path / "ids.yaml"
    path.write_text("data:\n" + _list("atlases", cases), encoding="utf-8")
    assert read_yaml(path) == {"data": {"atlases": cases}}


@examples(60)
@given(text=SHOWN)
@example("#12").via("a comment")
def test_a_name_that_init_writes_is_read_as_it_was(tmp_path, text):
    path = tmp_path / "names.yaml"
    path.write_text(f"structures:\n  {_scalar(text)}: 1\n", encoding="utf-8")
    assert read_yaml(path) == {"structures": {text: 1}}


@pytest.mark.parametrize("value", [True, [True], [2, False]])
def test_true_is_no_label_value(tmp_path, value):
    (tmp_path / "lrls.yaml").write_text(yaml.safe_dump(SOUND | {"structures": {"x": value}}), encoding="utf-8")
    with pytest.raises(LrlsError, match="structures") as refused:
        load_config(tmp_path / "lrls.yaml")
    one_line(refused.value)
