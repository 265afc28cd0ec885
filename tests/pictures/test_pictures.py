import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from stages import pictures
from stages.parts.panels import Panel, Points
from stages.pictures.losses import smooth
from stages.pictures.slices import best_slice, plane_size

SHAPE = (10, 14, 12)


def volume(seed):
    return np.random.default_rng(seed).random(SHAPE, dtype=np.float32)


def label(shift=0):
    classes = np.zeros(SHAPE, dtype=np.uint8)
    classes[3:7, 4 + shift : 8 + shift, 3:9] = 1
    classes[5:8, 8 + shift : 11 + shift, 4:7] = 2
    return classes


def displacement():
    return np.random.default_rng(4).normal(0, 0.5, (3, *SHAPE)).astype(np.float32)


def log():
    records = [{"phase": "joint", "step": step, "R/similarity": 1 / (step + 1), "R/smooth": 0.1} for step in range(40)]
    return records + [{"phase": "adversarial", "step": step, "D/loss": -0.1 * step, "rate": 1.0} for step in range(3)]


def registration(**changes):
    row = {"case": "scan_1", "atlas": volume(0), "warped": volume(1), "scan": volume(2), "displacement": displacement()}
    return {**row, "warped_label": label(), **changes}


def couple(**changes):
    row = {"image": volume(0), "label": label(), "alpha": 0.25, "beta": 0.5}
    return {**row, "atlas": "atlas_1", "space": "scan_1", "style": "scan_2", **changes}


def prediction(**changes):
    row = {"case": "scan_1", "dice": 0.8, "rank": "best", "image": 900 * volume(0) - 1000, "truth": label()}
    return {**row, "prediction": label(1), "spacing_mm": (3.0, 1.0, 1.0), **changes}


def suggested(count):
    return [{"name": f"scan {number}", "image": volume(number)} for number in range(count)]


def scores(count):
    values = np.linspace(0.8, 0.6, count)
    case = [f"scan_{number}" for number in range(count)]
    return {"case": case, "score": values, "score_low": values - 0.01, "score_high": values + 0.02}


def panels():
    error = Panel("error", torch.from_numpy(volume(3)) / 10, shows="error")
    return [Panel("$x$", torch.from_numpy(volume(0)), torch.from_numpy(label())), error]


def points(count):
    groups = {f"$scan_{number}$": torch.from_numpy(volume(number)[0, :4, :2]) for number in range(count)}
    return Points("codes", groups, ("first", "second"))


def rounds():
    return [
        {
            "round": n,
            "trusted_voxels": 0.9,
            "accepted_structures": n / 3,
            "labelled_scans": 1.0,
            "volume_of_atlas": 2.0 * n,
        }
        for n in (1, 2)
    ]


