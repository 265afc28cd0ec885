"""`--json`: one document on standard output, and nothing else; `lrls info` and completion."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project

import lrls_cli
from stages.data.phantoms import STRUCTURES


def read(text: str) -> dict:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_commands_with_a_table_print_one_document(project: Project, no_pictures, tmp_path):
    def document(command: str, *arguments: str) -> dict:
        return read(project.made(command, *arguments, "--json").out)

    found = document("run", "--method", "unet")
    assert found["method"] == "unet" and found["scores"]["outputs"]["segmentation"]["dsc"]["n"] == 2
    scores = document("eval", "--method", "unet")
    assert scores["folder"] == found["scores"]["folder"] and scores["part"] == "test"
    assert {each["kind"] for each in document("history")["finished"]} >= {"cohort", "segmentation", "scores"}
    assert document("check")["faults"] == 0
    image = str(project.config.data.folder / "images" / "test_1.nii.gz")
    predicted = document("predict", image, "--method", "unet", "--out", str(tmp_path / "out"))
    (scan,) = predicted["scans"]
    assert scan["case"] == "test_1" and set(scan["volumes_ml"]) == set(STRUCTURES) and predicted["failures"] == []
    lost = project.lrls("eval", "--method", "brbs", "--json")  # an error is a line, and no document
    assert (lost.code, lost.out) == (1, "") and lost.err.startswith("lrls: ")


def test_every_command_that_prints_a_table_can_print_json():
    files = [file for file in Path(lrls_cli.__file__).parent.glob("*.py") if file.name != "tables.py"]
    with_tables = [file for file in files if "from lrls_cli.tables import" in file.read_text(encoding="utf-8")]
    assert len(with_tables) >= 10
    for file in with_tables:
        text = file.read_text(encoding="utf-8")
        assert "as_json: AsJson" in text and "print_json(" in text, file.name


def test_info_says_what_is_chosen_and_not_whose_machine_it_is(project: Project, monkeypatch):
    about = read(project.made("info", "--json").out)
    assert about["chosen"]["threads"] == 1 and about["chosen"]["device"] in ("cpu", "cuda")  # as the project sets it
    assert about["versions"].keys() >= {"lrls", "python", "torch", "antspyx", "SimpleITK"}
    lines = project.made("info").out
    for secret in (platform.node(), str(Path.home()), str(project.folder), sys.prefix):
        assert secret not in lines
    assert getpass.getuser() not in lines.split()


def test_the_shell_completes_commands_and_options():
    def completed(*words: str) -> list[str]:
        program = "import sys; sys.argv[0] = 'lrls'; from lrls_cli.main import main; main()"
        asked = {"COMP_WORDS": " ".join(["lrls", *words]), "COMP_CWORD": str(len(words))}
        env = os.environ | asked | {"_LRLS_COMPLETE": "complete_bash"}
        return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True).stdout.split()

    assert completed("suggest-a") == ["suggest-atlas"]
    assert completed("predict", "--j") == ["--json"]
