"""The load benchmarks watch commands, make large scans, and sum up what they saw."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stages.data.phantoms import STRUCTURES

BENCHMARKS = Path(__file__).parents[2] / "docs" / "benchmarks"


@pytest.fixture(autouse=True)
def from_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    yield


def test_a_command_is_watched_with_all_its_processes_and_must_succeed(tmp_path: Path) -> None:
    from load_kit import Load

    load = Load(tmp_path, BENCHMARKS.parents[1])
    folder, cases, structures = load.phantoms(4)
    assert len(cases) == 4 and structures == STRUCTURES and load.left() == 0
    assert len(list((folder / "images").iterdir())) == 4
    ran = load.run("methods", progress=lambda: 7)
    assert ran.code == 0 and ran.peak_mib > 5 and "best" in ran.said
    assert all(files > 0 and done == 7 for _, mib, files, done in ran.samples if mib > 0)
    with pytest.raises(SystemExit, match=r"lrls check ended with 1: lrls: .*no such"):
        load.run("check", str(tmp_path / "none.yaml"))


def test_a_large_scan_has_the_phantoms_structures_in_hounsfield_units(tmp_path: Path) -> None:
    from load_kit import write_ct

    write_ct(tmp_path, "c", (48, 40, 30), 0)
    image, label = (sitk.ReadImage(str(tmp_path / kind / "c.nii.gz")) for kind in ("images", "labels"))
    assert image.GetSize() == label.GetSize() == (48, 40, 30) and image.GetSpacing() == label.GetSpacing()
    assert set(np.unique(sitk.GetArrayFromImage(label))) == {0, *STRUCTURES.values()}
    voxels = sitk.GetArrayFromImage(image)
    assert voxels.dtype == np.int16 and -1020 <= voxels.min() < -900 and 1300 < voxels.max() <= 1415
    assert 300 < image.GetSize()[0] * image.GetSpacing()[0] < 500  # mm


def test_the_large_scans_steps_are_measured(tmp_path: Path) -> None:
    from load_kit import write_ct
    from load_volume import rows

    write_ct(tmp_path / "scans", "large", (48, 40, 30), 0)
    found = rows(tmp_path / "scans", tmp_path, STRUCTURES, (48, 40, 30), 8000)
    assert [row["stage"] for row in found] == ["check"] * 2 + ["preprocess"] * 2 + ["predict"] * 2
    assert all(row["peak_mib"] >= 0 for row in found) and (tmp_path / "answer.nii.gz").is_file()


def test_what_was_seen_is_summed_up_by_tenths_and_quarters() -> None:
    from load import soaked, table
    from load_kit import tenths

    samples = [(0.5 * k, 100.0 + k, 9, k // 2) for k in range(40)]  # 20 scans, one a second
    by_tenth = tenths(samples, 20)
    assert [row["tenth"] for row in by_tenth] == list(range(1, 11))
    assert by_tenth[0]["peak_mib"] == 103 and by_tenth[-1]["peak_mib"] == 139

    turns = [[float(k), 200.0 + (50 if k == 0 else 0), 11, 0, 1, 0, 0] for k in range(20)]
    found = soaked(turns, 2)
    assert (found["turns"], found["scans"], found["failures"], found["peak_mib"]) == (20, 40, 0, 250.0)
    assert found["first_quarter"]["mib"] == found["last_quarter"]["mib"] == 200.0
    text = table({"soak": found, "many": {"scans": 20, "tenths": by_tenth}})
    assert "turns 20" in text and "| tenth | peak_mib | files | s_a_scan |" in text
