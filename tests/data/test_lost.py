"""Structures that an atlas lacks, or that the grid loses, are told before training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import typer
import yaml
from typer.testing import CliRunner

from lrls_cli.check import check
from lrls_cli.preprocess import preprocess as preprocess_command
from stages.config import load_config
from stages.errors import LrlsError
from stages.preprocess import preprocess

SHAPE = (20, 20, 20)
pytestmark = pytest.mark.usefixtures("in_this_process", "no_pictures")


def project(folder, atlases, **preprocessing):
    """A configuration of atlases {case: {value: region}} and one scan without labels."""
    random = np.random.default_rng(0)
    anatomy = random.uniform(0, 100, SHAPE)  # of everyone
    for case in (*atlases, "scan"):
        voxels = (anatomy + random.uniform(0, 10, SHAPE)).astype(np.float32)
        volume(folder / "images" / f"{case}.nii.gz", voxels)
        if case in atlases:
            label = np.zeros(SHAPE, np.uint8)
            for value, region in atlases[case].items():
                label[region] = value
            volume(folder / "labels" / f"{case}.nii.gz", label)
    settings = {
        "workspace": "runs",
        "data": {"folder": ".", "atlases": list(atlases), "unlabeled": ["scan"]},
        "structures": {"block": 1, "dot": 7},
        "preprocess": {"align": "none", "margin_mm": 3, "workers": 1, **preprocessing},
    }
    (folder / "lrls.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder / "lrls.yaml"


def volume(path, voxels):
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))


BLOCK, DOT, SHEET = np.s_[4:14, 4:14, 4:14], np.s_[15, 15, 15], np.s_[15:16, 4:14, 4:14]


def run(command, *arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def checked(config):
    """The JSON document of `lrls check`, and its exit code."""
    result = run(check, config, "--json")
    return json.loads(result.stdout), result.exit_code


@pytest.mark.parametrize("thing", [DOT, SHEET], ids=["one voxel", "thinner than the spacing"])
def test_a_structure_that_the_grid_loses_is_a_fault_that_names_a_spacing_that_keeps_it(tmp_path, thing):
    config = project(tmp_path, {"atlas": {1: BLOCK, 7: thing}}, spacing_mm=2.5)

    with pytest.raises(LrlsError, match=r"structure dot has no voxel on the grid of 2\.5 x 2\.5 x 2\.5 mm in") as told:
        preprocess(load_config(config))
    report, code = checked(config)
    assert (code, [found["code"] for found in report["found"]]) == (1, ["lost-structure"])
    assert report["found"][0]["found"] in str(told.value)

    spacing = str(told.value).split("set preprocess.spacing_mm to ")[1].split(",")[0]
    cohort = preprocess(load_config(config, [f"preprocess.spacing_mm={spacing}"]))
    assert 1 <= float(spacing) < 2.5
    assert (cohort.label("atlas") == 2).any()


def test_thick_slices_stay_in_the_spacing_that_keeps_a_structure(tmp_path):
    config = project(tmp_path, {"atlas": {1: BLOCK, 7: DOT}}, spacing_mm=[5, 2.5, 2.5])
    for path in tmp_path.glob("*/*.nii.gz"):
        image = sitk.ReadImage(str(path))
        image.SetSpacing((1, 1, 5))
        sitk.WriteImage(image, str(path))

    with pytest.raises(LrlsError, match=r"has no voxel on the grid of 5 x 2\.5 x 2\.5 mm") as told:
        preprocess(load_config(config))
    spacing = str(told.value).split("set preprocess.spacing_mm to ")[1].split(", which")[0]
    assert spacing.startswith("[5, ")
    cohort = preprocess(load_config(config, [f"preprocess.spacing_mm={spacing}"]))
    assert (cohort.label("atlas") == 2).any()


def test_a_structure_that_another_atlas_keeps_is_a_notice(tmp_path):
    config = project(
        tmp_path, {"one": {1: BLOCK, 7: DOT}, "two": {1: BLOCK, 7: np.s_[14:18, 14:18, 14:18]}}, spacing_mm=2.5
    )

    cohort = preprocess(load_config(config))

    (note,) = cohort.notes
    assert note.startswith("structure dot has no voxel on the grid of 2.5 x 2.5 x 2.5 mm in 1 of the 2 labelled scans")
    assert "set preprocess.spacing_mm to " in note


def test_nothing_is_told_where_every_structure_is_kept(tmp_path):
    config = project(tmp_path, {"atlas": {1: BLOCK, 7: DOT}})

    assert preprocess(load_config(config)).notes == ()
    assert checked(config) == ({"scans": 2, "faults": 0, "notices": 0, "found": []}, 0)


def test_an_atlas_that_lacks_a_structure_is_a_notice_in_check_and_preprocess(tmp_path):
    config = project(tmp_path, {"one": {1: BLOCK}, "two": {1: BLOCK, 7: np.s_[14:18, 14:18, 14:18]}})

    report, code = checked(config)
    assert code == 0
    assert report["found"] == [
        {
            "case": "one",
            "parts": ["atlases"],
            "severity": "notice",
            "code": "atlas-lacks-structure",
            "found": "atlas lacks dot, which another atlas has",
            "remedy": "its votes do not count there; label it if the scan shows it",
        }
    ]

    out = run(preprocess_command, config).stdout + run(check, config).stdout
    line = "note: case one: atlas lacks dot, which another atlas has; its votes do not count there; "
    assert out.count(line) == 2
    assert out.endswith("3 scans, no faults, 1 notice.\n")


BIG = np.s_[2:18, 3:17, 6:14]


@pytest.mark.parametrize("also", [{}, {"crop": "none"}], ids=["labels", "whole image"])
def test_a_grid_that_cuts_a_structure_is_a_fault_that_names_what_would_hold_it(tmp_path, also):
    config = project(tmp_path, {"atlas": {1: BIG, 7: DOT}}, shape=[12, 16, 16], spacing_mm=1, **also)

    with pytest.raises(LrlsError) as told:
        preprocess(load_config(config))
    line = str(told.value)
    assert line.startswith("case atlas: the grid of 12 x 16 x 16 voxels of 1 mm cuts block (25 % lost)") or (
        also and "of 1 mm cuts dot (100 % lost), block" in line
    )
    report, code = checked(config)
    assert (code, [found["code"] for found in report["found"]]) == (1, ["cut-structure"])
    if also:
        assert line.endswith("set preprocess.crop to labels, or a larger preprocess.margin_mm.")
        return
    shape = line.split("set preprocess.shape to ")[1].split("]")[0] + "]"
    cohort = preprocess(load_config(config, [f"preprocess.shape={shape}"]))
    assert (cohort.label("atlas") == 1).sum() == 16 * 14 * 8
    assert checked(config)[1] == 1


def test_a_supervised_scan_that_the_grid_cuts_is_a_notice(tmp_path):
    config = project(tmp_path, {"atlas": {1: BLOCK, 7: np.s_[14:17, 14:17, 14:17]}, "other": {1: np.s_[:, 4:14, 4:14]}})
    overrides = [
        "data.atlases=[atlas]",
        "data.supervised=[other]",
        "preprocess.shape=[14,14,14]",
        "preprocess.margin_mm=0",
    ]

    cohort = preprocess(load_config(config, overrides), "supervised")

    (note,) = cohort.notes
    assert (
        note.startswith("case other: the grid of 14 x 14 x 14 voxels of 0.929 mm cuts block (") and "margin_mm" in note
    )


def test_a_shape_alone_resamples_the_box_with_its_margins(tmp_path):
    config = project(tmp_path, {"atlas": {1: BIG, 7: np.s_[14:17, 12:16, 11:14]}}, shape=[10, 40, 16])

    cohort = preprocess(load_config(config))

    assert cohort.grid.shape == (10, 40, 16)
    assert cohort.grid.spacing_mm == pytest.approx(((15 + 6 + 1) / 10, (13 + 6 + 1) / 40, (7 + 6 + 1) / 16))
    voxel = np.prod(cohort.grid.spacing_mm)
    assert (cohort.label("atlas") == 1).sum() * voxel == pytest.approx(16 * 14 * 8 - 36, rel=0.15)
    assert checked(config)[1] == 0


def test_another_atlas_that_the_grid_cuts_is_named(tmp_path):
    inside = np.s_[7:8, 8:10, 8:10]
    atlases = {"one": {1: np.s_[8:10, 6:10, 6:10], 7: inside}, "two": {1: np.s_[3:8, 6:10, 6:10], 7: inside}}
    config = project(tmp_path, atlases, shape=[6, 16, 16], spacing_mm=1.0)

    with pytest.raises(LrlsError, match=r"^case two: the grid of 6 x 16 x 16 voxels of 1 mm cuts block \(21 % lost\)"):
        preprocess(load_config(config))


@pytest.mark.parametrize("factor", [0.001, 0.05, 20, 1000])
def test_scans_of_any_size_lie_on_the_same_grid(tmp_path, factor):
    region = {1: BLOCK, 7: np.s_[14:18, 14:18, 14:18]}
    labels, shapes = [], []
    for name, size in (("human", 1.0), ("other", factor)):
        folder = tmp_path / name
        folder.mkdir()
        config = project(folder, {"atlas": region}, align="centre", margin_mm=None)
        for path in folder.glob("*/*.nii.gz"):
            image = sitk.ReadImage(str(path))
            image.SetSpacing([mm * size for mm in (1.05, 1.3, 1.1)])
            sitk.WriteImage(image, str(path))
        cohort = preprocess(load_config(config))
        shapes.append(cohort.grid.shape)
        labels.append(cohort.label("atlas"))
    assert shapes[0] == shapes[1]
    assert (labels[0] != labels[1]).mean() < 1e-3  # ties of two structures in a voxel
