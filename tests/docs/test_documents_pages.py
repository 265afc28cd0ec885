"""README and docs say what is true: settings, links, examples, and a page for every method."""

import re
import runpy
import shlex
import sys
import types
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from lrls_cli.main import app
from stages.config import Config, load_config
from stages.methods import METHODS, settings_of, training_of
from stages.methods.recipe import Generate, Method, Train

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [page for page in PAGES if "benchmarks" not in page.parts]  # the benchmarks have commands of their own time
START = {"workspace": "runs", "data": {"folder": "."}, "structures": {"a": 1}}
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def fenced(page, language):
    """The blocks of a language, in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def without_blocks(text):
    return re.sub(r"^```.*?^```|^ {4}.*?$", "", text, flags=re.DOTALL | re.MULTILINE)


def yaml_blocks():
    return [
        pytest.param(block, id=f"{name_of(page)}-{number}")
        for page in PAGES
        for number, block in enumerate(fenced(page, "yaml"))
    ]


def check(config):
    for name in config.methods:
        settings_of(METHODS[name], config)  # raises LrlsError where a setting is unknown
        for stage in {"train_reg", "train_seg"} & config.methods[name].keys():
            training_of(METHODS[name], config, stage)


@pytest.mark.parametrize("block", yaml_blocks())
def test_yaml_in_the_pages_is_understood(block):
    check(Config.model_validate(START | yaml.safe_load(block)))


def test_the_pages_show_presets_of_the_methods_that_have_schedules_of_hours():
    shown = [yaml.safe_load(block.values[0]).get("methods", {}) for block in yaml_blocks()]
    presets = {name for methods in shown for name, settings in methods.items() if "preset" in settings}
    assert {"brbs", "jrss", "lt-net", "os-medseg", "sst", "deep-atlas", "rsegnet", "data-aug"} <= presets


def commands():
    """Every line of `lrls` in the pages, without what is behind a `#`; (page, line, words)."""
    found = []
    for page in GUIDES:
        for line in re.findall(r"^ {4}(lrls .*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            if "..." not in line:
                found.append(pytest.param(shlex.split(line, comments=True)[1:], id=f"{name_of(page)}: {line[:60]}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_commands_in_the_pages_are_understood(words):
    command, *arguments = words
    known = get_command(app).commands
    assert command in known
    if command == "run" and "warped-unet" in arguments:
        return  # the example of add-a-method.md
    context = known[command].make_context(command, list(arguments), resilient_parsing=False)
    method = context.params.get("method")
    for name in [method] if isinstance(method, str) else context.params.get("methods") or []:
        assert name.split()[0] in METHODS


def overrides():
    """Every `--set` in the pages."""
    found = {}
    for page in GUIDES:
        for setting in re.findall(r"--set ([\w.-]+=[^\s`\"')]+)", page.read_text(encoding="utf-8")):
            found.setdefault(setting, name_of(page))
    return [pytest.param(setting, id=f"{page}: {setting}") for setting, page in found.items()]


@pytest.mark.parametrize("setting", overrides())
def test_overrides_in_the_pages_are_understood(setting, tmp_path):
    (tmp_path / "lrls.yaml").write_text(yaml.safe_dump(START))
    check(load_config(tmp_path / "lrls.yaml", [setting]))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings_that_are_there(page):
    text = without_blocks(page.read_text(encoding="utf-8"))
    targets = LINK.findall(text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    broken = []
    for target in targets:
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def anchors(page):
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 9 * 1024


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_and_a_row_in_the_readme(name):
    titles = [page.read_text(encoding="utf-8").splitlines()[0] for page in (ROOT / "docs" / "methods").glob("*.md")]
    assert sum(f"`{name}`" in title for title in titles) == 1
    assert f"| [`{name}`](docs/methods/" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_of_settings_is_what_the_script_writes():
    written = runpy.run_path(str(ROOT / "docs" / "settings.py"))["page"]()
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == written, "run `python docs/settings.py`"


def test_format_versions_in_the_page_of_artifacts_are_those_of_the_code():
    from stages.artifacts.kinds import KINDS

    rows = re.findall(
        r"^\| `(\w+)` \| `(.+)` \| (\d+) \|$",
        (ROOT / "docs" / "artifacts.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    shown = {kind: (made_with, int(version)) for kind, made_with, version in rows}
    assert shown == {kind: (each.MADE_WITH, each.FORMAT) for kind, each in KINDS.items()}


def test_files_and_functions_in_the_page_of_architecture_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in re.findall(r"`(stages/[\w/]+\.py|tests/\w+\.py|lrls_cli/\w+\.py)`", text):
        assert (ROOT / path).is_file(), path
    for name, path in re.findall(r"`([\w.]+)` in `(stages/[\w/]+\.py)`", text):
        assert re.search(rf"(def|class) {name.split('.')[-1]}\b", (ROOT / path).read_text(encoding="utf-8")), name


@pytest.fixture
def example():
    """The method of add-a-method.md, from the page's own code."""
    (code,) = fenced(ROOT / "docs" / "add-a-method.md", "python")
    module = types.ModuleType("stages.methods.warped_unet")
    sys.modules[module.__name__] = module  # where pydantic looks up annotations
    try:
        exec(compile(code, "docs/add-a-method.md", "exec"), module.__dict__)
        yield module.METHOD
    finally:
        del sys.modules[module.__name__]


def test_the_example_of_a_method_builds_and_plans(example):
    assert isinstance(example, Method)
    settings = example.settings(preset="light")
    recipe = example.plan(settings, num_atlases=1)
    (steps,) = recipe.rounds
    assert [type(step) for step in steps] == [Train, Generate, Train]
    assert [step.makes for step in recipe.steps(0)] == ["registration", "generated", "segmentation"]
    assert recipe.learns_registration and recipe.answer.network is not None
    assert all(list(recipe.trained(step)) == [step.makes] for _, step in recipe.training_steps())
    for numbers in (example.train_reg(settings), example.train_seg(settings)):
        values = numbers.model_dump(
            exclude={"start_from"} | ({"epochs"} if numbers.schedule != "exponential" else set())
        )
        assert None not in values.values()


def test_the_example_of_a_method_has_the_form_of_all_others(example):
    assert all(field.description for field in example.settings.model_fields.values())
    assert example.name not in METHODS
