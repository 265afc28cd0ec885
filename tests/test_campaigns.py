"""Campaigns (`make faults`, `make kills`): no command is left out, broken promises are seen; and a few points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns.faulty import KINDS, Fault, cannot, points
from campaigns.kills import STOPPED, stopped_well
from campaigns.scenarios import SCENARIOS, missing
from campaigns.trials import Ended, Undisturbed, ended_well

ROOT = Path(__file__).parents[1]


def test_every_command_is_in_the_campaigns():
    assert missing() == set()


@pytest.mark.parametrize(
    ("code", "out", "err", "wrong"),
    [
        (1, "", "lrls: a: input/output error; run the same command again.\n", 0),
        (0, "done\n", "", 0),
        (1, "", "", 1),
        (1, "", "lrls: a.\nlrls: b.\n", 1),
        (1, "", "Traceback (most recent call last):\nOSError: a\n", 2),
        (1, "", "lrls: runs/.draft-0123/x: no room.\n", 1),
        (-7, "", "", 1),
        (None, "", "", 1),
        (0, "", "lrls: a.\n", 1),
    ],
)
def test_a_campaign_sees_how_a_command_ends(code, out, err, wrong):
    train = next(each for each in SCENARIOS if each.name == "train-seg")
    assert len(ended_well(Ended(code, out, err, 1.0), train)) == wrong


def test_a_campaign_sees_half_written_and_other_files():
    before, after = {"lrls.yaml": "a"}, {"lrls.yaml": "a", "out/x": "b", "out/log": "c"}
    undisturbed = Undisturbed(before, after, {"out/log"}, [], 0, 1.0, "")
    assert undisturbed.halves(before) == undisturbed.halves(after) == undisturbed.differing(after) == []
    assert undisturbed.halves(after | {"out/x": "?", "new": "d"}) == ["out/x is half-written", "new is there"]
    assert undisturbed.halves({}) == ["lrls.yaml is gone"]
    assert undisturbed.differing(before | {"out/x": "?"}) == ["out/log", "out/x"]


def test_a_campaign_sees_how_a_killed_command_ends():
    assert stopped_well(Ended(75, "", f"{STOPPED}\n", 1.0), "SIGTERM") == []
    assert len(stopped_well(Ended(1, "", "lrls: a.\n", 1.0), "SIGTERM")) == 1
    assert len(stopped_well(Ended(1, "", "", 1.0), "kill -9")) == 1


def test_a_choice_of_points_meets_every_file_and_all_points_are_all_calls():
    trace = [("write", f"/{name}") for name in "aabbcc"] + [("rename", "/c")]
    every = points(trace, None)
    assert [(fault.kind, fault.nth) for fault in every] == [("write", n) for n in range(1, 7)] + [("rename", 1)]
    assert len(points(trace, 2)) == 3 and all(isinstance(fault, Fault) and fault.kind in KINDS for fault in every)


def test_injected_faults_end_in_a_line_and_the_same_command_resumes():
    if reason := cannot():
        pytest.skip(reason)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(ROOT / "tests" / "campaigns" / "faults.py"),
        "--most",
        "1",
        "preprocess",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all |" in done.stdout and "`preprocess`" in done.stdout
