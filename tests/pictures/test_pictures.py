import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from stages import pictures
from stages.parts.metrics import jacobian_determinant
from stages.parts.panels import Panel, Points
from stages.pictures.losses import smooth
from stages.pictures.slices import FOLD, best_slice, plane_size

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


def answers(count):
    labels = {
        f"method-{number} with=a-setting and=$another$, registration": (label(number % 3), 0.5)
        for number in range(count)
    }
    row = {"case": "$scan_1$", "image": 900 * volume(0) - 1000, "truth": label(), "spacing_mm": (3.0, 1.0, 1.0)}
    return {**row, "answers": labels}


def by_method(methods, structures):
    values = np.random.default_rng(5).random((methods, structures, 4)).tolist()
    return {f"method {m}": {f"part {s}": values[m][s] for s in range(structures)} for m in range(methods)}


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
    "clouds of points": lambda path: pictures.points_plot(replace(points(3), clouds=True), path),
    "degrees": lambda path: pictures.degrees_page(
        {"$atlas$": (volume(0), label()), "scan": (volume(1), None)},
        {f"$row$ {r}": {f"$c$ {c}": (volume(c), label(r)) for c in range(5)} for r in range(3)},
        path,
        structures=NAMES,
        spacing_mm=(3, 1, 1),
    ),
    "one degree": lambda path: pictures.degrees_page(
        {"atlas": (volume(0), None), "a": (volume(0), None), "b": (volume(0), None)},
        {"row": {"c": (volume(1), None)}},
        path,
    ),
    "points of many": lambda path: pictures.points_plot(points(40), path),
    "scores": lambda path: pictures.score_boxes({"liver": [0.9, 0.95, np.nan], "$x_1$": [0.2], "none": []}, path),
    "side by side": lambda path: pictures.side_by_side_page(answers(3), path, structures=NAMES),
    "many side by side": lambda path: pictures.side_by_side_page(answers(17), path, structures=NAMES),
    "nothing side by side": lambda path: pictures.side_by_side_page(answers(0), path),
    "nothing found side by side": lambda path: pictures.side_by_side_page(
        answers(0) | {"truth": 0 * label(), "answers": {"a": (0 * label(), np.nan)}}, path
    ),
    "boxes": lambda path: pictures.structures_by_method(by_method(3, 2), path),
    "many boxes": lambda path: pictures.structures_by_method(by_method(17, 28), path),
    "no boxes": lambda path: pictures.structures_by_method({"a": {"liver": []}}, path),
    "boxes of some": lambda path: pictures.structures_by_method({"a": {"liver": []}, "b": {"liver": [0.5]}}, path),
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


def share_of(color, path):
    """The share of a page's pixels that have a colour, or nearly."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    return (np.abs(pixels - wanted).max(-1) < 60).mean()


def test_folds_are_marked_where_they_are(tmp_path):
    still = np.zeros((3, *SHAPE), dtype=np.float32)
    folds = still.copy()
    folds[2, :, 4:9, 6:] = -3  # voxels from 6 on read what lies before 4: the mapping runs backwards between 5 and 6
    for name, field in (("sound", still), ("folded", folds)):
        dark = registration(displacement=field, scan=0 * volume(2), warped_label=None)
        pictures.registration_overlay([dark], tmp_path / f"{name}.png")
        field = torch.from_numpy(field)
        panel = Panel("u", field.norm(dim=0) * 0, folds=~(jacobian_determinant(field[None])[0] > 0))
        pictures.panels_page([("a", [panel])], tmp_path / f"{name}-panel.png")
    assert share_of(FOLD, tmp_path / "sound.png") == share_of(FOLD, tmp_path / "sound-panel.png") == 0
    assert share_of(FOLD, tmp_path / "folded.png") > 0.002
    assert share_of(FOLD, tmp_path / "folded-panel.png") > 0.02


def test_every_answer_has_a_column_beside_the_truth(tmp_path):
    widths = {}
    for count in (1, 3, 6, 17):
        pictures.side_by_side_page(answers(count), tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as image:
            widths[count] = image.size
    assert widths[1][0] < widths[3][0] < widths[6][0] == widths[17][0]
    assert widths[17][1] > 2.5 * widths[6][1]  # three rows of columns


def test_contours_of_an_answer_are_drawn_in_its_column(tmp_path):
    pages = []
    for other in (label(), 0 * label()):
        row = answers(1) | {"answers": {"a": (label(), 0.5), "b": (other, 0.5)}}
        pictures.side_by_side_page(row, tmp_path / "page.png")
        pages.append(np.asarray(Image.open(tmp_path / "page.png").convert("RGB")))
    truth, first, second = np.array_split((pages[0] != pages[1]).any(-1).any(0), 3)
    assert second.any() and not truth.any() and not first[: len(first) // 2].any()


def test_boxes_show_every_method_of_every_structure(tmp_path):
    pages = []
    for last in (0.5, 0.9):
        table = {"a": {"one": [0.2, 0.3, 0.4], "two": [0.5, 0.5]}, "b": {"one": [0.3, 0.4], "two": [0.4, last]}}
        pictures.structures_by_method(table, tmp_path / "page.png")
        pages.append(np.asarray(Image.open(tmp_path / "page.png").convert("RGB")))
    rows = (pages[0] != pages[1]).any(-1).any(1)
    assert rows.any() and not rows[: len(rows) // 3].any()  # only the second structure's rows, and the legend


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
