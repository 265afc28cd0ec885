"""What the benchmarks tell people to run is understood."""

from pathlib import Path

import pytest

from stages.config import load_config
from stages.methods import METHODS, settings_of, training_of

ROOT = Path(__file__).parents[2]


def check(config):
    for name in config.methods:
        settings_of(METHODS[name], config)  # raises LrlsError where a setting is none
        for stage in {"train_reg", "train_seg"} & config.methods[name].keys():
            training_of(METHODS[name], config, stage)


@pytest.mark.parametrize("name", ["hippocampus", "brain"])
def test_settings_of_the_benchmarks_are_understood(name):
    check(load_config(ROOT / "docs" / "benchmarks" / f"{name}.yaml"))


ANY = sorted((ROOT / "docs" / "benchmarks" / "any").glob("*.yaml"))


@pytest.mark.parametrize("path", ANY, ids=[path.stem for path in ANY])
def test_benchmarks_of_any_anatomy_name_data_and_structures_alone(path):
    assert len(ANY) == 6
    named = load_config(path).model_fields_set
    assert named == {"workspace", "data", "structures", "others", "seed"}
