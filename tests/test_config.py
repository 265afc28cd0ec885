"""Configuration files, `--set` and lists of cases: read as they stand there, or refused in one line."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.case_ids import MOST_BYTES, fault_among
from stages.config import Config, Section, load_config
from stages.errors import UNPRINTABLE, LrlsError, plural, printable
from stages.methods import METHODS, settings_of, training_of
from stages.text_files import read_json

SOUND = "workspace: runs\ndata: {folder: ., atlases: [a], unlabeled: [b]}\nstructures: {x: 1}\n"


def loaded(folder: Path, text: str | bytes, *overrides: str) -> Config:
    path = folder / "lrls.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path, list(overrides))


def refusal(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(LrlsError) as error:
        loaded(folder, text, *overrides)
    return one_line(error.value)


def one_line(error: LrlsError) -> str:
    line = str(error)
    assert not UNPRINTABLE.search(line)
    assert line[-1] in ".?"
    assert len(line) < 800
    return line


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n" for before, name in itertools.pairwise("abcdefghi")
)
RAW: list[tuple[str | bytes, str]] = [  # a whole file, and a part of what is said of it
    ("", "is empty"), ("---\n", "is empty"), ("# nothing", "is empty"), ("null", "is empty"), ("\r\n\r\n", "is empty"),
    ("[]", "found list"), ("- a\n- b", "found list"), ("a", "found str"), ("1", "found int"), ("true", "found bool"),
    ("a: b: c", "line 1: mapping values"), ("a: b\n c: d", "line 2: mapping values"), ("a:\n b\nc", "line 3: could"),
    ("a:\n\t- b", "line 2: a tab"), ("\ta: 1", "line 1: a tab"), ("a: 1\n\tb: 2", "line 2"),
    ("a: [", "line 1"), ("a: {", "line 1"), ("a: [1, 2", "line 1"), ("a: ]", "line 1"), ("a: }", "line 1"),
    ("a: ,", "line 1"), ('"abc', "line 1"), ("'abc", "line 1"), ("a: 'b\nc", "line 2"), ("[a, b]: c", "no text"),
    ("@a: 1", "line 1"), ("`a: 1", "line 1"), ("a: @b", "line 1"), ("a: %b", "line 1"), ("a: & b", "line 1"),
    ("a: *x", "undefined alias"), ("a: * b", "line 1"), ("&a [*a]", "inside of what it names"),
    ("a: &a {b: *a}", "inside of what it names"), ("a: &a\n  <<: *a", "inside of what it names"),
    (ALIASES, "aliases repeat more than"), (MERGES, "aliases repeat more than"),
    ("<<: 1", "<< expects"), ("<<: [1]", "<< expects"), ("<<: {a: 1}\n<<: {b: 2}", "lines 1 and 2"),
    ("!!python/object/apply:os.system [ls]", "tag !!python"), ("a: !!python/name:os.system", "tag !!python"),
    ("a: !foo b", "tag !foo"), ("a: !<x> b", "tag x"), ("a: !<", "line 1"), ("a: !!timestamp x", "tag !!timestamp"),
    ("a: !!binary x", "tag !!binary"), ("!!set {a, b}", "tag !!set"), ("!!omap [a: 1]", "tag !!omap"),
    ("a: !!int x", "'x' is not of the kind !!int"), ("a: !!float x", "!!float"), ("a: !!bool x", "!!bool"),
    ("a: !!null x", "!!null"), ("a: !!str [b]", "tag !!str"),
    ("%YAML 9.9\n---\na: 1", "line 1"), ("%FOO\na: 1", "line 2"), ("a: 1\n---\nb: 2", "line 2: a second document"),
    ("a: 1\n...\nb: 2", "line 3"),
    (b"\xff\xfea\x00", "UTF-16"), (b"\xfe\xff\x00a", "UTF-16"), (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"a: 1\nb: \xe9", "line 2 is not UTF-8"), ("a: 1\nb: \x00", r"line 2: a control character (\x00)"),
    ("a: \x1b[31m", r"(\x1b)"), ('a: "\\x1b[31m"', r"(\x1b)"), ('a: "\\uD800"', r"(\ud800)"),
    ('a: "\\UFFFFFFFF"', "does not exist"), ('a: "\\q"', "line 1"), ('a: "\\xZZ"', "line 1"),
    ("a: |\n  x\n  y\n", r"line break (\n)"), ('a: "b\\nc"', r"line break (\n)"), ('"b\\nc": 1', r"line break (\n)"),
    ("? [a]\n: b", "no text"), ("{{a: 1}: b}", "no text"), ("? \n: b", "a key is empty"), ('"": b', "a key is empty"),
    ("a: 1\na: 2", "a stands in lines 1 and 2"), ("data:\n  x: 1\nb: 2\ndata:\n  y: 1", "data stands in lines 1 and 4"),
    ("data: {folder: ., folder: b}", "data.folder stands in line 1 twice"), ("a: {1: 2, '1': 3}", "a.1 stands in"),
    ("[" * 2000, "more than 50 levels"), ("{a: " * 2000, "more than 50 levels"), ("- " * 3000 + "a", "50 levels"),
    ("a: " + "9" * 5000, "5000 characters"), ("a: " + "x" * 5000, "5000 characters"),
    ("? " + "x" * 5000 + "\n: 1", "5000 characters"), ("x" * 4_000_001, "more than 4 MB"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), RAW, ids=range(len(RAW)))
def test_yaml_that_is_none_or_does_harm_is_refused_in_one_line(text, said, tmp_path):
    assert said in refusal(tmp_path, text)


def test_more_values_than_a_configuration_has_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.text_files.MOST_VALUES", 100)
    assert "the file holds more than 100 values" in refusal(tmp_path, "a: [" + "x," * 101 + "]")


def test_a_byte_order_mark_of_utf_8_is_nothing(tmp_path):
    assert loaded(tmp_path, b"\xef\xbb\xbf" + SOUND.encode()).part("atlases") == ["a"]


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LrlsError, match="it is not a regular file"):
        load_config(tmp_path / "pipe")
    with pytest.raises(LrlsError, match="is a folder; give the YAML file in it"):
        load_config(tmp_path)
    with pytest.raises(LrlsError, match=r"x/lrls.yaml cannot be read \(Not a directory\)"):
        (tmp_path / "x").touch()
        load_config(tmp_path / "x" / "lrls.yaml")


def test_ids_are_the_text_that_stands_in_the_file(tmp_path):
    written = [
        "001",
        "1e3",
        "0x1F",
        "12:30:45",
        "1_000",
        "yes",
        "no",
        "null",
        "~",
        "true",
        "2020-01-01",
        "1.50",
        "<<",
    ]
    config = loaded(tmp_path, SOUND.replace("[a]", f"[{', '.join(written)}]"))
    assert config.part("atlases") == written
    assert loaded(tmp_path, SOUND, f"data.test=[{', '.join(written)}]").part("test") == written
    assert loaded(tmp_path, SOUND, "data={folder: ., atlases: [007]}").part("atlases") == ["007"]
    assert loaded(tmp_path, SOUND.replace("[a]", '["p, 1", "p [2]", "p {3}"]')).part("atlases") == [
        "p, 1", "p [2]", "p {3}",
    ]  # fmt: skip
    assert loaded(tmp_path, SOUND, "data.test=[p_1,p_2]").part("test") == ["p_1", "p_2"]


def test_an_id_that_is_left_out_is_missed(tmp_path):
    for text in (
        SOUND.replace("[a]", "[a, '']"),
        SOUND.replace("[a]", "\n    - a\n    -\n").replace("{", "").replace("}", ""),
    ):
        refusal(tmp_path, text)


def test_numbers_are_what_people_mean_by_them(tmp_path):
    config = loaded(tmp_path, SOUND.replace("x: 1", "no: 017, 2: 0x12, null: 3"), "train_seg.steps=0100")
    assert config.structures == {"no": 17, "2": 18, "null": 3}
    assert config.train_seg.steps == 100
    assert loaded(tmp_path, SOUND, "train_seg.learning_rate=1e-3").train_seg.learning_rate == 0.001
    assert loaded(tmp_path, SOUND, "train_seg.steps=1e3").train_seg.steps == 1000
    assert loaded(tmp_path, SOUND, "preprocess.n4=yes").preprocess.n4 is True
    assert "train_seg.steps" in refusal(tmp_path, SOUND, "train_seg.steps=12:30:45")
    assert "seed" in refusal(tmp_path, SOUND, "seed=true")


def test_merged_sections_are_copies(tmp_path):
    text = SOUND + "train_reg: &t {steps: 5}\ntrain_seg: {<<: *t, batch_size: 2}\n"
    config = loaded(tmp_path, text, "train_reg.steps=7")
    assert (config.train_reg.steps, config.train_seg.steps, config.train_seg.batch_size) == (7, 5, 2)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("", "is empty"), (" ", "is empty"), (".", "begins with a dot"), ("..", "begins with a dot"),
        ("a/b", "path separator"), ("/a", "path separator"), ("..\\a", "path separator"), ("a\nb", "control character"),
        ("\x1b[31m", "control character"), ("a\u202eb", "control character"), ("a\udce9", "control character"),
        ("é" * MOST_BYTES, "bytes in UTF-8"),
    ],
)  # fmt: skip
def test_an_id_that_cannot_be_carried_is_refused_by_name(case, said):
    fault = fault_among(["sound", case])
    assert fault and said in fault
    assert not UNPRINTABLE.search(fault)


@pytest.mark.parametrize(
    "case", ["a b", "a,b", "a[1]", "{a}", "-x", "=cmd|x", "%n", "'a'", '"', "肝臓", "p01.img", "a;b"]
)
def test_other_ids_are_taken(case):
    assert fault_among([case, "sound"]) is None


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("P01", "p01", "differ in upper and lower case only"), ("caf\u00e9", "cafe\u0301", "look the same"),
        ("p01", "p01", "is listed more than once"),
    ],
)  # fmt: skip
def test_ids_that_file_systems_take_for_one_are_refused(first, second, said, tmp_path):
    fault = fault_among([first, "other", second])
    assert fault and said in fault
    (tmp_path / "split.json").write_text(json.dumps({"learn": [first, second]}))
    config = loaded(tmp_path, SOUND.replace("[a]", "learn").replace("folder: .", "folder: ., split: split.json"))
    with pytest.raises(LrlsError, match=f"data.atlases: .*{said}"):
        config.part("atlases")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "holds no named lists"), (b"1", "holds no named lists"), (b"{", "line 1 is not JSON"),
        (b'{"learn": {}}', "holds no list 'learn'"), (b'{"learn": ["a"], "learn": ["b"]}', "names 'learn' twice"),
        (b'{"learn": [["a"]]}', "no case id"), (b'{"learn": [null]}', "no case id"), (b'{"learn": [1.5]}', "no case"),
        (b'{"learn": ["../a"]}', "path separator"), (b"[" * 100_000, "nested too deeply"), (b"\xff\xfe{", "UTF-16"),
        (b'{"learn": ["\xe9"]}', "line 1 is not UTF-8"), (b'{"learn": [' + b"9" * 5000 + b"]}", "cannot be read"),
        (b'{"learn": ["a\\u001b[31m"]}', "control character"),
    ],
)  # fmt: skip
def test_a_split_file_that_lists_no_cases_is_refused(content, said, tmp_path):
    (tmp_path / "split.json").write_bytes(content)
    config = loaded(tmp_path, SOUND.replace("[a]", "learn").replace("folder: .", "folder: ., split: split.json"))
    with pytest.raises(LrlsError) as error:
        config.part("atlases")
    assert said in one_line(error.value)


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "split.json").write_bytes(b'\xef\xbb\xbf{"learn": ["a", 7]}')
    assert read_json(tmp_path / "split.json") == {"learn": ["a", 7]}
    config = loaded(tmp_path, SOUND.replace("[a]", "learn").replace("folder: .", "folder: ., split: split.json"))
    assert config.part("atlases") == ["a", "7"]


def test_a_tilde_is_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = loaded(tmp_path, SOUND, "workspace=~/runs", "data.folder=~")
    assert (config.workspace, config.data.folder) == (tmp_path / "home" / "runs", tmp_path / "home")
    assert "workspace: ~nobody-here/x" in refusal(tmp_path, SOUND, "workspace=~nobody-here/x")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert "data.folder" in refusal(tmp_path, SOUND, "data.folder=circle/x")


def test_the_smallest_number_of_voxels_that_works_is_named(tmp_path):
    assert "greater than or equal to 4096 (found 1)" in refusal(tmp_path, SOUND, "preprocess.max_voxels=1")


NO_OVERRIDES = (
    "x", "x=", "=", "=1", ".=1", "a..b=1", ".a=1", "data.=1", "seed.x=1", "data.folder.x=1", "seed=[", "seed=&a *a",
    "seed=a: b: c", "seed=1\n---\n2", "methods=5", "methods.brbs=5", "methods.brbs.train_reg=5", "data=[]",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_OVERRIDES)
def test_an_override_that_is_none_is_refused(text, tmp_path):
    assert refusal(tmp_path, SOUND, text)


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 10**9, 10**12, -(10**12), 10**30, -(10**30), 10**400, 0.5, -0.5, 1e-300, 1e300,
    float("nan"), float("inf"), float("-inf"), "", " ", "1", "-1", "1e400", "nan", "abc", "肝臓", "a" * 3000,
    "\x1b[31m", "a\nb", "\x00", "../x", "~", "~x/y", "%n", "=1", [], [1], [1, 2], [1, 2, 3], ["a"], [None],
    [[1]], [True], [{}], [0.5, -1], [float("nan")] * 3, [10**30] * 3, ["a", "a"], [""], {}, {"a": 1}, {"": ""},
    {"x": {"y": {"z": 1}}}, {"a": float("nan")}, {"\x1b": 1}, {"a": []}, {"a": [0]}, {"a": 0}, {"a": 10**30},
    {"a": [1, 1]}, {"a": None}, (1, 2), b"x",
]  # fmt: skip


def fields(section: type[Section], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        yield (*place, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, (*place, name))


def test_any_value_of_any_setting_is_taken_or_refused_in_one_line(tmp_path, monkeypatch):
    """As `load_config` checks them, whatever the file says; most of these cannot even be written as YAML."""
    tries = 0
    for place in fields(Config):
        for value in VALUES:
            values: dict[str, Any] = yaml.safe_load(SOUND)
            node = values
            for name in place[:-1]:
                node = node.setdefault(name, {})
            node[place[-1]] = value
            monkeypatch.setattr("stages.config.read_yaml", lambda _, values=values: values)
            tries += 1
            try:
                config = load_config(tmp_path / "lrls.yaml")
                for part in ("atlases", "unlabeled", "test"):
                    config.part(part)
                config.structure_values()
            except LrlsError as error:
                one_line(error)
    assert tries > 2500


@pytest.mark.parametrize("method", METHODS)
def test_any_value_of_any_methods_setting_is_taken_or_refused_in_one_line(method, tmp_path, monkeypatch):
    for name in [*METHODS[method].settings.model_fields, "train_reg", "train_seg", "unknown"]:
        for value in VALUES[::2]:
            values = yaml.safe_load(SOUND) | {"methods": {method: {name: value}}}
            monkeypatch.setattr("stages.config.read_yaml", lambda _, values=values: values)
            try:
                config = load_config(tmp_path / "lrls.yaml")
                settings_of(METHODS[method], config)
                for stage in ("train_reg", "train_seg"):
                    if getattr(METHODS[method], stage):
                        training_of(METHODS[method], config, stage)
            except LrlsError as error:
                one_line(error)


def test_text_is_shown_in_one_line():
    assert printable("a\x1b[31mb\nc\u202ed\ud800") == r"a\x1b[31mb\nc\u202ed\ud800"
    assert str(LrlsError("case a\nb: \x07")) == r"case a\nb: \x07"
    assert [plural(n, "scan") for n in (0, 1, 2)] == ["0 scans", "1 scan", "2 scans"]
    assert [plural(n, "atlas", "atlases") for n in (1, 2)] == ["1 atlas", "2 atlases"]
