"""`lrls report`: what the folder holds, and what it must not."""

from __future__ import annotations

import base64
import json
import re
import shutil
import zlib

import numpy as np
import pytest
from reports import HOSTILE, STRUCTURE

from stages.artifacts.cohort import Cohort, Grid
from stages.artifacts.sheets import FOLDED, KEPT, as_grey, as_sheet, from_sheet, read_sheet, write_sheet
from stages.reporting.charts import lines, spread
from stages.reporting.encoding import Layer, coarser, packed_labels
from stages.reporting.folder import script_json

pytestmark = pytest.mark.usefixtures("no_pictures")
CONFIG = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def case_file(made, number):
    text = (made.folder / "cases" / f"{number}.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix(f"lrlsCase({number}, ").removesuffix(");\n"))


def unpacked(script):
    """The label maps of a scan's script, by name."""
    found, before = {}, None
    for label in script["labels"]:
        classes = np.frombuffer(zlib.decompress(base64.b64decode(label["data"])), f"u{label['bytes']}")
        classes = classes ^ before if label["after"] else classes
        found[label["name"]], before = classes.reshape(script["shape"]), classes
    return found


def test_the_folder_holds_a_page_and_a_script_and_thumbnail_for_every_scan(made_report):
    names = sorted(path.relative_to(made_report.folder).as_posix() for path in made_report.folder.rglob("*.*"))
    assert [name for name in names if "pictures" not in name] == [
        "cases/0.js", "cases/1.js", "cases/2.js", "index.html", "thumbs/0.webp", "thumbs/1.webp", "thumbs/2.webp",
    ]  # fmt: skip
    data = json.loads(CONFIG.search(made_report.index)[1])
    assert [each["case"] for each in data["cases"]] == ["test_1", HOSTILE, "dev_1"]
    assert data["runs"] == ["affine", "unet"]
    assert (made_report.project.folder / "alone" / "index.html").is_file()  # of `lrls run --report`


def test_a_run_replaces_its_report_and_refuses_one_without_scores(made_report):
    project, folder = made_report.project, made_report.project.folder / "alone"
    (folder / "index.html").touch()
    before = (folder / "index.html").stat().st_ino
    project.made("run", "--method", "unet", "--report", str(folder))
    assert (folder / "index.html").stat().st_ino != before
    done = project.lrls("run", "--method", "unet", "--report", str(folder), "--until", "train-seg")
    line = "lrls: --report shows scores, and --until train-seg makes none; leave one of them out.\n"
    assert (done.code, done.err) == (1, line)
    done = project.lrls("run", "--method", "unet", "--report", str(folder), "--set", "data.test=[]")
    assert (done.code, done.err) == (
        1, "lrls: --report shows scores, and data.test lists no scan; list some, or leave it out.\n",
    )  # fmt: skip
    assert (folder / "index.html").is_file()


def test_numbers_are_those_of_the_scores(made_report):
    table = made_report.project.workspace / "affine" / "scores" / "v0001" / "scores.csv"
    import pandas as pd

    scores = pd.read_csv(table)
    data = json.loads(CONFIG.search(made_report.index)[1])
    for each in data["cases"]:
        own = scores[(scores["case"] == each["case"]) & (scores["output"] == "registration")]
        assert abs(each["dsc"][0] - own["dsc"].mean()) < 1e-9


def test_the_truth_lies_on_the_grid_where_the_cohort_has_such_labels(made_report):
    """An atlas' label on the grid comes from `label_to_grid`; a scan's truth in the viewer must lie in the same way."""
    script = case_file(made_report, 0)
    labels = unpacked(script)
    held_out = Cohort.open(made_report.project.workspace / "cohort-test" / "v0001")
    assert script["shape"] == list(held_out.grid.shape)
    image = held_out.image("test_1").astype(float)
    truth = labels["truth"]
    assert set(np.unique(truth)) == {0, 1, 2, 3, 4}
    # The structures of the phantom are brighter or darker than what surrounds them, and even within themselves.
    within = np.mean([image[truth == k].std() for k in (1, 2, 3, 4)])
    mirrored = np.mean([image[truth[:, :, ::-1] == k].std() for k in (1, 2, 3, 4)])
    assert within < 0.7 * mirrored


def test_nothing_names_a_place_and_nothing_is_fetched(made_report):
    for path in made_report.folder.rglob("*"):
        if path.suffix in (".html", ".js"):
            text = path.read_text(encoding="utf-8")
            assert str(made_report.project.folder) not in text
            assert ".nii" not in text
            assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(|type=.module", text)


def test_names_are_text_everywhere(made_report):
    for path in made_report.folder.rglob("*"):
        if path.suffix in (".html", ".js"):
            text = path.read_text(encoding="utf-8")
            assert "<img src=x" not in text
            assert "</script><script>" not in text
    assert "&lt;img src=x" in made_report.index
    assert STRUCTURE in json.loads(CONFIG.search(made_report.index)[1])["structures"][0]["name"]


def test_json_in_a_script_ends_neither_the_script_nor_a_line():
    hostile = "</script><!--\u2028\u2029&'\""
    text = script_json({"a": hostile})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": hostile}


def test_a_report_is_replaced_by_force_alone_and_ratings_in_it_are_kept(made_report, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made_report.folder, out)
    (out / "cases" / "0.js").unlink()
    refused = made_report.project.lrls("report", "--out", str(out))
    assert refused.code == 1
    assert "exists already" in refused.err
    made_report.project.made("report", "--out", str(out), "--method", "affine", "--force")
    assert (out / "cases" / "0.js").is_file()
    (out / "ratings.tsv").write_text("case\n", encoding="utf-8")
    refused = made_report.project.lrls("report", "--out", str(out), "--force")
    assert refused.code == 1
    assert "saved ratings" in refused.err
    assert (out / "ratings.tsv").is_file()


def test_without_scores_one_line_says_what_to_do(project):
    done = project.lrls("report", "--out", str(project.folder / "out"))
    assert (done.code, done.err) == (
        1,
        "lrls: no method has scores on test with seed 0; run `lrls run`, or set eval.part or seed.\n",
    )
    assert not (project.folder / "out").exists()


def test_scores_of_earlier_versions_are_reported_without_the_warped_atlas(made_report, tmp_path):
    shutil.copytree(made_report.project.folder, tmp_path / "copy")
    project = type(made_report.project)(tmp_path / "copy")
    scores = project.workspace / "affine" / "scores" / "v0001"
    assert len(case_file(made_report, 0)["images"]) > 1
    for folder in ("warped", "volume-change"):
        shutil.rmtree(scores / folder)
    project.made("report", "--method", "affine", "--out", str(tmp_path / "out"))
    script = json.loads((tmp_path / "out" / "cases" / "0.js").read_text(encoding="utf-8")[len("lrlsCase(0, ") : -3])
    assert [image["name"] for image in script["images"]] == ["scan"]
    assert "“volume change” shows where" not in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_volume_change_is_named_where_it_can_be_seen_and_flags_are_whole(made_report):
    images = [image["kind"] for number in range(3) for image in case_file(made_report, number)["images"]]
    assert ("“volume change” shows where" in made_report.index) == ("change" in images)
    data = json.loads(CONFIG.search(made_report.index)[1])
    assert not any(flag.endswith("...") for each in data["cases"] for flag in each["flags"])
    assert "With 3 scans no p below 0.25 is possible" in made_report.index
    assert "<caption>" not in made_report.index  # which would scroll away with a wide table


def test_scans_are_shown_coarser_where_they_would_be_too_big(made_report, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.reporting.scans.LEAST_SCRIPT", 4_000)
    monkeypatch.setattr("stages.reporting.scans.ALL_SCRIPTS", 3 * 4_000)
    made_report.project.made("report", "--method", "affine", "--out", str(tmp_path / "out"))
    small = (tmp_path / "out" / "cases" / "0.js").stat().st_size
    assert small < (made_report.folder / "cases" / "0.js").stat().st_size / 2


def test_a_coarser_grid_covers_the_same_box():
    grid = Grid((24, 16, 24), (2.0, 2.0, 1.0), (-10.0, 5.0, 3.0), (1, 0, 0, 0, -1, 0, 0, 0, 1))
    shown = coarser(grid, 1.6)
    assert shown.shape == (24, 16, 15)
    for axis in range(3):
        assert shown.shape[axis] * shown.spacing_mm[axis] == grid.shape[axis] * grid.spacing_mm[axis]
    corners = [
        np.array(each.origin) - np.array(each.spacing_mm[::-1]) / 2 * np.array([1, -1, 1]) for each in (grid, shown)
    ]
    assert np.allclose(*corners)


def test_label_maps_come_back_as_they_were():
    random = np.random.default_rng(0)
    first = random.integers(0, 4, (3, 4, 5)).astype(np.uint16)
    second = first.copy()
    second[0, 0, 0] = 300  # which takes two bytes
    layers = [Layer("a", first), Layer("b", first.copy()), Layer("c", second)]
    found = unpacked({"labels": packed_labels(layers), "shape": (3, 4, 5)})
    assert all((found[layer.name] == layer.classes).all() for layer in layers)


def test_sheets_come_back_as_they_were(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (7, 4, 5)).astype(np.uint8)
    assert (from_sheet(as_sheet(volume), volume.shape) == volume).all()
    write_sheet(tmp_path / "a" / "b.png", volume)
    assert (read_sheet(tmp_path / "a" / "b.png", volume.shape) == volume).all()
    assert read_sheet(tmp_path / "a" / "b.png", (90, 40, 5)) is None
    (tmp_path / "a" / "b.png").write_bytes(b"no picture")
    assert read_sheet(tmp_path / "a" / "b.png", volume.shape) is None


def test_greys_of_a_jacobian_tell_folds_from_shrinking():
    grey = as_grey(np.array([-1.0, 0.0, np.nan, 1e-9, 0.5, 1.0, 2.0, 1e9]))
    assert grey.tolist()[:3] == [FOLDED] * 3
    assert grey[5] == KEPT
    assert 0 < grey[3] < grey[4] < KEPT < grey[6] < grey[7] == 255


def test_unlabelled_scans_are_answered_for_the_report(made_report, tmp_path):
    """Without truth and calibration there are answers and volumes, and no DSC."""
    done = made_report.project.made("report", "--method", "unet", "--unlabeled", "--out", str(tmp_path / "out"))
    assert "has no calibration" in done.out
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    data = json.loads(CONFIG.search(index)[1])
    assert [each["case"] for each in data["cases"]] == ["free_1", "free_2"]
    assert all(each["dsc"] == [None] and each["estimate"] == [None] for each in data["cases"])
    script = json.loads((tmp_path / "out" / "cases" / "0.js").read_text(encoding="utf-8")[len("lrlsCase(0, ") : -3])
    assert list(unpacked(script)) == ["unet"]
    assert all(row["truth_ml"] is None and row["runs"][0]["ml"] is not None for row in script["rows"])


def test_a_truth_that_changed_is_left_out_and_the_page_does_not_say_where_it_lies(made_report, tmp_path):
    shutil.copytree(made_report.project.folder, tmp_path / "copy")
    project = type(made_report.project)(tmp_path / "copy")
    text = project.config_file.read_text(encoding="utf-8")
    project.config_file.write_text(text.replace(str(made_report.project.folder), str(tmp_path / "copy")))
    (tmp_path / "copy" / "scans" / "labels" / "test_1.nii.gz").unlink()
    done = project.made("report", "--method", "affine", "--out", str(tmp_path / "out"))
    assert "case test_1" in done.out
    text = (tmp_path / "out" / "cases" / "0.js").read_text(encoding="utf-8")
    script = json.loads(text[len("lrlsCase(0, ") : -3])
    assert "truth" not in [label["name"] for label in script["labels"]]
    assert "truth is not shown" in script["note"]
    assert str(tmp_path) not in text


def test_names_at_the_ends_of_curves_do_not_lie_on_one_another():
    assert spread([10.0, 50.0, 10.0, 12.0], 14.0) == [10.0, 52.0, 24.0, 38.0]
    nan = float("nan")
    one, two = [(1, 1.0, nan, nan), (2, 1.0, nan, nan)], [(2, 1.0, 0.8, 1.0)]
    chart = lines("A title", "round", [("one", one), ("two", two)])
    places = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start">(?:one|two)<', chart)]
    assert places[1] - places[0] == pytest.approx(14.0)
    assert chart.count(' interval"') == 1  # no interval, no line
