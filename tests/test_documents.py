"""What README.md and the benchmarks tell people to write into lrls.yaml is understood."""

from pathlib import Path

import pytest
import yaml

from stages.config import Config, load_config
from stages.methods import METHODS, settings_of, training_of

ROOT = Path(__file__).parent.parent


def blocks():
    """YAML of the README's examples of methods, each up to the next line that is not indented."""
    found, lines = [], None
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("    methods:"):
            lines = []
            found.append(lines)
        elif not line.startswith("    "):
            lines = None
        if lines is not None:
            lines.append(line[4:])
    return ["\n".join(lines) for lines in found]


def check(config):
    for name in config.methods:
        settings_of(METHODS[name], config)  # raises LrlsError where a setting is none
        for stage in {"train_reg", "train_seg"} & config.methods[name].keys():
            training_of(METHODS[name], config, stage)


def test_the_readme_shows_settings_of_the_methods_that_have_schedules_of_hours():
    assert {"brbs", "jrss", "lt-net", "os-medseg", "sst", "deep-atlas", "rsegnet"} <= {
        name for block in blocks() for name in yaml.safe_load(block)["methods"]
    }


@pytest.mark.parametrize("block", blocks(), ids=lambda block: next(iter(yaml.safe_load(block)["methods"])))
def test_settings_in_the_readme_are_understood(block):
    start = {"workspace": "runs", "data": {"folder": "."}, "structures": {"a": 1}}
    check(Config.model_validate(start | yaml.safe_load(block)))


@pytest.mark.parametrize("name", ["hippocampus", "brain"])
def test_settings_of_the_benchmarks_are_understood(name):
    check(load_config(ROOT / "docs" / "benchmarks" / f"{name}.yaml"))