NAMES = ("liver", "left kidney")
DRAWINGS = {
    "loss curves": lambda path: pictures.loss_curves(log(), path),
    "no steps": lambda path: pictures.loss_curves([], path),
    "one step": lambda path: pictures.loss_curves(log()[:1], path),
    "losses that are not finite": lambda path: pictures.loss_curves(
        [{"phase": 0, "step": step, "R/similarity": value} for step, value in enumerate([np.nan, np.inf, 1.0])], path
    ),
    "registrations": lambda path: pictures.registration_overlay([registration()] * 2, path, structures=NAMES),
    "registration without label": lambda path: pictures.registration_overlay([registration(warped_label=None)], path),
    "no registrations": lambda path: pictures.registration_overlay([], path),
    "panels": lambda path: pictures.panels_page([("a", panels()), ("b", panels())], path, structures=NAMES),
    "rounds": lambda path: pictures.rounds_page(rounds(), path),
    "rounds with DSC": lambda path: pictures.rounds_page([row | {"dsc": 0.5} for row in rounds()], path),
    "rounds without a finite number": lambda path: pictures.rounds_page([{"round": 1, "dsc": np.nan}], path),
    "no rounds": lambda path: pictures.rounds_page([], path),
    "panels without error": lambda path: pictures.panels_page(
        [("a", [Panel("0", torch.zeros(SHAPE), None, "error")])], path
    ),
    "no panels": lambda path: pictures.panels_page([], path),
    "couples": lambda path: pictures.couples_page([couple()] * 7, path, structures=NAMES, spacing_mm=(1, 1, 2)),
    "couple without origin": lambda path: pictures.couples_page([couple(alpha=None, style=None)], path),
    "no couples": lambda path: pictures.couples_page([], path),
    "suggestion": lambda path: pictures.suggestion_page(suggested(4), path, scores=scores(4), spacing_mm=(3, 1, 1)),
    "suggestion of many": lambda path: pictures.suggestion_page(suggested(2), path, scores=scores(80)),
    "predictions": lambda path: pictures.predictions_page([prediction(), prediction(dice=0.1)], path, structures=NAMES),
    "prediction of nothing": lambda path: pictures.predictions_page([prediction(prediction=0 * label())], path),
    "nothing to predict": lambda path: pictures.predictions_page(
        [prediction(truth=0 * label(), prediction=0 * label(), image=0 * volume(0))], path
    ),
    "no predictions": lambda path: pictures.predictions_page([], path),
    "features": lambda path: pictures.panels_page(
        [
            (
                "a",
                [
                    Panel("0", torch.zeros(SHAPE), shows="feature"),
                    Panel("1", torch.from_numpy(volume(1)), shows="feature"),
                ],
            )
        ],
        path,
        spacing_mm=(3, 1, 1),
    ),
    "points": lambda path: pictures.points_plot(points(3), path),
    "points of many": lambda path: pictures.points_plot(points(40), path),
    "scores": lambda path: pictures.score_boxes({"liver": [0.9, 0.95, np.nan], "$x_1$": [0.2], "none": []}, path),
    "no scores": lambda path: pictures.score_boxes({}, path),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_picture_is_a_readable_png_and_the_same_every_time(draw, tmp_path):
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    draw(first)
    draw(second)
    with Image.open(first) as image:
        image.verify()
        assert image.format == "PNG"
        assert all(150 <= size <= 4000 for size in image.size)
        assert not image.info.get("Software")
    assert first.read_bytes() == second.read_bytes()


def test_pages_grow_with_their_rows(tmp_path):
    sizes = []
    for count in (1, 3):
        pictures.registration_overlay([registration()] * count, tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 2.5 * sizes[0][1]


def test_slices_keep_the_proportions_of_the_body():
    # 14 rows of 1 mm over 12 columns of 2 mm, then 10 rows of 3 mm.
    assert plane_size(SHAPE, 0, (3, 1, 2)) == pytest.approx(14 / 24)
    assert plane_size(SHAPE, 1, (3, 1, 2)) == pytest.approx(30 / 24)
    assert plane_size(SHAPE, 2, None) == pytest.approx(10 / 14)


def test_the_slice_with_the_most_label_is_shown():
    classes = np.zeros(SHAPE, dtype=int)
    classes[2, :2, :2] = 9
    classes[7, :3, :3] = 1
    assert best_slice(classes, SHAPE, 0) == 7
    assert best_slice(None, SHAPE, 0) == best_slice(0 * classes, SHAPE, 0) == 5


def test_best_median_and_worst_scan():
    dice = {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.9, "e": 0.1}
    assert pictures.best_median_worst(dice) == {"best": "b", "median": "c", "worst": "e"}
    assert pictures.best_median_worst({"a": 0.5, "b": 0.6}) == {"best": "b", "worst": "a"}
    assert pictures.best_median_worst({"a": 0.5}) == {"best": "a"}
    assert pictures.best_median_worst({}) == {}


def test_smoothing_keeps_a_constant_and_passes_over_gaps():
    values = np.full(60, 2.0)
    values[10] = np.nan
    assert smooth(values) == pytest.approx(np.full(60, 2.0))


def test_neighbouring_classes_have_distinct_colors():
    colors = [pictures.class_color(number) for number in range(1, 40)]
    assert len(set(colors)) == len(colors)


def test_drawing_leaves_no_figures_behind(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    pictures.loss_curves(log(), tmp_path / "curves.png")
    assert pyplot.get_fignums() == before


def test_an_overlay_shows_three_planes_with_contours(tmp_path):
    row = {"case": "p1", "image": volume(0), "label": label(), "spacing_mm": (1.0, 1.0, 2.0), "note": "folding"}
    pictures.overlay_page(row, tmp_path / "sound.png", structures=("one", "two"))
    pictures.overlay_page({**row, "label": np.zeros(SHAPE, int)}, tmp_path / "empty.png", structures=("one", "two"))
    sound, empty = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("sound", "empty"))
    assert sound.shape == empty.shape
    assert sound.shape[1] > 2 * sound.shape[0]
    changed = (sound != empty).any(-1).any(0)  # contours in each third of the page
    assert all(third.any() for third in np.array_split(changed, 3))


def test_names_in_any_script_are_drawn_without_a_warning(tmp_path):
    from stages.pictures.kit import write_note

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_note("\u809d\u81d3 \u0643\u0628\u062f \u0915 \U0001f9e0", tmp_path / "note.png")
    assert (tmp_path / "note.png").stat().st_size > 1000
