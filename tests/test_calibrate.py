"""Calibrating trusts nothing that changed since it was made."""

from __future__ import annotations

import shutil

import pytest
from conftest import Project, draw_no_pictures

from stages.answering.answers import Answering

ANSWERS_REST_ON = ("cohort", "brbs/registration", "brbs/generated", "brbs/segmentation")


@pytest.fixture(scope="module")
def shared(tmp_path_factory, new_project, no_pictures_in_module) -> Project:
    project = new_project(tmp_path_factory.mktemp("calibrate"), preprocess={"shape": [16, 16, 16]})
    project.made("run", "--method", "brbs", "--until", "train-seg")
    return project


@pytest.fixture
def copied(shared, tmp_path, monkeypatch) -> Project:
    draw_no_pictures(monkeypatch)
    shutil.copytree(shared.folder, tmp_path / "copy")
    return Project(tmp_path / "copy")


@pytest.mark.parametrize("target", ANSWERS_REST_ON)
def test_what_changed_since_it_was_made_is_refused_before_anything_is_answered(target, copied, monkeypatch):
    answered = []
    monkeypatch.setattr(Answering, "answers", lambda *_: answered.append(1) or iter(()))
    files = copied.manifest(target).files
    name = max(files, key=lambda each: (copied.workspace / target / "v0001" / each).stat().st_size)
    path = copied.workspace / target / "v0001" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    done = copied.lrls("calibrate", "--method", "brbs", "--couples", "9")

    assert done.code == 1
    assert f"{target}/v0001: {name} changed since it was written; make it again with `" in done.err
    assert not answered and not copied.versions("brbs/calibration")


def test_a_calibration_lists_all_that_it_rests_on_and_is_made_once(copied):
    for _ in range(2):
        copied.made("calibrate", "--method", "brbs", "--couples", "9")
    assert copied.versions("brbs/calibration") == ["v0001"]
    inputs = copied.manifest("brbs/calibration").identity.inputs
    digests = copied.digests()
    assert inputs == {target.rpartition("/")[2]: digests[f"{target}/v0001"] for target in ANSWERS_REST_ON}
